"""Pretext tasks, one file each: views, heads, targets, loss and metrics of a method. Found by their files."""

from selftaught.pretext.base import Pretext
from selftaught.pretext.find import available, find

__all__ = ["Pretext", "available", "find"]
