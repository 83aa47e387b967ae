"""One thread for small problems: beside busy data workers, barriers between threads made tiny fits 30 times slower."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

SMALL = 1 << 20  # entries below which a second thread gains nothing


@contextmanager
def one_thread(entries: int) -> Iterator[None]:
    """Run torch on one CPU thread inside the block if the largest matrix has fewer than 2^20 entries."""
    before = torch.get_num_threads()
    if entries < SMALL:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
