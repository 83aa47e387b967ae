"""Which samples make which step: a function of (seed, step) alone, and a loader that fetches them ahead of time."""

from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice

import numpy as np
import torch

from selftaught import rng
from selftaught.batch import Batch
from selftaught.errors import UserError

# Threads that load, by device: a card takes gigabytes a second; beside training on a CPU there are no cores to spare.
LOADERS = {"cpu": 1, "cuda": 4}
_ORDER = 1  # what the permutation's key is for; it shares bits with augmentation at step 1 alone


class Order:
    """Sample order of a run over n samples.

    Every epoch is a fresh permutation; the last n mod batch samples of it are left out, so no batch repeats a sample.
    Rank r of W takes the r-th of W consecutive parts of each step's batch: the union does not depend on W.
    """

    def __init__(self, n: int, batch: int, seed: int, rank: int = 0, world: int = 1) -> None:
        if batch > n:
            raise UserError(f"batch {batch} is larger than the {n} training samples; use --batch {n} or less")
        if batch % world:
            low, high = batch // world * world, -(-batch // world) * world
            near = f"{low} or {high}" if low else str(high)
            raise UserError(f"batch {batch} is not divisible by {world} ranks; use --batch {near}")
        self.n, self.batch, self.seed, self.rank, self.world = n, batch, seed, rank, world
        self.steps_per_epoch = n // batch
        self._epoch = -1
        self._permutation = np.empty(0, dtype=np.int64)

    def of_step(self, step: int) -> np.ndarray:
        """Positions int64 [batch / world] of this rank's samples at `step` (counted from 0)."""
        epoch, within = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._permutation = rng.permutation(self.n, self.seed, _ORDER, epoch)
            self._epoch = epoch
        share = self.batch // self.world
        start = within * self.batch + self.rank * share
        return self._permutation[start : start + share]


def batches(
    fetch: Callable[[np.ndarray, int], Batch],
    order: Order,
    first: int,
    last: int,
    workers: int,
    device: torch.device,
) -> Generator[Batch, None, None]:
    """Batches of steps first .. last-1 on `device`, fetched ahead of time by `workers` threads."""
    return ahead((partial(fetch, order.of_step(step), step) for step in range(first, last)), workers, device)


def ahead(jobs: Iterator[Callable[[], Batch]], workers: int, device: torch.device) -> Generator[Batch, None, None]:
    """What the jobs give, in their order, on `device`; done ahead of time by `workers` threads (0: when asked for).

    Threads, not processes: decoding and copying release the interpreter, and nothing has to be sent anywhere. The jobs
    themselves are taken in the caller's thread.
    """
    if device.type != "cuda":
        return _done(jobs, workers)
    return _copied(_done((partial(_pinned, job) for job in jobs), workers), device)


def _pinned(job: Callable[[], Batch]) -> Batch:
    return job().pinned()


def _done(jobs: Iterator[Callable[[], Batch]], workers: int) -> Generator[Batch, None, None]:
    if workers == 0:
        for job in jobs:
            yield job()
        return
    with ThreadPoolExecutor(workers, thread_name_prefix="selftaught-load") as pool:
        waiting = deque(pool.submit(job) for job in islice(jobs, workers + 1))
        try:
            while waiting:
                batch = waiting.popleft().result()
                waiting.extend(pool.submit(job) for job in islice(jobs, 1))
                yield batch
        finally:
            for future in waiting:
                future.cancel()


def _copied(pinned: Iterator[Batch], device: torch.device) -> Generator[Batch, None, None]:
    """The batches on a CUDA device; each is copied while the step of the one before it runs."""
    side = torch.cuda.Stream(device)

    def copy(batch: Batch) -> tuple[Batch, torch.cuda.Event]:
        with torch.cuda.stream(side):
            return batch.to(device), side.record_event()

    copies = map(copy, pinned)
    ahead = next(copies, None)
    while ahead is not None:
        (batch, done), ahead = ahead, next(copies, None)
        here = torch.cuda.current_stream(device)
        here.wait_event(done)
        for x in batch.tensors():  # of the other stream, which is to leave its memory alone until this one is done
            x.record_stream(here)
        yield batch
