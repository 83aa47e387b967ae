"""Downstream tasks, one file each: what a pretrained encoder is fine-tuned for."""

from selftaught.downstream.base import Downstream

__all__ = ["Downstream"]
