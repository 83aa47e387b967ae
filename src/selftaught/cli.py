"""The command line: one verb a public function, made from its signature."""

import inspect
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from selftaught import __version__, api
from selftaught.errors import UserError, say

VERBS = (
    *("pretrain", "evaluate", "finetune", "predict", "embed", "fill", "generate", "recommend", "surprise", "export"),
    *("inspect", "preview", "report", "tasks", "demo"),
)
_POSITIONAL = {"run", "data", "text", "prompt"}
_PLACEHOLDER = {"<class 'int'>": "N", "int": "N", "<class 'float'>": "X", "float": "X", "pathlib.Path": "PATH"}


def _verb(name: str) -> Callable[..., Any]:
    """The public function with types that a command line can give: what may be anything in Python is a path here."""
    function = getattr(api, name)
    parameters = []
    for parameter in inspect.signature(function, eval_str=True).parameters.values():
        parameters.append(parameter.replace(annotation=_argument(parameter), kind=inspect.Parameter.KEYWORD_ONLY))

    def call(**arguments: Any) -> tuple[str, Any]:
        result = function(**arguments)
        if name in ("recommend", "surprise") and arguments["out"] is not None:  # the file holds the rows, of any number
            result = result[: arguments["k"]] if name == "surprise" else arguments["out"]
        return name, result

    call.__name__, call.__doc__ = (
        name,
        function.__doc__,
    )  # not functools.wraps: tyro would follow it to the wrapped types
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {p.name: p.annotation for p in parameters}
    return call


def _shown(default: Any) -> str:
    return " ".join(map(str, default)) if isinstance(default, tuple) else str(default)


def _argument(parameter: inspect.Parameter) -> Any:
    """The type of one argument, with the field's name as the placeholder in the help."""
    kind, default = parameter.annotation, parameter.default
    positional = parameter.name in _POSITIONAL or parameter.name == "name"
    if kind is Any:
        kind = str if default is inspect.Parameter.empty else str | None
    hint = "" if default in (None, (), inspect.Parameter.empty) else f"(default: {_shown(default)})"
    metavar = parameter.name.upper() if positional else _PLACEHOLDER.get(str(kind).removesuffix(" | None"), "NAME")
    if kind == Sequence[str]:
        kind = tyro.conf.UseAppendAction[tuple[str, ...]]
    elif kind == Sequence[float]:
        kind, metavar = tuple[float, ...], "SHARE"
    marks = (
        [tyro.conf.arg(metavar=metavar, help_behavior_hint=hint)]
        if kind is not bool
        else [tyro.conf.FlagCreatePairsOff]
    )
    if positional:
        marks.append(tyro.conf.Positional)
    return Annotated[(kind, *marks)]


def _show(verb: str, result: Any) -> None:
    """The result on standard output: a path, or a table; of many ranks the first one speaks."""
    if os.environ.get("RANK", "0") != "0":
        return
    if verb in ("tasks", "fill", "recommend", "surprise") and isinstance(result, list) and result:
        from rich.console import Console
        from rich.table import Column, Table
        from rich.text import Text

        names = {"name": "task"}
        # Ids are to be read whole: on a terminal in several lines, in a file or pipe each row in one.
        columns = (Column(names.get(n, n), overflow="fold") for n in result[0])
        table = Table(*columns, box=None, pad_edge=False)
        for row in result:
            table.add_row(*(Text(f"{v:.3f}" if isinstance(v, float) else str(v)) for v in row.values()))
        if sys.stdout.isatty():
            Console().print(table)
        else:
            from selftaught.reporting import show

            show(table)
    elif isinstance(result, Path | str):
        print(result)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments in (["--version"], ["-V"]):
        print(__version__)
        return 0
    if not arguments:
        arguments = ["--help"]
    # Large tensors in pages of 2 MB (Linux), which small networks gain by. torch reads it as it is imported.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    # Texts of many lengths make oneDNN keep a kernel for each, 1024 at most and a megabyte each (docs/architecture.md).
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "256")
    # DDP warns of a traversal that we want (train/distributed.py), past Python's filters.
    if "TORCHELASTIC_RUN_ID" in os.environ:
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    try:
        verb, result = tyro.extras.subcommand_cli_from_dict(
            {name: _verb(name) for name in VERBS},
            prog="selftaught",
            description="Pretrain on unlabelled data, see what it was worth, fine-tune with few labels.",
            args=arguments,
        )
        _show(verb, result)
    except UserError as error:
        say(f"selftaught: {error}")
        return error.exit_code
    except (KeyboardInterrupt, RuntimeError) as error:
        if not _interrupted(error):
            raise
        say("selftaught: interrupted; type the same command to go on")
        return 130
    except BrokenPipeError:  # the reader of our output (head, less) has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.filename is None:
            raise
        from selftaught.disk import disk_error

        full = disk_error(error, Path(os.fsdecode(error.filename)))
        say(f"selftaught: {full or f'{error.filename}: {error.strerror}'}")
        return 2 if full is None else full.exit_code
    return 0


def _interrupted(error: BaseException | None) -> bool:
    """Whether it is Ctrl-C, or what came of it: one that falls into a lock of `threading` ends as its RuntimeError."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None


if __name__ == "__main__":
    sys.exit(main())
