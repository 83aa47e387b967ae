"""Every pretext task of text on one corpus, the same steps each, under four probes beside random initialisation.

    python benchmarks/text_tasks.py --train FOLDER --test FOLDER [--steps 500] [--seeds 0 1] [--tasks ...] [--json]

FOLDER holds a folder of .txt files a class. Pretraining reads the texts of --train alone. The probes, all on --test, which
chooses nothing: "topics", a linear probe learned from 10 labels a class of --train, accuracy; "halves", a document's
second half is looked for by its first among all second halves, nDCG@10; "order", a linear probe that tells [CLS] A [SEP] B
[SEP] of a document from B before A; "next", the same where half of the B are of other documents. The last two are learned
from pairs of --train, cut anew, from the encoding of the first token beside the mean over all. Random initialisation is
the draw of weights the run began with. Every (task, seed) is a run folder below --out; a second call takes up what an
interrupted one left. A row's interval covers test samples (and label draws of topics) of one run; the summary's covers
seeds as well. "difference" is pretrained minus random initialisation, paired.
"""

import argparse
import csv
import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

import selftaught
from selftaught import bundle, disk, rng
from selftaught.batch import Batch
from selftaught.encoders import build
from selftaught.evaluation.intervals import bootstrap, difference
from selftaught.evaluation.probe import linear_probe
from selftaught.modality.text.pairs import pairs
from selftaught.workflow.kinds import kind_called
from selftaught.workflow.prepare import open_source
from text import summary

TASKS = ("nsp", "sop", "electra", "tsdae", "simcse", "simclr", "mlm", "clm")
LABELS = (10,)
PIECES = 4000  # of text at most, one pair each, teach and test the probes of pairs


