"""A run folder with figures that look real, to test the report and to look at it: `python fake_run.py OUT [FOLDER]`.

FOLDER holds one folder of pictures per class; without it the thumbnails are synthetic.
"""

import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from selftaught.reporting import make_atlas, write_report

CIFAR = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
COUNTS = (50, 150, 500, 1500, 5000, 50000)
ACCURACY = {
    "pretrained": (0.402, 0.487, 0.551, 0.594, 0.628, 0.671),
    "random_init": (0.212, 0.262, 0.318, 0.362, 0.397, 0.431),
    "raw": (0.187, 0.226, 0.268, 0.302, 0.341, 0.392),
}
KNN = {"pretrained": 0.612, "random_init": 0.338, "raw": 0.349}


def evaluation() -> dict:
    rows = []
    for features, values in ACCURACY.items():
        for count, value in zip(COUNTS, values):
            half = 0.009 + 0.09 / count**0.5
            rows.append(_row("linear_probe", features, count, value, half))
    rows += [_row("knn", features, 50000, value, 0.0095) for features, value in KNN.items()]
    return {
        "protocol": {
            "head": "multinomial logistic regression, L-BFGS",
            "seeds": 5,
            "intervals": "bootstrap over samples",
        },
        "data": "data/cifar10/test",
        "data_hash": "9b1c",
        "recipe_hash": "77f0",
        "verdict": [
            "Pretraining helped: 67.1 % of held-out pictures are classified rightly, 24 points more than random weights.",
            "The gain holds at every number of labels from 50 to 50,000, and no interval touches a baseline’s.",
            "With 500 labels it already passes what random weights reach with all of them.",
        ],
        "rows": rows,
    }


def _row(measure: str, features: str, count: int, value: float, half: float) -> dict:
    row = {"measure": measure, "features": features, "labels": count / 50000, "labels_n": count, "metric": "accuracy"}
    return row | {"value": value, "low": value - half, "high": value + half, "seeds": [0, 1, 2, 3, 4], "n": 10000}


def logs(steps: int, seed: int = 0) -> tuple[list[dict], list[dict], list[dict]]:
    """(log, health, alarms) of a run that stumbles at 40 % and recovers."""
    random = np.random.default_rng(seed)
    t = np.linspace(0, 1, steps)
    loss = 3.1 + 2.6 * np.exp(-6 * t) + 0.09 * random.standard_normal(steps)
    loss[int(0.4 * steps)] += 1.9
    lr = 0.3 * np.minimum(t / 0.05, 0.5 * (1 + np.cos(np.pi * t)))
    log = [{"step": i, "loss": float(loss[i]), "lr": float(lr[i])} for i in range(0, steps, 10)]
    health = []
    for step in np.linspace(0, steps - 1, 60).astype(int):
        u = step / steps
        rank = 9 + 88 * (1 - np.exp(-5 * u)) - 50 * np.exp(-(((u - 0.41) / 0.02) ** 2)) + random.normal(0, 1.5)
        health.append(
            {
                "step": int(step),
                "rank": float(rank),
                "std": float(0.05 + 0.024 * (1 - np.exp(-6 * u)) + random.normal(0, 0.0006)),
                "alignment": float(0.35 + 0.5 * np.exp(-4 * u) + random.normal(0, 0.01)),
                "uniformity": float(-1.1 - 2.3 * (1 - np.exp(-7 * u)) + random.normal(0, 0.03)),
                "knn": float(0.29 + 0.33 * (1 - np.exp(-3 * u)) + random.normal(0, 0.006)) if step % 3 else None,
            }
        )
    alarm = {
        "step": int(0.4 * steps),
        "name": "rank_drop",
        "seen": "The effective rank fell from 82 to 35 within 200 steps.",
        "cause": "Features began to collapse on few directions.",
        "remedy": "It recovered by itself. If it comes back, lower --lr by half or raise the temperature.",
    }
    return log, health, [alarm]


def synthetic(n: int, side: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(thumbnails uint8 [n, 3, side, side], labels [n]): a coloured disc of a class's hue on a grey ground."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, n)
    y, x = np.mgrid[:side, :side] / side
    radius = random.uniform(0.2, 0.45, n)
    disc = ((x - 0.5) ** 2 + (y - 0.5) ** 2)[None] < radius[:, None, None] ** 2
    hues = np.random.default_rng(7).integers(30, 225, (classes, 3))
    ground = random.integers(80, 180, n)[:, None, None]
    pictures = np.where(disc[:, None], hues[labels][:, :, None, None], ground[:, None])
    return pictures.astype(np.uint8), labels.astype(np.int64)


def embedding(labels: np.ndarray, seed: int = 0) -> np.ndarray:
    """Features [n, 48]: a cluster per class, with stragglers as a real encoder has them."""
    random = np.random.default_rng(seed)
    centres = random.normal(0, 1, (int(labels.max()) + 1, 48))
    pull = random.beta(4, 2, (len(labels), 1)) * 1.3
    return centres[labels] * pull * 0.75 + random.normal(0, 0.9, (len(labels), 48))


def write(run: Path, steps: int = 9750) -> Path:
    """All files of a run but the atlas."""
    run.mkdir(parents=True, exist_ok=True)
    log, health, alarms = logs(steps)
    for name, rows in (("log", log), ("health", health), ("alarms", alarms)):
        (run / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    recipe = {
        "selftaught": "0.1.0",
        "pretext": "simclr",
        "pretext_config": {"temperature": 0.2, "projection": {"hidden": 1024, "out": 128}},
        "encoder": {"name": "resnet10_x0.5", "size": 32, "channels": 3},
        "data": "data/cifar10/train",
        "train": {
            "steps": steps,
            "batch": 512,
            "seed": 0,
            "optim": {"name": "lars", "lr": 0.3, "weight_decay": 1e-4, "warmup": 0.05, "schedule": "cosine"},
        },
    }
    data = {
        "count": 49990,
        "train": 44990,
        "classes": CIFAR,
        "smallest": [32, 32],
        "largest": [32, 32],
        "channels": 3,
        "fingerprint": "3f5a9c1e",
        "held_out": 5000,
        "skipped": [{"name": f"cat/{i:04d}.jpg", "reason": "truncated JPEG: 612 bytes missing"} for i in range(10)],
    }
    summary = {"seconds": 8040.0, "samples_per_second": 621.0, "parameters": 1_230_000, "device": "2 CPU cores"}
    for name, value in (("recipe", recipe), ("data", data), ("summary", summary), ("evaluation", evaluation())):
        (run / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")
    return run


def real(folder: Path, n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """(thumbnails, labels, names) of `n` pictures drawn from one folder per class."""
    random = np.random.default_rng(seed)
    files = [(p, i) for i, name in enumerate(CIFAR) for p in sorted((folder / name).iterdir())]
    chosen = [files[i] for i in random.permutation(len(files))[:n]]
    thumbs = np.stack([np.asarray(Image.open(p).convert("RGB")).transpose(2, 0, 1) for p, _ in chosen])
    return thumbs, np.array([label for _, label in chosen]), [f"{p.parent.name}/{p.name}" for p, _ in chosen]


if __name__ == "__main__":
    out = write(Path(sys.argv[1]))
    if len(sys.argv) > 2:
        thumbs, labels, names = real(Path(sys.argv[2]), 1500)
    else:
        thumbs, labels = synthetic(1500, 32, 10)
        names = [f"{CIFAR[label]}/{i:04d}.jpg" for i, label in enumerate(labels)]
    make_atlas(embedding(labels), thumbs, names, labels, CIFAR, 0).save(out)
    print(write_report(out), (out / "report.html").stat().st_size)
