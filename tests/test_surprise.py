"""surprise: each event's -log p as the encoder says it, one at a time; events that do not fit come first."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import selftaught
from selftaught.batch import Tokens
from selftaught.workflow.surprise import windows, windows_at_once
from tests import runs


def written(path: Path, odd: bool) -> Path:
    """Walks over 40 items; with `odd`, user u7's third event is of another place and u9's second of an item nobody knows."""
    draw, rows = np.random.default_rng(0), []
    for user in range(200):
        item = int(draw.integers(40))
        for at in range(int(draw.integers(4, 14))):
            there = (item + 20) % 40 if odd and (user, at) == (7, 2) else item
            name = "new" if odd and (user, at) == (9, 1) else f"i{there}"
            rows.append(f"u{user},{name},{20240000 + len(rows)}")
            item = (item + int(draw.integers(1, 3))) % 40
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("user,item,time\n" + "\n".join(rows) + "\n", "utf-8")
    return path


@pytest.fixture(scope="module", params=["next_item", "masked_item"])
def trained(request: pytest.FixtureRequest) -> tuple[Path, Path]:
    folder = runs.folder(f"surprise-{request.param}")
    log = written(folder / "log.csv", odd=False)
    steps = 150 if request.param == "next_item" else 250
    selftaught.pretrain(log, pretext=request.param, steps=steps, lr=5e-3, out=folder / "run", quiet=True)
    return folder / "run", written(folder / "odd.csv", odd=True)


def test_each_event_is_measured_as_the_encoder_says(trained: tuple[Path, Path], tmp_path: Path) -> None:
    run, odd = trained
    rows = selftaught.surprise(run, odd, out=tmp_path / "all.csv", quiet=True)
    found = {(r["user"], r["event"]): r for r in rows}
    loaded = selftaught.load(run)
    encoder: Any = loaded.encoder
    lines = [line.split(",") for line in odd.read_text().splitlines()[1:]]
    for user in ("u0", "u7", "u9"):
        items, times = ([line[column] for line in lines if line[0] == user] for column in (1, 2))
        assert all(r["time"] == times[event - 1] for (name, event), r in found.items() if name == user)
        for at in range(len(items)):
            ids = torch.from_numpy(loaded.modality.ids(items))[None]  # type: ignore[attr-defined]
            target = int(ids[0, at])
            if target == 0 or ("causal_items" in encoder.abilities and at == 0):
                assert (user, at + 1) not in found
                continue
            with torch.inference_mode():
                if "causal_items" in encoder.abilities:  # at the places that the whole history has
                    before = ids[:, :-1][ids[:, :-1] > 0][None]
                    nth = int((ids[0, :at] > 0).sum()) - 1
                    state = encoder(Tokens(before, before > 0, before > 0)).tokens[0, nth][None]
                else:
                    ids[0, at] = loaded.modality.mask  # type: ignore[attr-defined]
                    whole = ids[ids > 0][None]
                    where = whole[0] == loaded.modality.mask  # type: ignore[attr-defined]
                    state = encoder(Tokens(whole, whole > 0, whole > 0)).tokens[0][where]
                expected = -encoder.scores(state).log_softmax(1)[0, target]
            assert found[user, at + 1]["surprise"] == pytest.approx(float(expected), rel=1e-3, abs=1e-3)
            assert found[user, at + 1]["item"] == items[at]
    assert len((tmp_path / "all.csv").read_text().splitlines()) == len(rows) + 1


def test_what_does_not_fit_comes_first(trained: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    run, odd = trained
    first = selftaught.surprise(run, odd, k=10)
    assert ("u7", 3) in [(r["user"], r["event"]) for r in first]
    assert [r["surprise"] for r in first] == sorted((r["surprise"] for r in first), reverse=True)
    assert "1 events with items that the encoder does not know are not measured" in capsys.readouterr().err
    users = selftaught.surprise(run, odd, by_user=True, k=400, quiet=True)
    assert len(users) == 200
    mine = selftaught.surprise(run, odd, user=["u7"], k=100, quiet=True)
    mean = float(np.mean([r["surprise"] for r in mine]))
    assert next(r["surprise"] for r in users if r["user"] == "u7") == pytest.approx(mean, rel=1e-4)


def test_the_file_has_all_rows_and_k_are_shown(trained: tuple[Path, Path], tmp_path: Path) -> None:
    run, odd = trained
    said = runs.succeed("surprise", run, odd, "--k", 3, "--out", tmp_path / "all.csv", "--quiet")
    assert len(said.out.splitlines()) == 1 + 3
    assert len((tmp_path / "all.csv").read_text().splitlines()) > 1000


@pytest.mark.parametrize("size", [2, 3, 5, 12])
@pytest.mark.parametrize("masked", [False, True])
def test_each_event_is_in_one_window_with_enough_around_it(size: int, masked: bool) -> None:
    bounds = np.array([[0, 1], [1, 3], [3, 20], [20, 120]])
    seen: list[int] = []
    for w in windows(bounds, size, masked):
        begin, end = bounds[w.user]
        assert begin <= w.begin < w.end <= end
        assert w.end - w.begin <= size + (not masked)
        measured = [w.first] if masked else list(range(w.first, w.end))
        assert all(at - w.begin >= min(at - begin, size // 2) for at in measured)
        seen += measured
    skipped = [0] if masked else [0, 1, 3, 20]
    assert sorted(seen) == sorted(set(range(120)) - set(skipped))


def test_what_goes_through_the_network_together_fits_into_memory() -> None:
    """Scores of a large catalogue, hidden states of a small one, which nobody counted."""
    assert windows_at_once(1_000_000, 50, 64, True) == (1 << 24) // 1_000_000
    assert windows_at_once(1_000_000, 50, 64, False) == 1
    for masked in (False, True):
        assert windows_at_once(100, 50, 64, masked) * 50 * 4 * 64 <= 1 << 24


def test_bad_requests(trained: tuple[Path, Path], tmp_path: Path) -> None:
    run, odd = trained
    for words, message in (
        (("surprise", run, odd, "--user", "u7x"), "unknown user 'u7x'; did you mean 'u7'"),
        (("surprise", run, odd, "--k", "0"), "--k 0"),
        (("surprise", run, odd, "--out", "a.txt"), "must end in .csv or .parquet"),
        (("surprise", run, runs.pictures()), "this is image data"),
    ):
        assert message in runs.one_line(runs.run(*map(str, words), "--quiet"), 2)
    sets = tmp_path / "sets"
    selftaught.pretrain(odd, pretext="lightgcn", steps=2, out=sets, quiet=True)
    assert "reads histories as sets" in runs.one_line(runs.run("surprise", sets, odd, "--quiet"), 2)
