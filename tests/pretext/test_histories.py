"""What every task on histories must hold: nothing that is tested later teaches, and every kind of history is served."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from selftaught.batch import Batch, Tokens
from selftaught.data.events import EventSource
from selftaught.encoders import EncoderConfig, build
from selftaught.encoders.graphs import SIZES as GRAPHS
from selftaught.encoders.sequences import SIZES as SEQUENCES
from selftaught.pretext import available, find
from selftaught.workflow.kinds.events import Events
from tests.contracts.conftest import attributed, make, walks

TASKS = sorted(name for name in available() if find(name).kinds == {"event"})


def lost(name: str, source: EventSource, protocol: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses of all that teaches and all that validates, before any step."""
    kind, task = Events(), find(name)
    everyone = np.arange(len(source))
    modality = kind.fit(source, 12, everyone, {"split": protocol}, "")
    training = kind.training(source, modality, everyone, everyone, True)
    modality.attributes = attributed
    architecture = kind.choose(12, "cpu", task.needs)
    options = {**SEQUENCES, **GRAPHS}[architecture]
    if "features" in options:
        options = {**options, "features": 40}
    config = EncoderConfig(architecture, 12, 0, options=options, vocabulary=modality.vocabulary)
    torch.manual_seed(0)
    made: Any = task(build(config, 0), modality, task.Config()).eval()
    batches = [
        Batch(training.source.fetch(index), torch.from_numpy(index), 1, 1) for index in (training.train, training.held)
    ]
    with torch.no_grad():
        found = [made(batch).loss for batch in batches]
    return found[0], found[1]


@pytest.mark.parametrize("protocol", ["leave_one_out", "global_time"])
@pytest.mark.parametrize("name", TASKS)
def test_what_is_tested_changes_nothing_in_training(name: str, protocol: str) -> None:
    """Negatives, graphs and validation included. What validates does change the validation, so the test can fail."""
    source: Any = walks().source
    time = np.concatenate([np.arange(n) + 0.5 for n in source.lengths])
    source = EventSource(source.names, source.items, source.bounds, source.item, hashes=source.hashes, time=time)
    changed, before = source.item.copy(), source.item.copy()
    if protocol == "leave_one_out":
        tested, validates = source.bounds[:, 1] - 1, source.bounds[:, 1] - 2
    else:
        tested, validates = (np.flatnonzero(x) for x in (time >= 14, (time >= 9) & (time < 12)))
    changed[tested] = (changed[tested] + 7) % 40
    before[validates] = (before[validates] + 7) % 40

    def of(item: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        other = EventSource(source.names, source.items, source.bounds, item, hashes=source.hashes, time=time)
        return lost(name, other, protocol)

    plain, other, valid = of(source.item), of(changed), of(before)
    assert all(torch.equal(a, b) for a, b in zip(plain, other, strict=True))
    assert torch.equal(plain[0], valid[0]) or protocol == "global_time"
    assert not torch.equal(plain[1], valid[1])


@pytest.mark.parametrize("name", TASKS)
def test_any_history_is_served(name: str) -> None:
    """Of one event, of none, longer than the encoder's; padding and what lies in a padded place change nothing."""
    task = make(name).eval()
    encoder: Any = task.encoder
    ids = torch.tensor([[3, 0, 0], [0, 0, 0], [5, 6, 7]])
    valid = torch.tensor([[True, False, False], [False] * 3, [True] * 3])
    with torch.no_grad():
        none = torch.zeros(20, 0, dtype=torch.int64)  # of nobody in a whole batch
        nothing = encoder.scores(encoder.next(Tokens(none, none > 0, none > 0)))
        found = encoder.scores(encoder.next(Tokens(ids, valid, valid)))
        torch.testing.assert_close(nothing, found[1].expand(20, -1), rtol=1e-4, atol=1e-5)
        assert torch.isfinite(found[:, 1:-1]).all()
        assert (found[:, [0, -1]] == -torch.inf).all()
        alone = encoder.scores(encoder.next(Tokens(ids[:1, :1], valid[:1, :1], valid[:1, :1])))
        torch.testing.assert_close(alone, found[:1], rtol=1e-4, atol=1e-5)
        dirty = ids.masked_fill(~valid, 9)
        torch.testing.assert_close(
            encoder.scores(encoder.next(Tokens(dirty, valid, valid))), found, rtol=1e-4, atol=1e-5
        )
        batch = Batch({"items": torch.arange(1, 31)[None], "length": torch.tensor([30])}, torch.tensor([0]), 0, 0)
        short = dataclasses.replace(batch, inputs={"items": torch.arange(19, 31)[None], "length": torch.tensor([12])})
        one, other = (encoder.next(task.modality.plain(b)) for b in (batch, short))
        torch.testing.assert_close(one, other)
