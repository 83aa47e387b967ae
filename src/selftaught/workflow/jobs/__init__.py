"""The downstream tasks as finetune and predict see them, each imported when it is asked for."""

import importlib
from pathlib import Path

from selftaught.bundle import Bundle, find
from selftaught.errors import UserError, unknown
from selftaught.workflow.jobs.base import Job

__all__ = ["JOBS", "Job", "job_called", "job_of"]

_ROOMS = {"classify": ("classify", "Classifying"), "translate": ("translate", "Translating")}
JOBS = tuple(_ROOMS)


def job_called(name: str) -> Job:
    """The job of a downstream task by its name."""
    if name not in _ROOMS:
        raise unknown("task", name, _ROOMS)
    module, attribute = _ROOMS[name]
    return getattr(importlib.import_module(f"{__name__}.{module}"), attribute)()


def job_of(loaded: Bundle, run: Path) -> Job:
    """The job that a fine-tuned bundle was made for. UserError for one that was not fine-tuned."""
    name = loaded.info.get("task", "classify" if loaded.info.get("classes") else None)
    job = None if name is None else job_called(str(name))
    if job is None or not (find(run) / job.file).is_file():
        raise UserError(
            f"'{run}' holds no classifier; make one with: selftaught finetune {run} DATA, or a translator with --task translate"
        )
    return job
