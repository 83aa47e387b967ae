"""What a run would cost: ranks that agree on when they have seen enough, and a peak of memory that is the task's own."""

import time
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import torch

from selftaught.batch import Batch
from selftaught.errors import UserError
from selftaught.train.distributed import Ranks
from selftaught.train.loop import Trainer
from selftaught.train.order import batches
from selftaught.workflow import plan
from tests import runs
from tests.contracts.conftest import small_digits


def _resolved(ranks: Ranks) -> plan.Resolved:
    source, train, test = small_digits()
    settings = ["train.precision=fp32"]
    request = plan.Request("", encoder="resnet10_x0.25", steps=1, batch=16, device="cpu", settings=settings)
    return plan.resolve(request, source, (train, test), "cpu", ranks, lambda line: None)


def _measure(rank: int, folder: str) -> None:
    """The second rank's clock says that its time is over when it has taken four steps."""
    ranks, steps = Ranks(rank, 2, rank), []

    class Counted(Trainer):
        def train_step(self, batch: Batch) -> dict[str, float]:
            steps.append(len(batch))
            return super().train_step(batch)

    clock = SimpleNamespace(monotonic=lambda: time.monotonic() * (1, 100_000)[rank])
    with mock.patch.object(plan, "time", clock), mock.patch.object(plan, "Trainer", Counted):
        cost = plan.measure(*_resolved(ranks), ranks)
    (Path(folder) / str(rank)).write_text(f"{steps} {cost}")


def test_ranks_with_unlike_clocks_measure_as_many_steps(tmp_path: Path) -> None:
    runs.on_ranks(_measure, str(tmp_path))
    one, two = ((tmp_path / str(rank)).read_text() for rank in (0, 1))
    assert one == two
    assert one.startswith("[8, 8, 8, 8] ")


def test_a_measure_has_the_peak_of_its_own_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU, which is played here; an earlier task took 7 bytes."""
    peak = [7]

    class OnGpu(Trainer):
        def __init__(self, *parts: object) -> None:
            super().__init__(*parts)  # type: ignore[arg-type]
            self.device = torch.device("cuda", 0)

        def train_step(self, batch: Batch) -> dict[str, float]:
            peak.append(max(peak[-1], 3))
            return {}

    monkeypatch.setattr(plan, "Trainer", OnGpu)
    monkeypatch.setattr(plan, "batches", lambda *parts: batches(*parts[:5], torch.device("cpu")))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device=None: peak.append(0))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device=None: peak[-1])
    assert plan.measure(*_resolved(Ranks()), Ranks()).memory == 3


def test_what_the_loop_would_do_to_a_task_is_said_or_refused() -> None:
    source, train, test = small_digits()
    said: list[str] = []

    def resolve(pretext: str, *settings: str) -> None:
        request = plan.Request("", pretext, "resnet10_x0.25", steps=1, batch=16, device="cpu", settings=[*settings])
        plan.resolve(request, source, (train, test), "cpu", Ranks(), said.append)

    resolve("simclr", "train.accumulate=2")
    assert "train.accumulate 2: the loss of simclr is that of 8 samples at a time, not of 16 together" in said
    said.clear()
    resolve("rotation", "train.accumulate=2")
    assert not [line for line in said if "accumulate" in line]
    for name, rate in (("lars", "0.019"), ("sgd", "0.0019")):
        with pytest.raises(
            UserError, match=rf"optim.name={name} needs a learning rate of its own, .* --lr, {rate} say"
        ):
            resolve("rotation", f"optim.name={name}")
    resolve("rotation", "optim.name=lars", "optim.lr=0.1")


def test_a_queue_that_holds_most_samples_is_told_of() -> None:
    source, train, test = small_digits()
    said: list[str] = []
    for queue in ("1000", "256"):
        settings = [f"pretext.queue={queue}"]
        request = plan.Request("", "moco", "resnet10_x0.25", steps=1, batch=16, device="cpu", settings=settings)
        plan.resolve(request, source, (train, test), "cpu", Ranks(), said.append)
    (line,) = (line for line in said if "queue" in line and "preset" not in line)
    assert line.startswith("pretext.queue 1000 is more than half of the 1300 samples that teach")
    assert line.endswith("--set pretext.queue=130 holds others alone")
