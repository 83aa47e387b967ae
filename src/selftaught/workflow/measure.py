"""evaluate: the data is opened, and its kind says which module measures an encoder on it."""

import importlib
from pathlib import Path
from typing import Any

from selftaught import bundle
from selftaught.workflow.evaluate import Asked, read_size
from selftaught.workflow.kinds import data_called
from selftaught.workflow.prepare import open_any


def evaluate(run: Path, data: Any, asked: Asked) -> dict[str, Any]:
    """Measure the encoder of a run on labelled data, unlabelled text or pairs of texts."""
    loaded = bundle.load(run)
    source = open_any(data, read_size(loaded, asked.against), asked.quiet)
    module = importlib.import_module(f"selftaught.workflow.{data_called(source.kind).evaluation}")
    return module.evaluate(run, loaded, data, source, asked)
