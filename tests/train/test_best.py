"""Which checkpoint is protected: the best of those that are saved."""

from pathlib import Path

from selftaught.train.folder import RunFolder
from selftaught.train.loop import _best


def test_the_best_saved_step_is_protected_not_a_better_one_that_was_not_saved(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    assert _best(run, {100}) is None
    for step, loss in ((0, 4.0), (100, 3.0), (200, 2.5), (225, 2.0), (300, 2.5), (325, None)):
        run.append("health.jsonl", {"step": step, "held_out_loss": loss})
    assert _best(run, {100, 200, 300, 325}) == 200
    assert _best(run, {100, 300}) == 300
    assert _best(run, {325}) is None
