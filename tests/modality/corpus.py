"""Small real texts that every machine has: docstrings of the standard library, and a few Chinese sentences."""

import functools
import importlib
import inspect
import sys

MODULES = (
    "argparse",
    "collections",
    "datetime",
    "decimal",
    "email.message",
    "json",
    "logging",
    "pathlib",
    "unittest.case",
)
LATER = {"logging.handlers", "logging.config", "json.tool"}  # submodules that are members once someone imported them
CHINESE = (
    "今天的外卖很好吃，送餐也很快！下次还会再来。",
    "味道一般，披萨已经凉了，服务态度不好。",
    "北京大学的学生在图书馆里读书。",
    "自监督学习从没有标签的数据中学习表示。",
    "这家店的面条又便宜又好吃，推荐给大家。",
    "快递员迷路了，等了两个小时才到。",
)


@functools.cache
def english() -> tuple[tuple[str, str], ...]:
    """(text, module) of public docstrings, at least 30 characters long, no text twice.

    Always the same: neither those of submodules that someone may have imported nor of what others added.
    """
    found: dict[str, str] = {}
    for name in MODULES:
        module = importlib.import_module(name)
        submodules = [m for m in vars(module).values() if inspect.ismodule(m) and m.__name__ in LATER]
        for member in [module, *(m for m in vars(module).values() if m not in submodules)]:
            for thing in [member, *(vars(member).values() if inspect.isclass(member) else ())]:
                own = str(getattr(thing, "__module__", None) or name).partition(".")[0] in sys.stdlib_module_names
                text = inspect.getdoc(thing) if own and (callable(thing) or inspect.ismodule(thing)) else None
                if text and len(text) >= 30:
                    found.setdefault(text, name)
    return tuple(found.items())


def texts() -> list[str]:
    """English texts, then Chinese ones."""
    return [text for text, _ in english()] + list(CHINESE)
