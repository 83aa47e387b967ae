"""A short run on digits that is watched as `evaluation.monitor` watches one: the output that the loss acts on is measured."""

import torch

from selftaught.batch import Batch
from selftaught.evaluation.health import HealthRow, measure
from selftaught.evaluation.watch import Alarm, diagnose
from selftaught.pretext import Pretext
from selftaught.train.config import TrainConfig
from selftaught.train.distributed import Ranks
from selftaught.train.loop import Trainer
from selftaught.train.optim import OptimConfig
from selftaught.train.order import Order
from tests.contracts.conftest import small_digits

VIEW = {"crop_scale": [0.6, 1.0], "flip": 0.0}  # digits are not mirrored, and fill their pictures


def projections(task: Pretext) -> torch.Tensor:
    """What the loss would compare, of 256 samples that are held out."""
    source, _, test = small_digits()
    held = Batch(source.fetch(test[:256]), torch.from_numpy(test[:256]), 0, 0)
    with torch.no_grad():
        return task.project(task.encoder(task.modality.plain(held)).pooled)


def watched(
    task: Pretext, steps: int, every: int = 20, batch: int = 64, **optim: object
) -> tuple[list[HealthRow], list[float]]:
    """Health of 256 held-out samples' projections every `every` steps, from step 0 on, and the loss of each step."""
    source, train, _ = small_digits()
    order = Order(len(train), batch, 0)
    trainer = Trainer(task, TrainConfig(steps=steps, batch=batch, optim=OptimConfig(**optim)), Ranks())  # type: ignore[arg-type]
    history, losses = [], list[float]()
    for step in range(steps + 1):
        if step % every == 0:
            with trainer.measuring():
                history.append(measure(projections(task), step=step))
        if step < steps:
            index = train[order.of_step(step)]
            losses.append(trainer.train_step(Batch(source.fetch(index), torch.from_numpy(index), 0, step))["loss"])
    return history, losses


def first_alarm(history: list[HealthRow], losses: list[float]) -> Alarm | None:
    """What the watchdog says first, as if it had been asked at every measure."""
    for i, row in enumerate(history, 1):
        if alarm := diagnose(history[:i], losses[: row.step]):
            return alarm
    return None
