"""Pretext tasks on a log of events under one protocol, beside popularity, ItemKNN, EASE, SVD, random and random initialisation.

    python benchmarks/events.py --data LOG [--tasks next_item masked_item] [--seeds 0 1 2] [--steps 600] [--set ...] [--json]
    python benchmarks/events.py --data "ml-100k.inter?items=ml-100k.item" --all [--set event.split=global_time]

Settings, of baselines and ours, are chosen on validation cases; test cases are ranked once. Every (task, seed) is a run
folder below --out; a second call takes up what an interrupted one left. A row's interval covers test cases; that of several
seeds joins it with the spread between them. Baselines do not depend on the seed, but "random" does.

RECIPES holds budgets and settings for MovieLens-100K, chosen by nDCG@10 on validation cases of seed 0; options replace them.
s3rec+next_item is two runs, the second of which goes on from the first. --all are all of them.

--validation ranks the validation cases of each run instead, and nothing else: what settings are chosen by.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch

import selftaught
from _seeds import joined
from selftaught import bundle
from selftaught.data import open_data
from selftaught.evaluation.similarity import interval
from selftaught.workflow.ranking import Log, encoder_scores, ranked

ASKED = ["pretext.share=0.3", "pretext.last=0.5"]
DROP = "encoder.options.dropout=0.5"
RECIPES: dict[str, dict[str, Any]] = {
    "next_item": {"steps": 400, "lr": 3e-3, "set": [DROP]},
    "masked_item": {"steps": 1000, "lr": 1e-3, "set": [*ASKED, "optim.min_lr_ratio=1", "train.ema=0.995"]},
    "cl4srec": {"steps": 250, "lr": 3e-3, "set": [DROP]},
    "s3rec": {"steps": 150, "lr": 1e-3, "set": [DROP]},
    "s3rec+next_item": {"steps": 300, "lr": 3e-3, "set": []},
    "two_tower": {"steps": 300, "lr": 3e-3, "set": []},
    "lightgcn": {"steps": 2000, "size": 737, "set": []},
    "sgl": {"steps": 1000, "size": 737, "set": []},
}
METRICS = ("hr@10", "ndcg@10", "mrr")


def one_run(task: str, seed: int, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of one run, from its folder where it is done already."""
    run = arguments.out / f"{task}-{seed}"
    if not (run / "summary.json").is_file():
        trained(task, seed, arguments, run)
    if arguments.validation:
        return validated(run, task, seed, arguments.data)
    if not (run / "ranking.json").is_file():
        selftaught.evaluate(run, arguments.data, seed=seed, quiet=True)
    found = json.loads((run / "ranking.json").read_text())
    seconds = json.loads((run / "summary.json").read_text())["seconds"]
    name = {"pretrained": task, "random_init": f"{task}, random initialisation"}
    rows = [r for r in found["rows"] if r["metric"] in METRICS]
    return [{**r, "features": name.get(r["features"], r["features"]), "seed": seed, "seconds": seconds} for r in rows]


def trained(task: str, seed: int, arguments: argparse.Namespace, run: Path) -> None:
    """Pretrain, in two runs where a task goes on from another."""
    first, _, then = task.partition("+")
    options = {"size": 50, **RECIPES.get(task, {"steps": 600})}
    given = {name: getattr(arguments, name) for name in ("steps", "lr", "size", "batch")}
    options |= {name: value for name, value in given.items() if value is not None}
    options["set"] = [*options.get("set", []), *arguments.set]
    if then:
        start = run.with_name(f"{first}-{seed}")
        if not (start / "summary.json").is_file():
            trained(first, seed, arguments, start)
        # What the data and the protocol are is the first run's to say.
        options["set"] = [x for x in options["set"] if not x.startswith(("event.", "encoder.options"))]
        options["encoder"] = str(start)
    selftaught.pretrain(arguments.data, pretext=then or first, seed=seed, out=run, **options)


def validated(run: Path, task: str, seed: int, data: str) -> list[dict[str, Any]]:
    """Rows of a run by its validation cases."""
    loaded = bundle.load(run)
    filtered = loaded.modality.protocol["seen"] == "filtered"
    log = Log(open_data(data), loaded.modality, filtered, seed)
    scores = encoder_scores(loaded.encoder, log, log.valid, torch.device("cpu"))
    ranking = ranked(scores, log, log.valid, filtered, lambda n: None)
    rows = []
    for metric, (value, resampled) in ranking.figures(seed).items():
        if metric in METRICS:
            _, low, high = interval(value, resampled)
            rows.append({"features": task, "metric": metric, "value": value, "low": low, "high": high, "seed": seed})
    return rows


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean over seeds of each figure, and its interval."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["features"], row["metric"]), []).append(row)
    return [
        {"features": features, "metric": metric, **joined(found), "seeds": sorted({r["seed"] for r in found})}
        for (features, metric), found in groups.items()
    ]


def markdown(rows: list[dict[str, Any]]) -> str:
    """One line a recommender, the best first."""
    lines = ["| | " + " | ".join(METRICS) + " | seeds |", "|---" * (len(METRICS) + 2) + "|"]
    by = {(r["features"], r["metric"]): r for r in rows}
    for name in sorted({r["features"] for r in rows}, key=lambda n: -by[n, "ndcg@10"]["value"]):
        cells = [f"{r['value']:.4f} [{r['low']:.4f}, {r['high']:.4f}]" for r in (by[name, m] for m in METRICS)]
        lines.append(f"| {name} | {' | '.join(cells)} | {len(by[name, 'mrr']['seeds'])} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/events"))
    parser.add_argument("--tasks", nargs="+", default=["next_item", "masked_item"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--size", type=int, help="events of a history")
    parser.add_argument("--lr", type=float)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--set", action="append", default=[], help="a setting of pretraining, KEY=VALUE")
    parser.add_argument("--validation", action="store_true", help="rank validation cases, and those alone")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.all:
        arguments.tasks = [task for task in RECIPES if task != "s3rec"]
    arguments.out.mkdir(parents=True, exist_ok=True)
    found = summary([r for task in arguments.tasks for seed in arguments.seeds for r in one_run(task, seed, arguments)])
    print(json.dumps({"rows": found}) if arguments.json else markdown(found))


if __name__ == "__main__":
    main()
