"""train.compile: the steps are compiled, once; what is measured between them is not."""

from typing import Any

import pytest
import torch
from tests.contracts.conftest import batch_of, make
from torch import nn

from selftaught.train.config import TrainConfig
from selftaught.train.distributed import Ranks
from selftaught.train.loop import Trainer


def test_measures_between_steps_neither_compile_nor_change_what_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs: list[Any] = []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    plain = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda module: plain(module, backend=backend))
    trainer = Trainer(make("simclr"), TrainConfig(steps=10, batch=24, compile=True), Ranks())
    with trainer.measuring():  # of another size, as a look at held-out samples is
        trainer.task(batch_of("simclr", 10))
    assert graphs == []
    trainer.train_step(batch_of("simclr"))
    steps = len(graphs)
    assert steps > 0
    with trainer.measuring():
        trainer.task(batch_of("simclr", 10))
    trainer.train_step(batch_of("simclr"))
    assert len(graphs) == steps
