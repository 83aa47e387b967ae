"""The kinds of data. Each is imported when it is first met: text needs packages that pictures do not."""

import importlib
from typing import Any

from selftaught.errors import UserError
from selftaught.workflow.kinds.base import Audited, Data, Kind, Reading, Training

__all__ = ["KINDS", "Audited", "Data", "Kind", "Reading", "Training", "data_called", "kind_called"]

_ROOMS = {"image": ("images", "Images"), "text": ("texts", "Texts"), "event": ("events", "Events")}
_OTHERS = {"text_pairs": ("pairs", "Pairs")}  # which no encoder learns from by itself
KINDS = tuple(_ROOMS)


def kind_called(name: str) -> Kind:
    """The kind of data of a recipe, or of a source that encoders learn from."""
    return _made(name, _ROOMS)


def data_called(name: str) -> Data:
    """The kind of data of any source."""
    return _made(name, _ROOMS | _OTHERS)


def _made(name: str, rooms: dict[str, tuple[str, str]]) -> Any:
    if name not in rooms:
        raise UserError(f"kind of data '{name}' is unknown to this version; known: {', '.join(rooms)}")
    module, attribute = rooms[name]
    return getattr(importlib.import_module(f"{__name__}.{module}"), attribute)()
