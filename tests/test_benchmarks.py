"""The benchmark that needs a card is run here without one, tiny: its figures mean nothing, its paths are the same."""

import math
import subprocess
import sys
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


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")
def test_gpu_benchmark_says_that_there_is_no_card() -> None:
    done = subprocess.run([sys.executable, BENCHMARKS / "gpu.py", "--json"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "no CUDA card here\n")
