"""All pretext tasks on CIFAR-10, the same minutes each, beside random initialisation and raw pixels.

    python benchmarks/cifar10.py --data CIFAR [--minutes 3] [--seeds 0 1 2] [--tasks simclr mae rotation] [--json]

CIFAR holds train/CLASS/*.jpg and test/CLASS/*.jpg. Every (task, seed) is a run folder below --out; a second call takes
up what an interrupted one left. Probes learn from 10 000 training pictures drawn by a hash of their content; figures are
on the whole test set, which chooses nothing. Fine-tuning takes 1 % of all training labels (500), 100 epochs, and stands
beside training from scratch with the same labels and budget. A row's interval covers test samples and label draws of
one run; the summary's covers seeds as well. The test set's features are embedded, and must be finite and whole.
"""

import argparse
import csv
import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np

import selftaught
from selftaught import rng
from selftaught.data import open_data

PROBE_SAMPLES = 10_000
LABELS = (0.01, 0.1, 1.0)
FEW = 0.01
TUNED = "finetune_full"


def table_of(folder: Path, out: Path, n: int) -> Path:
    """A CSV of n labelled pictures of a folder, so that no probe costs more than its figure needs."""
    file = out / f"probe-{n}.csv"
    if not file.exists():
        source = open_data(folder, short_side=111)
        assert source.labels is not None
        order = np.sort(rng.permutation(len(source), 7)[:n])
        with file.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream)
            writer.writerow(["path", "label"])
            writer.writerows(
                (str((folder / source.names[i]).resolve()), source.classes[source.labels[i]]) for i in order
            )
    return file


def one_run(task: str, seed: int, arguments: argparse.Namespace, probe: Path) -> list[dict[str, Any]]:
    """Rows of one pretraining run, from its folder where it is done already."""
    run = arguments.out / f"{task}-{seed}"
    if not (run / "evaluation.json").is_file():
        selftaught.pretrain(arguments.data / "train", pretext=task, minutes=arguments.minutes, seed=seed, out=run)
        selftaught.evaluate(run, arguments.data / "test", train=probe, labels=LABELS, seed=seed, quiet=True)
    tuned = run / "finetune-1-percent"
    if not (tuned / "finetune.json").is_file():
        train, test = arguments.data / "train", arguments.data / "test"
        options: dict[str, Any] = {"labels": FEW, "epochs": 100, "seed": seed, "quiet": True}
        selftaught.finetune(run, train, test=test, out=tuned, **options)
    features = run / "test.npy"
    if not features.is_file():
        selftaught.embed(run, arguments.data / "test", out=features, quiet=True)
    assert np.isfinite(np.load(features)).all()
    facts = json.loads((run / "summary.json").read_text())
    recipe = json.loads((run / "recipe.json").read_text())
    rows = json.loads((run / "evaluation.json").read_text())["rows"]
    more = {"task": task, "seed": seed, "encoder": recipe["encoder"]["name"], "steps": recipe["train"]["steps"]}
    rows += json.loads((tuned / "finetune.json").read_text())["rows"]
    return [{**row, **more, "samples_per_second": facts["samples_per_second"]} for row in rows]


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean over seeds of each figure; the interval joins the mean interval of a run with the spread between seeds."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["task"], row["measure"], row["features"], row["labels"]), []).append(row)
    out = []
    for (task, measure, features, labels), found in groups.items():
        value = statistics.mean(r["value"] for r in found)
        within = statistics.mean(r["high"] - r["low"] for r in found) / 2
        between = statistics.stdev(r["value"] for r in found) if len(found) > 1 else 0.0
        half = (within**2 + (2.0 * between) ** 2) ** 0.5
        out.append(
            {"task": task, "measure": measure, "features": features, "labels": labels, "value": round(value, 4)}
            | {"low": round(value - half, 4), "high": round(value + half, 4), "seeds": [r["seed"] for r in found]}
            | {"n": found[0]["n"], "encoder": found[0]["encoder"], "steps": [r["steps"] for r in found]}
        )
    return out


def markdown(rows: list[dict[str, Any]]) -> str:
    """One line a task and features, one column a measure and number of labels."""
    columns = sorted({(r["measure"], r["labels"]) for r in rows}, key=lambda c: (c[0], c[1]))
    lines = [
        "| task | encoder | features | " + " | ".join(f"{m.replace('_', ' ')}, {x:.0%}" for m, x in columns) + " |"
    ]
    lines.append("|---" * (len(columns) + 3) + "|")
    for task in dict.fromkeys(r["task"] for r in rows):
        mine = [r for r in rows if r["task"] == task]
        found = {(r["measure"], r["labels"], r["features"]): r for r in mine}
        for features in ("pretrained", "random_init", "raw"):
            cells = []
            for measure, labels in columns:
                start = "from_scratch" if measure == TUNED and features == "random_init" else features
                r = found.get((measure, labels, start))
                cells.append(f"{r['value']:.3f} [{r['low']:.3f}, {r['high']:.3f}]" if r else "–")
            lines.append(f"| {task} | {mine[0]['encoder']} | {features} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/cifar10"))
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--tasks", nargs="+", default=["simclr", "mae", "rotation"])
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    probe = table_of(arguments.data / "train", arguments.out, PROBE_SAMPLES)
    rows = [
        row for seed in arguments.seeds for task in arguments.tasks for row in one_run(task, seed, arguments, probe)
    ]
    found = summary(rows)
    print(json.dumps({"rows": found}) if arguments.json else markdown(found))


if __name__ == "__main__":
    main()
