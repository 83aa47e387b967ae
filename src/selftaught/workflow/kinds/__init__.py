"""The kinds of data. Each is imported when it is first met: text needs packages that pictures do not."""

import importlib

from selftaught.errors import UserError
from selftaught.workflow.kinds.base import Audited, Kind, Reading, Training

__all__ = ["KINDS", "Audited", "Kind", "Reading", "Training", "kind_called"]

_ROOMS = {"image": ("images", "Images"), "text": ("texts", "Texts")}
KINDS = tuple(_ROOMS)


def kind_called(name: str) -> Kind:
    """The kind of data of a source or recipe."""
    if name not in _ROOMS:
        raise UserError(f"kind of data '{name}' is unknown to this version; known: {', '.join(_ROOMS)}")
    module, attribute = _ROOMS[name]
    return getattr(importlib.import_module(f"{__name__}.{module}"), attribute)()