def halves(folder: Path, out: Path) -> Path:
    """A table of the two halves of each text, cut at the space nearest to its middle."""
    file = out / "halves.csv"
    if not file.exists():
        rows = []
        for path in sorted(folder.rglob("*.txt")):
            text = " ".join(path.read_text("utf-8").split())
            middle = text.find(" ", len(text) // 2)
            if path.parent != folder and middle > 0:
                rows.append((text[:middle], text[middle + 1 :]))
        with file.open("w", newline="", encoding="utf-8") as stream:
            csv.writer(stream).writerows([("first", "second"), *rows])
    return file


def pair_features(encoder: Any, modality: Any, source: Any, kind: Literal["nsp", "sop"]) -> tuple[Tensor, Tensor]:
    """Features [n, 2 D] and labels [n] of the pairs that are cut of a source's pieces."""
    found: list[tuple[Tensor, Tensor]] = []
    chosen = rng.permutation(len(source), 5)[
        :PIECES
    ]  # in no order: neighbours in a batch lend each other their second parts
    with torch.inference_mode():
        for index in np.array_split(chosen, -(-len(chosen) // 64)):
            pair = pairs(modality, Batch(source.fetch(index), torch.from_numpy(index), seed=0, step=0), kind)
            seen = encoder(pair.tokens)
            rows = torch.cat([seen.tokens[:, 0], seen.pooled], 1)
            found.append((rows[pair.known], pair.label[pair.known]))
    return torch.cat([f for f, _ in found]), torch.cat([y for _, y in found])


def probe_pairs(run: Path, train: Path, test: Path, seed: int) -> list[dict[str, Any]]:
    """Rows of "order" and "next"."""
    loaded = bundle.load(run)
    config = loaded.encoder.config
    random = build(config.bare(), rng.fold(loaded.info.get("seed", 0)) >> 1).eval()
    sources = []
    for folder in (train, test):
        whole = open_source(folder, config.size, True)
        reading = kind_called("text").reading(whole, loaded.modality, np.arange(len(whole)), True)
        sources.append(reading.source)
    rows = []
    for name, kind in (("order", "sop"), ("next", "nsp")):
        right = {}
        for features, encoder in (("pretrained", loaded.encoder), ("random_init", random)):
            (x, y), (x_test, y_test) = (pair_features(encoder, loaded.modality, s, kind) for s in sources)
            right[features] = (linear_probe(x, y, seed=seed).predict(x_test) == y_test)[None]
        found = {f: bootstrap(c) for f, c in right.items()}
        found["difference"] = difference(right["pretrained"], right["random_init"])
        for features, (value, low, high) in found.items():
            rows.append(_row(name, features, value, low, high, right["pretrained"].shape[1]))
    return rows


def _row(name: str, features: str, value: float, low: float, high: float, n: int) -> dict[str, Any]:
    return {"measure": name, "features": features, "labels": 0, "value": value, "low": low, "high": high, "n": n}


def one_run(task: str, seed: int, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of one pretraining run, from its folder where it is done already."""
    run = arguments.out / f"{task}-{seed}"
    done = run / "text_tasks.json"
    if not done.is_file():
        options: dict[str, Any] = {"pretext": task, "steps": arguments.steps, "batch": 64, "size": arguments.size}
        options |= {"encoder": "gpt2_nano" if task == "clm" else "bert_tiny", "lr": 2e-3}
        options["set"] = ["text.vocabulary=4000", "train.health_every=200", "encoder.options.initializer_range=0.049"]
        selftaught.pretrain(arguments.train, seed=seed, out=run, **options)
        asked: dict[str, Any] = {"train": arguments.train, "labels": LABELS, "draws": 5, "seed": seed, "quiet": True}
        topics = selftaught.evaluate(run, arguments.test, **asked)
        rows = [{**r, "measure": "topics"} for r in topics["rows"] if r["measure"] == "linear_probe"]
        pairs = halves(arguments.test, arguments.out)
        found = selftaught.evaluate(run, f"{pairs}?source=first&target=second", seed=seed, quiet=True)
        for r in found["rows"]:
            if r["metric"] == "ndcg@10":
                rows.append(_row("halves", r["features"], r["value"], r["low"], r["high"], r["n"]))
        for r in found["differences"]:
            if r["metric"] == "ndcg@10" and r["against"] == "random_init":
                rows.append(_row("halves", "difference", r["value"], r["low"], r["high"], found["rows"][0]["n"]))
        disk.write_json(done, rows + probe_pairs(run, arguments.train, arguments.test, seed))
    more = {
        "task": task,
        "seed": seed,
        "encoder": "gpt2_nano" if task == "clm" else "bert_tiny",
        "steps": arguments.steps,
    }
    return [{**row, **more} for row in json.loads(done.read_text())]


def markdown(rows: list[dict[str, Any]]) -> str:
    """One line a task and features, one column a probe."""
    probes = ("topics", "halves", "order", "next")
    lines = ["| task | features | " + " | ".join(probes) + " | seeds |", "|---" * (len(probes) + 3) + "|"]
    for task in dict.fromkeys(r["task"] for r in rows):
        mine = {(r["measure"], r["features"]): r for r in rows if r["task"] == task}
        for features in ("pretrained", "random_init", "difference", "raw"):
            found = [mine.get((p, features)) for p in probes]
            cells = [f"{r['value']:.3f} [{r['low']:.3f}, {r['high']:.3f}]" if r else "–" for r in found]
            seeds = next((len(r["seeds"]) for r in found if r), 0)
            lines.append(f"| {task} | {features.replace('_', ' ')} | " + " | ".join(cells) + f" | {seeds} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, required=True)
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/text-tasks"))
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--size", type=int, default=64, help="tokens of a piece")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--tasks", nargs="+", default=list(TASKS))
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    rows = [row for seed in arguments.seeds for task in arguments.tasks for row in one_run(task, seed, arguments)]
    found = summary(rows)
    print(json.dumps({"rows": found}) if arguments.json else markdown(found))


if __name__ == "__main__":
    main()
