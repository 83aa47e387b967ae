"""The logs of a run once more as TensorBoard's event files, for those who look at many runs there."""

import contextlib
from collections.abc import Iterator
from typing import Any

from selftaught.train.folder import RunFolder


@contextlib.contextmanager
def mirrored(run: RunFolder, first: int) -> Iterator[None]:
    """Write what goes to log.jsonl and health.jsonl to RUN/tensorboard as well; `first`: the step that training is at.

    Event files of steps after `first`, which a killed run left, are hidden by the newer ones. Needs selftaught[log].
    """
    if not run.writes:
        yield
        return
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(run.path / "tensorboard"), purge_step=first + 1) as writer:

        def write(name: str, row: dict[str, Any]) -> None:
            group = name.removesuffix(".jsonl").replace("log", "train")
            for key, value in row.items():
                if key != "step" and isinstance(value, int | float):
                    writer.add_scalar(f"{group}/{key}", value, row["step"])

        run.mirror = write
        try:
            yield
        finally:
            run.mirror = None
