"""Which samples make which step: a function of (seed, step) alone, and a loader that fetches them ahead of time."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from selftaught import rng
from selftaught.batch import Batch
from selftaught.errors import UserError

_ORDER = 1  # what the permutation's key is for, so that it shares no bits with augmentation


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
    fetch: Callable[[np.ndarray, int], Batch], order: Order, first: int, last: int, workers: int
) -> Iterator[Batch]:
    """Batches of steps first .. last-1, fetched by `workers` threads ahead of time (0: when asked for).

    Threads, not processes: decoding and copying release the interpreter, and nothing has to be sent anywhere.
    """
    if workers == 0:
        for step in range(first, last):
            yield fetch(order.of_step(step), step)
        return
    with ThreadPoolExecutor(workers, thread_name_prefix="selftaught-load") as pool:
        waiting: deque[Future[Batch]] = deque()
        try:
            for step in range(first, min(last, first + workers + 1)):
                waiting.append(pool.submit(fetch, order.of_step(step), step))
            for step in range(first, last):
                batch = waiting.popleft().result()
                if step + workers + 1 < last:
                    ahead = step + workers + 1
                    waiting.append(pool.submit(fetch, order.of_step(ahead), ahead))
                yield batch
        finally:
            for future in waiting:
                future.cancel()
