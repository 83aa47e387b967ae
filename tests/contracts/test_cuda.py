"""What every pretext task must hold on a CUDA device. Run where there is one: python -m pytest tests/contracts/test_cuda.py"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from selftaught import rng
from selftaught.batch import Batch
from selftaught.evaluation.features import encode
from selftaught.pretext import available
from selftaught.train import checkpoint
from selftaught.train.config import TrainConfig
from selftaught.train.distributed import Ranks
from selftaught.train.folder import RunFolder
from selftaught.train.loop import Trainer, fit
from selftaught.train.optim import OptimConfig
from selftaught.train.order import Order
from tests.contracts.conftest import data_of, make
from tests.contracts.test_pretext import flat

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
TASKS = sorted(available())
CARD = torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def _plain_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without TF32, whose products have ten bits."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.mark.parametrize("name", TASKS)
def test_loss_and_gradient_are_those_of_the_cpu(name: str, batch: Batch) -> None:
    if "pixels" in batch.inputs:  # digits' grounds are plain, where a rounding decides on which side of zero a ReLU is
        noise = rng.uniform(1, torch.arange(batch.inputs["pixels"].numel()), 1).view_as(batch.inputs["pixels"])
        batch = replace(batch, inputs={**batch.inputs, "pixels": (noise * 256).to(torch.uint8)})
    here, there = make(name).eval(), make(name).eval().to(CARD)  # in training dropout draws otherwise on each device
    loss, other = here(batch).loss, there(batch.to(CARD)).loss
    assert other.item() == pytest.approx(loss.item(), rel=1e-3)
    loss.backward()
    other.backward()
    for (what, p), q in zip(here.named_parameters(), there.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None), what
        if p.grad is not None and q.grad is not None:
            assert (p.grad - q.grad.cpu()).norm() <= 0.02 * p.grad.norm() + 1e-4, what


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_it_trains_and_resumes(name: str, precision: str, tmp_path: Path) -> None:
    data = data_of(name)
    config = TrainConfig(
        6, 48, precision=precision, device="cuda", workers=2, save_every=3, optim=OptimConfig(warmup=0.0)
    )

    def fetch(positions: np.ndarray, step: int) -> Batch:
        index = data.train[positions]
        labels = None if data.source.labels is None else torch.from_numpy(data.source.labels[index])
        return Batch(data.source.fetch(index), torch.from_numpy(index), 0, step, labels)

    def train(folder: Path, resumed: bool = False) -> tuple[Trainer, list[float]]:
        trainer, run = Trainer(make(name), config, Ranks()), RunFolder(folder)
        if resumed:
            saved = checkpoint.load(run.checkpoints / "step-00000003")
            trainer.restore(saved, run)
        fit(trainer, fetch, Order(len(data.train), config.batch, 0), run, quiet=True)
        return trainer, [row["loss"] for row in run.rows("log.jsonl")]

    trainer, losses = train(tmp_path)
    assert len(losses) == 6
    assert np.isfinite(losses).all()
    chance = trainer.task.chance(48)
    assert chance is None or 0.3 * chance < losses[0] < 3 * chance
    again, same = train(tmp_path, resumed=True)
    assert same == pytest.approx(losses, rel=1e-2)  # some kernels add in no fixed order
    assert torch.isfinite(flat(again.task)).all()


@pytest.mark.parametrize("name", TASKS)
def test_features_are_those_of_the_cpu(name: str) -> None:
    data, task = data_of(name), make(name).eval()
    here = encode(task.encoder, task.modality, data.source, data.test[:40], torch.device("cpu"))
    there = encode(task.encoder.to(CARD), task.modality, data.source, data.test[:40], CARD)
    assert torch.nn.functional.cosine_similarity(here, there.cpu()).min() > 0.999
