"""preview: what pretrain would see, and nothing left behind."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import selftaught
from selftaught.batch import Batch
from selftaught.errors import UserError
from selftaught.pretext.mlm import MLM
from tests import runs
from tests.modality.corpus import CHINESE, english

SETTINGS = ("text.vocabulary=600",)


@pytest.fixture(scope="module")
def data() -> Path:
    root = runs.folder("previewed")
    root.mkdir()
    for i, text in enumerate([*(t for t, _ in english()[:120]), *CHINESE * 10]):
        (root / f"{i:03d}.txt").write_text(f"{text} {i}", "utf-8")
    return root


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in runs.environment().items():
        monkeypatch.setenv(name, value)


def recorded(monkeypatch: pytest.MonkeyPatch, act: Callable[[], Any]) -> tuple[Batch, torch.Tensor]:
    """The batch of step 0 that a task draws for in the course of `act`, and what it leaves of it."""
    met, drawn = [], MLM.drawn

    def wrapped(self: MLM, batch: Batch) -> Any:
        found = drawn(self, batch)
        met.append((batch, found[2].shown.ids))
        return found

    with monkeypatch.context() as patch:
        patch.setattr(MLM, "drawn", wrapped)
        act()
    return next(found for found in met if found[0].step == 0)


def test_it_shows_the_first_step_of_the_run(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings: dict[str, Any] = {"pretext": "mlm", "batch": 16, "size": 32, "seed": 3, "set": SETTINGS, "quiet": True}
    seen, ids = recorded(monkeypatch, lambda: selftaught.preview(data, batches=1, **settings))
    assert list(tmp_path.iterdir()) == [], "it writes no run folder"
    trained, same = recorded(monkeypatch, lambda: selftaught.pretrain(data, steps=1, **settings))
    assert seen.seed == trained.seed == 3
    assert torch.equal(seen.index, trained.index)
    assert torch.equal(ids, same)


def test_samples_and_shares(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = selftaught.preview(data, pretext="mlm", set=[*SETTINGS, "pretext.order=sop"], count=4)
    assert [len(found["samples"]), found["batch"], found["picture"]] == [4, 32, None]
    assert {s["answer"] for s in found["samples"]} <= {"A comes before B", "A and B are swapped"}
    assert all(set(s["texts"]) == {"reads A", "reads B"} for s in found["samples"])
    shares = {row["name"]: row for row in found["shares"]}
    assert shares["tokens hidden"]["asked"] == 0.15
    for row in shares.values():
        if row["asked"] is not None:
            assert abs(row["share"] - row["asked"]) < 4 * (0.25 / row["of"]) ** 0.5 + 0.01, row
    said = capsys.readouterr().out
    assert "[MASK→" in said
    assert "\x1b" not in said
    assert "A and B are swapped" in said
    assert said.count("%") >= 12


def test_pictures_become_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for task, columns in (("simclr", 2), ("rotation", 4), ("mae", 2)):
        out = tmp_path / "new" / f"{task}.png"
        found = selftaught.preview(runs.pictures(), pretext=task, count=5, batch=16, batches=2, out=out)
        assert found["picture"] == str(out)
        with Image.open(out) as image:
            assert image.size == (98 * columns, 98 * 5)
            assert len(image.getcolors(1 << 20)) > 50
        assert f"{out}: " in capsys.readouterr().out
    assert found["shares"] == [{"name": "patches hidden", "share": 0.75, "asked": 0.75, "of": 16 * 2 * 64}]


TASK = """
from selftaught.batch import Step
from selftaught.pretext import Pretext
from dataclasses import dataclass

class Plain(Pretext):
    @dataclass(frozen=True)
    class Config:
        pass
    family = paper = "none"
    kinds = frozenset({"image", "text"})
    def forward(self, batch):
        return Step(self.encoder(self.modality.plain(batch)).pooled.sum(), {})
"""


def test_bad_requests(data: Path, tmp_path: Path) -> None:
    (tmp_path / "plain.py").write_text(TASK)
    (tmp_path / "there.png").touch()
    cases: list[tuple[Path, dict[str, Any], str]] = [
        (data, {"pretext": "mlm", "out": Path("x.png")}, "--out x.png is for pictures; the preview of text is printed"),
        (data, {"out": Path("x.txt")}, "'x.txt' must end in .png"),
        (data, {"count": 0}, "--count 0 is not above 0"),
        (data, {"batches": -1}, "--batches -1 is not above 0"),
        (data, {"pretext": "mae"}, "pretext 'mae' works on image, not on text"),
        (data, {"pretext": "plain.py:Plain"}, "pretext 'plain.py:Plain' has no preview; give its class a method show"),
        (runs.pictures(), {"out": Path("there.png")}, "'there.png' exists; name another file with --out, or remove it"),
    ]
    for place, words, said in cases:
        with pytest.raises(UserError, match=f"^{re.escape(said)}"):
            selftaught.preview(place, quiet=True, **words)
