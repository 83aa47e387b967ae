"""Pretraining on a labelled corpus, beside TF-IDF, random initialisation and training from scratch.

    python benchmarks/text.py --data CORPUS [--test CORPUS] [--tasks simclr mlm] [--seeds 0 1 2] [--out runs/text-NAME] [--json]

CORPUS is anything `selftaught` reads as labelled text: a folder of class folders, or TABLE.csv?text=COLUMN&label=COLUMN. Without
--test a fifth of the documents is held out of pretraining by content hash and tested; labels are seen by probes and
fine-tuning alone, and nothing is chosen on the tested ones. Every (task, seed) is a run folder below --out; a second call takes
up what an interrupted one left. Fine-tuning takes 1 %, 10 % and all labels, beside training from scratch with the same
labels and budget. "raw" is TF-IDF. A row's interval covers test documents and label draws of one run; the summary's covers
seeds as well.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import selftaught
from _seeds import joined

LABELS = (0.01, 0.1, 1.0)
EPOCHS = {0.01: 60, 0.1: 20, 1.0: 4}
MEASURES = ("linear_probe", "knn")  # a language model's likelihood, which needs no labels, is not of this table


def one_run(task: str, seed: int, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of one pretraining run, from its folder where it is done already."""
    run = arguments.out / f"{task}-{seed}"
    held = {"holdout": 0.2} if arguments.test is None else {}
    test = {} if arguments.test is None else {"test": arguments.test}
    if not (run / "evaluation.json").is_file():
        options: dict[str, Any] = {"pretext": task, "encoder": arguments.encoder, "size": arguments.size, **held}
        options |= {"steps": arguments.steps, "batch": 64, "lr": 2e-3 if task == "mlm" else None, "set": arguments.set}
        selftaught.pretrain(arguments.data, seed=seed, out=run, **options)
        tested = {"train": arguments.data} if test else {}
        measured = {"labels": LABELS, "draws": 3, "seed": seed, "quiet": True}
        selftaught.evaluate(run, arguments.test or arguments.data, **tested, **measured)
    rows = [r for r in json.loads((run / "evaluation.json").read_text())["rows"] if r["measure"] in MEASURES]
    for share in LABELS if not arguments.no_finetune else ():
        tuned = run / f"finetune-{share:g}"
        if not (tuned / "finetune.json").is_file():
            options = {"labels": share, "epochs": EPOCHS[share], "seed": seed, "quiet": True}
            selftaught.finetune(run, arguments.data, out=tuned, **test, **options)
        rows += json.loads((tuned / "finetune.json").read_text())["rows"]
    recipe = json.loads((run / "recipe.json").read_text())
    more = {"task": task, "seed": seed, "encoder": recipe["encoder"]["name"], "steps": recipe["train"]["steps"]}
    return [{**row, **more} for row in rows]


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean over seeds of each figure; the interval joins the mean interval of a run with the spread between seeds."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["task"], row["measure"], row["features"], row["labels"]), []).append(row)
    out = []
    for (task, measure, features, labels), found in groups.items():
        figures = {name: round(value, 4) for name, value in joined(found).items()}
        out.append(
            {"task": task, "measure": measure, "features": features, "labels": labels, **figures}
            | {"seeds": [r["seed"] for r in found], "n": found[0]["n"], "encoder": found[0]["encoder"]}
            | {"steps": [r["steps"] for r in found]}
        )
    return out


def markdown(rows: list[dict[str, Any]]) -> str:
    """One line a task; then, for each encoder, random initialisation, and once raw words."""
    columns = sorted({(r["measure"], r["labels"]) for r in rows})
    lines = ["| task | encoder | " + " | ".join(f"{m.replace('_', ' ')}, {share:.0%}" for m, share in columns) + " |"]
    lines.append("|---" * (len(columns) + 2) + "|")
    by = {(r["task"], r["features"], r["measure"], r["labels"]): r for r in rows}

    def line(name: str, task: str, features: str, encoder: str) -> str:
        cells = []
        for measure, labels in columns:
            start = "from_scratch" if measure == "finetune_full" and features == "random_init" else features
            r = by.get((task, start, measure, labels))
            cells.append(f"{r['value']:.3f} [{r['low']:.3f}, {r['high']:.3f}]" if r else "–")
        return f"| {name} | {encoder} | " + " | ".join(cells) + " |"

    encoders = {r["task"]: r["encoder"] for r in rows}
    lines += [line(task, task, "pretrained", encoders[task]) for task in encoders]
    for encoder in dict.fromkeys(encoders.values()):
        first = next(task for task in encoders if encoders[task] == encoder)
        lines.append(line("random initialisation", first, "random_init", encoder))
    lines.append(line("raw words", next(iter(encoders)), "raw", "–"))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/text"))
    parser.add_argument("--test", help="labelled text that is tested; default: a fifth of --data")
    parser.add_argument("--tasks", nargs="+", default=["simclr", "mlm"])
    parser.add_argument("--encoder", default="bert_tiny")
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--size", type=int, default=64, help="tokens of a piece")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", action="append", default=[], help="a setting of pretraining")
    parser.add_argument("--no-finetune", action="store_true", help="probes alone")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    found = summary([r for task in arguments.tasks for seed in arguments.seeds for r in one_run(task, seed, arguments)])
    print(json.dumps({"rows": found}) if arguments.json else markdown(found))


if __name__ == "__main__":
    main()
