"""The benchmark that needs a card is run here without one, tiny: its figures mean nothing, its paths are the same."""

import gzip
import io
import math
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def test_gpu_benchmark_yields_every_row_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gpu

    rows = {row["name"]: row for row in gpu.rows(gpu.tiny_plan(), resume=False)}
    for step in ("SimCLR tiny ResNet 32 px", "MAE tiny ViT 32 px"):
        assert rows[f"{step}, batch 8"]["ours"] > 0
        assert rows[f"{step}: share of measured peak"]["ours"] > 0
        assert 0 < rows[f"{step}: augmentation"]["ours"] < 100
    assert 0 < rows["SimCLR tiny ResNet 32 px: loss"]["ours"] < 100
    assert "MAE tiny ViT 32 px: loss" not in rows
    assert math.isfinite(rows["NT-Xent N=64: time"]["ours"])
    for row in rows.values():
        assert set(row) == {"name", "unit", "ours", "peer", "ratio"}
        assert (row["ratio"] is None) == (row["peer"] is None or row["ours"] is None)


def test_translation_benchmark_reads_its_tar_and_joins_seeds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import translate

    tar = tmp_path / "pairs.tar"
    with tarfile.open(tar, "w") as archive:
        for part in translate.PARTS:
            for end in ("en", "de"):
                data = gzip.compress(f"{part} {end}\n".encode())
                member = tarfile.TarInfo(f"multi30k/{part}.{end}.gz")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    translate.unpack(tar, tmp_path / "out")
    assert (tmp_path / "out" / "val.de").read_text() == "val de\n"
    assert [p.name for p in sorted((tmp_path / "out" / "mono").iterdir())] == ["train.de.txt", "train.en.txt"]
    rows = [
        {"pairs": 9, "metric": m, "features": f, "value": v + seed, "low": v + seed - 1, "high": v + seed + 2}
        | {"seed": seed, "steps": 5}
        for seed in (0, 1)
        for m, v in (("bleu", 10.0), ("chrf", 30.0))
        for f in ("pretrained", "from_scratch", "difference")
    ]
    alone = translate.summary(rows[:6])[0]
    assert (alone["value"], alone["low"], alone["high"]) == (10.0, 9.0, 12.0)
    both = translate.summary(rows)[0]
    assert both["value"] == 10.5
    assert both["low"] < 9.5 < 12.5 < both["high"]
    assert "| 9 | 5 | from scratch | 10.5 [" in translate.markdown(translate.summary(rows))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")
def test_gpu_benchmark_says_that_there_is_no_card() -> None:
    done = subprocess.run([sys.executable, BENCHMARKS / "gpu.py", "--json"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "no CUDA card here\n")
