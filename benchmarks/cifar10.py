"""All pretext tasks of pictures on CIFAR-10, the same minutes each, beside random initialisation, raw pixels and all labels.

    python benchmarks/cifar10.py --data CIFAR [--minutes 3] [--seeds 0 1 2] [--tasks simclr mae ...] [--finetune] [--json]

CIFAR holds train/CLASS/*.jpg and test/CLASS/*.jpg. Every (task, seed) is a run folder below --out; a second call takes
up what an interrupted one left. Encoders are those that pretrain chooses: resnet10_x0.5, or vit_micro where a task needs a
ViT. Probes learn from 10 000 training pictures drawn by a hash of their content; figures are on the whole test set, which
chooses nothing. Rank and spread are of the last look at held-out training pictures, memory is the peak of the process that
pretrains. The bound is the same encoder trained from scratch on all labels for as long, of the tasks in BOUNDS. --finetune
also takes 1 % of all training labels (500), 100 epochs, beside training from scratch. A row's interval covers test samples
and label draws of one run; the summary's covers seeds as well.
"""

import argparse
import csv
import json
import os
import statistics
import sys
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
RUNNING = ("rank", "std", "samples_per_second", "megabytes")
BOUNDS = ("simclr", "mae")  # one task for each encoder


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


def pretrained(words: list[Any], run: Path) -> None:
    """Pretrain in a process of its own, whose peak of memory is kept beside the run."""
    command = [sys.executable, "-c", "import sys; from selftaught.cli import main; sys.exit(main())", "pretrain"]
    process = os.posix_spawn(sys.executable, [*command, *map(str, words), "--out", str(run)], os.environ)
    _, status, used = os.wait4(process, 0)
    if status:
        raise SystemExit(f"pretrain {' '.join(map(str, words))} failed")
    (run / "peak.json").write_text(json.dumps({"megabytes": round(used.ru_maxrss / 1024)}))


def one_run(task: str, seed: int, arguments: argparse.Namespace, probe: Path) -> list[dict[str, Any]]:
    """Rows of one pretraining run, from its folder where it is done already."""
    run, train, test = arguments.out / f"{task}-{seed}", arguments.data / "train", arguments.data / "test"
    if not (run / "peak.json").is_file():
        pretrained([train, "--pretext", task, "--minutes", arguments.minutes, "--seed", seed], run)
    if not (run / "evaluation.json").is_file():
        selftaught.evaluate(run, test, train=probe, labels=LABELS, seed=seed, quiet=True)
    facts, recipe, peak = (json.loads((run / f"{x}.json").read_text()) for x in ("summary", "recipe", "peak"))
    rows = json.loads((run / "evaluation.json").read_text())["rows"]
    tunings = [(FEW, 100.0)] if arguments.finetune else []
    if task in BOUNDS:  # one view a picture, so twice as many pictures as simclr in the same time
        tunings.append((1.0, 60 * arguments.minutes * facts["samples_per_second"] * 2 / facts_of(run)["train"]))
    for labels, epochs in tunings:
        tuned = run / f"finetune-{labels:g}"
        if not (tuned / "finetune.json").is_file():
            options: dict[str, Any] = {"labels": labels, "epochs": epochs, "seed": seed, "quiet": True}
            selftaught.finetune(run, train, test=test, out=tuned, **options)
        rows += json.loads((tuned / "finetune.json").read_text())["rows"]
    health = json.loads((run / "health.jsonl").read_text().splitlines()[-1])
    more = {"task": task, "seed": seed, "encoder": recipe["encoder"]["name"], "steps": recipe["train"]["steps"]}
    more |= {"rank": health["rank"], "std": health["std"], "megabytes": peak["megabytes"]}
    return [{**row, **more, "samples_per_second": facts["samples_per_second"]} for row in rows]


def facts_of(run: Path) -> dict[str, Any]:
    """What a run kept of its data."""
    found: dict[str, Any] = json.loads((run / "data.json").read_text())
    return found


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
            | {key: statistics.mean(r[key] for r in found) for key in RUNNING if key in found[0]}
        )
    return out


def markdown(rows: list[dict[str, Any]]) -> str:
    """One line a task; then, for each encoder, random initialisation, and once raw pixels and the bound."""
    columns = sorted({(r["measure"], r["labels"]) for r in rows if r["measure"] != TUNED or r["labels"] < 1})
    heads = [f"{measure.replace('_', ' ')}, {labels:.0%}" for measure, labels in columns]
    watched = ["rank", "spread", "samples/s", "MB"] if "rank" in rows[0] else []
    lines = ["| task | encoder | " + " | ".join([*heads, *watched]) + " |"]
    lines.append("|---" * (len(columns) + len(watched) + 2) + "|")
    by = {(r["task"], r["features"], r["measure"], r["labels"]): r for r in rows}

    def line(name: str, task: str, features: str, encoder: str, running: bool = False) -> str:
        cells = []
        for measure, labels in columns:
            start = "from_scratch" if measure == TUNED and features == "random_init" else features
            r = by.get((task, start, measure, labels))
            cells.append(f"{r['value']:.3f} [{r['low']:.3f}, {r['high']:.3f}]" if r else "–")
        r = next(r for r in rows if r["task"] == task)
        if watched and running:
            cells += [f"{r['rank']:.1f}", f"{r['std']:.2f}", f"{r['samples_per_second']:.0f}", f"{r['megabytes']:.0f}"]
        return (
            f"| {name} | {encoder} | " + " | ".join(cells + ["–"] * (len(columns) + len(watched) - len(cells))) + " |"
        )

    encoders = {r["task"]: r["encoder"] for r in rows}
    lines += [line(task, task, "pretrained", encoders[task], running=True) for task in encoders]
    for encoder in dict.fromkeys(encoders.values()):
        first = next(task for task in encoders if encoders[task] == encoder)
        lines.append(line("random initialisation", first, "random_init", encoder))
    lines.append(line("raw pixels or words", next(iter(encoders)), "raw", "–"))
    for task in encoders:
        if r := by.get((task, "from_scratch", TUNED, 1.0)):
            found = f"{r['value']:.3f} [{r['low']:.3f}, {r['high']:.3f}]"
            lines.append(f"\nAll labels, {encoders[task]} from scratch for as long: {found}.")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/cifar10"))
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--tasks", nargs="+", default=[t["name"] for t in selftaught.tasks() if "image" in t["data"]])
    parser.add_argument("--finetune", action="store_true", help="fine-tune on 1 % of the labels as well")
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
