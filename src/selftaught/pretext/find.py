"""Find a pretext task: by the name of its file here, by an entry point, or in a file of the user's own."""

import importlib
import importlib.util
import pkgutil
import sys
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType

from selftaught.errors import UserError, unknown
from selftaught.pretext.base import Pretext

_NOT_TASKS = {"base", "distillation", "filling", "find", "tiles", "views"}
GROUP = "selftaught.pretexts"


def available() -> dict[str, str]:
    """Names of all pretext tasks that can be had without naming a file, and where each lives."""
    own = importlib.import_module("selftaught.pretext")
    names = {m.name: f"{own.__name__}.{m.name}" for m in pkgutil.iter_modules(own.__path__) if m.name not in _NOT_TASKS}
    names.update({point.name: point.value for point in entry_points(group=GROUP)})
    return names


def _task_of(module: ModuleType, wanted: str | None) -> type[Pretext]:
    tasks = {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, type)
        and issubclass(value, Pretext)
        and value is not Pretext
        and value.__module__ == module.__name__
    }
    if wanted is None and len(tasks) == 1:
        return next(iter(tasks.values()))
    if wanted in tasks:
        return tasks[wanted]
    if wanted is None:
        raise UserError(f"'{module.__file__}' defines {len(tasks)} pretext tasks; name one: FILE.py:CLASS")
    raise unknown(f"pretext task in '{module.__file__}'", wanted, tasks)


def find(name: str) -> type[Pretext]:
    """The class of the task called `name`: `simclr`, or `my_task.py:MyTask`.

    Naming a file runs it, as importing any module does. Raises UserError for a name or file that does not exist.
    """
    if name.endswith(".py") or ".py:" in name:
        path, _, wanted = (name if ".py:" in name else f"{name}:").rpartition(".py:")
        file = Path(path + ".py")
        if not file.is_file():
            raise UserError(f"pretext file '{file}' does not exist")
        spec = importlib.util.spec_from_file_location(f"selftaught_user_{file.stem}", file.resolve())
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # dataclasses look their module up there
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            raise UserError(f"pretext file '{file}' fails on import: {type(error).__name__}: {error}") from error
        return _task_of(module, wanted or None)
    known = available()
    if name not in known:
        raise unknown("pretext", name, known)
    module_name, _, attribute = known[name].partition(":")
    return _task_of(importlib.import_module(module_name), attribute or None)
