"""Masked language modelling on a labelled corpus, beside TF-IDF, random initialisation and training from scratch.

    python benchmarks/text.py --data CORPUS [--minutes 8] [--seeds 0 1 2] [--out runs/text-NAME] [--json]

CORPUS is anything `selftaught` reads as labelled text: a folder of class folders, or TABLE.csv?text=COLUMN&label=COLUMN. A
fifth of the documents is held out of pretraining by content hash and tested; labels are seen by probes and fine-tuning
alone. Every seed is a run folder below --out; a second call takes up what an interrupted one left. Fine-tuning takes 1 %,
10 % and all labels, beside training from scratch with the same labels and budget. "raw" is TF-IDF. A row's interval covers
test documents and label draws of one run; the summary's covers seeds as well.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import selftaught
from cifar10 import markdown, summary

LABELS = (0.01, 0.1, 1.0)
EPOCHS = {0.01: 60, 0.1: 20, 1.0: 4}


def one_run(seed: int, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of one pretraining run, from its folder where it is done already."""
    run = arguments.out / f"mlm-{seed}"
    if not (run / "evaluation.json").is_file():
        options: dict[str, Any] = {"pretext": "mlm", "holdout": 0.2, "minutes": arguments.minutes, "set": arguments.set}
        selftaught.pretrain(arguments.data, seed=seed, out=run, **options)
        selftaught.evaluate(run, arguments.data, labels=LABELS, seed=seed, quiet=True)
    rows = json.loads((run / "evaluation.json").read_text())["rows"]
    for share in LABELS if not arguments.no_finetune else ():
        tuned = run / f"finetune-{share:g}"
        if not (tuned / "finetune.json").is_file():
            options = {"labels": share, "epochs": EPOCHS[share], "seed": seed, "quiet": True}
            selftaught.finetune(run, arguments.data, out=tuned, **options)
        rows += json.loads((tuned / "finetune.json").read_text())["rows"]
    recipe = json.loads((run / "recipe.json").read_text())
    more = {"task": "mlm", "seed": seed, "encoder": recipe["encoder"]["name"], "steps": recipe["train"]["steps"]}
    return [{**row, **more} for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/text"))
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", action="append", default=[], help="a setting of pretraining")
    parser.add_argument("--no-finetune", action="store_true", help="probes alone")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    found = summary([row for seed in arguments.seeds for row in one_run(seed, arguments)])
    print(json.dumps({"rows": found}) if arguments.json else markdown(found))


if __name__ == "__main__":
    main()
