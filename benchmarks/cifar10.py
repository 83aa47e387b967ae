"""All pretext tasks of pictures on CIFAR-10, the same minutes each, beside random initialisation, raw pixels and all labels.

    python benchmarks/cifar10.py --data CIFAR [--minutes 3] [--seeds 0 1 2] [--families contrastive ...] [--tasks simclr ...]

CIFAR holds train/CLASS/*.jpg and test/CLASS/*.jpg. A finished run is a line of OUT/rows.jsonl and is not run again; one that
was interrupted is resumed from its folder. All of it takes five hours on 2 cores, a family at most 100 minutes; what is
measured already is always in the table. Seed by seed, so that every task has its first figure early.

Encoders: --encoder, and vit_micro or igpt_nano where a task needs such a one. Probes learn from 10 000 training pictures,
drawn by a hash; figures are on the whole test set, which chooses nothing. 1 % and 10 % are of the 50 000 training labels. NMI:
10 k-means clusters of the test set's features of length 1 against the classes. Rank and spread are of the last look at held-out
training pictures, memory is the peak of the process that pretrains; steps are planned from a measured pace, so that seconds
differ. Bold: above random initialisation, intervals apart.

supcon_tenth sees 10 % of the labels. With it stand as many labels alone: the encoder trained from scratch on 10 % of them for as
long, and simclr's fine-tuned on the same. The bound, all labels for as long, is of one seed (TUNED). A run's interval covers
test samples and label draws; that of a row seeds as well, by Student's t.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.cluster import KMeans
from sklearn.metrics import normalized_mutual_info_score
from torch import Tensor

import selftaught
from _seeds import joined
from selftaught import bundle, rng
from selftaught.data import open_data
from selftaught.encoders import build
from selftaught.evaluation import features
from selftaught.evaluation.efficiency import curve
from selftaught.pretext import find

PROBE, CLASSES, DRAWS, RESAMPLES = 10_000, 10, 3, 1000
VARIANTS = {"supcon_tenth": ("supcon", ["pretext.labels=0.1"])}
TUNED = {("simclr", 0.1): None, ("simclr", 1.0): 1, ("mae", 1.0): 1}  # how many seeds; None: all
# How many pictures are read with labels while the task reads one: it has two views, or a quarter of one.
PICTURES = {"simclr": 2.0, "mae": 0.5}
STARTS = (" fine-tuned", "'s encoder from scratch")
FIGURES = {  # label: (measure, share of the probe's labels)
    "kNN": ("knn", 1.0),
    "probe, 1 %": ("linear_probe", 0.05),
    "probe, 10 %": ("linear_probe", 0.5),
    "probe": ("linear_probe", 1.0),
}
OTHERS = {"keep", "hide", "causal_pixels"}  # what convolutional encoders cannot
OWN = "its own classifier"
# The process tells its own peak: what the system tells of a child begins with that of its parent.
_PRETRAIN = r"""
import re, sys
from pathlib import Path
from selftaught.cli import main
code = main()
print(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])
sys.exit(code)
"""
WATCHED = {"rank": "{:.1f}", "spread": "{:.2f}", **dict.fromkeys(("steps", "seconds", "samples/s", "MB"), "{:.0f}")}


def interval(row: Mapping[str, Any]) -> dict[str, float]:
    """What a table keeps of a row, with digits enough to read."""
    return {name: round(float(row[name]), 5) for name in ("value", "low", "high")}


class Measure:
    """The pictures that teach probes and those that test them, and what features of them are worth."""

    def __init__(self, data: Path) -> None:
        self.sources = [open_data(data / part, short_side=111) for part in ("train", "test")]
        sizes = [len(s) for s in self.sources]
        self.rows = [np.sort(rng.permutation(sizes[0], 7)[:PROBE]), np.arange(sizes[1])]
        self.labels = [torch.from_numpy(s.labels[i]) for s, i in zip(self.sources, self.rows)]  # type: ignore[index]

    def of_encoder(self, encoder: Any, modality: Any, seed: int) -> dict[str, Any]:
        cpu = torch.device("cpu")
        return self.of([features.encode(encoder, modality, s, i, cpu) for s, i in zip(self.sources, self.rows)], seed)

    def of_pixels(self, modality: Any) -> dict[str, Any]:
        return self.of([features.raw(modality, s, i) for s, i in zip(self.sources, self.rows)], 0)

    def of(self, both: list[Tensor], seed: int) -> dict[str, Any]:
        """Value, low and high of each figure."""
        found: dict[str, Any] = {}
        for name, (measure, share) in FIGURES.items():
            sets = {"these": (both[0], both[1])}
            (row,) = curve(sets, *self.labels, shares=[share], draws=DRAWS, seed=seed, measures=[measure])
            found[name] = row
        unit = torch.nn.functional.normalize(both[1].float(), dim=1).numpy()
        clusters = KMeans(CLASSES, n_init=4, random_state=seed).fit_predict(unit)
        classes, draw = self.labels[1].numpy(), np.random.default_rng(seed)
        samples = (draw.integers(0, len(classes), len(classes)) for _ in range(RESAMPLES))
        again = [normalized_mutual_info_score(classes[i], clusters[i]) for i in samples]
        # A sample drawn twice agrees with itself, so resamples lie too high: the basic interval turns them about the value.
        nmi = normalized_mutual_info_score(classes, clusters)
        high, low = 2 * nmi - np.percentile(again, [2.5, 97.5])
        found["NMI"] = {"value": nmi, "low": low, "high": high}
        return {name: interval(row) for name, row in found.items()}


def pretrained(words: list[Any], run: Path) -> None:
    """Pretrain in a process of its own, whose peak of memory is kept beside the run."""
    command = [sys.executable, "-c", _PRETRAIN, "pretrain", *map(str, words), "--out", str(run)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"pretrain {' '.join(map(str, words))} failed")
    (run / "peak.json").write_text(json.dumps({"megabytes": round(int(done.stdout.split()[-1]) / 1024)}))


class Table:
    """Rows that are measured, on disk."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.rows = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []

    def has(self, name: str, seed: int) -> bool:
        return any(r["name"] == name and r["seed"] == seed for r in self.rows)

    def add(self, name: str, seed: int, encoder: str, figures: dict[str, Any], **more: Any) -> None:
        self.rows.append({"name": name, "seed": seed, "encoder": encoder, "figures": figures, **more})
        with self.file.open("a") as stream:
            stream.write(json.dumps(self.rows[-1]) + "\n")


def run_task(name: str, seed: int, arguments: argparse.Namespace, table: Table, measure: Measure) -> None:
    """Pretrain and measure one task, its encoder at random once, and what is tuned from it."""
    task, settings = VARIANTS.get(name, (name, []))
    shares = [share for (of, share), seeds in TUNED.items() if of == name and (seeds is None or seed < seeds)]
    tunings = {share: [f"{name}{start}, {share:.0%} of labels" for start in STARTS] for share in shares}
    if all(table.has(row, seed) for row in (name, *(rows[-1] for rows in tunings.values()))):
        return
    run, train = arguments.out / f"{name}-{seed}", arguments.data / "train"
    if not (run / "peak.json").is_file():
        encoder = "auto" if find(task).needs & OTHERS else arguments.encoder
        words = [train, "--pretext", task, "--encoder", encoder, "--minutes", arguments.minutes, "--seed", seed]
        pretrained([*words, *(w for s in settings for w in ("--set", s))], run)
    loaded, recipe = bundle.load(run), json.loads((run / "recipe.json").read_text())
    facts = json.loads((run / "summary.json").read_text())
    encoder, steps = recipe["encoder"]["name"], recipe["train"]["steps"]
    blank = f"random initialisation, {encoder}"
    if not table.has(blank, seed):  # the very weights that the runs of this seed began with
        start = build(loaded.encoder.config.bare(), rng.fold(seed) >> 1)
        table.add(blank, seed, encoder, measure.of_encoder(start, loaded.modality, seed))
    if not any(r["name"] == "raw pixels" for r in table.rows):
        table.add("raw pixels", 0, "–", measure.of_pixels(loaded.modality))
    if not table.has(name, seed):
        health = json.loads((run / "health.jsonl").read_text().splitlines()[-1])
        peak = json.loads((run / "peak.json").read_text())["megabytes"]
        watched = {"rank": health["rank"], "spread": health["std"], "steps": steps, "seconds": facts["seconds"]}
        watched |= {"samples/s": facts["samples_per_second"], "MB": peak}
        figures = measure.of_encoder(loaded.encoder, loaded.modality, seed)
        table.add(name, seed, encoder, figures, watched=watched)
    for share, labels in tunings.items():
        if not table.has(labels[-1], seed):
            views = 60 * arguments.minutes * facts["samples_per_second"] * PICTURES[name]
            tuned, count = run / f"finetune-{share:g}", share * len(measure.sources[0])
            options: dict[str, Any] = {"labels": share, "epochs": views / count, "seed": seed, "quiet": True}
            selftaught.finetune(run, train, test=arguments.data / "test", out=tuned, **options)
            for label, r in zip(labels, json.loads((tuned / "finetune.json").read_text())["rows"]):
                table.add(label, seed, encoder, {OWN: interval(r)})


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row a name, in the order of measuring; baselines last."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda r: "watched" not in r):
        groups.setdefault(row["name"], []).append(row)
    out = []
    for name, found in groups.items():
        row = {"name": name, "encoder": found[0]["encoder"], "seeds": sorted(r["seed"] for r in found)}
        row["figures"] = {f: joined([r["figures"][f] for r in found]) for f in found[0]["figures"]}
        if "watched" in found[0]:
            row["watched"] = {w: statistics.mean(r["watched"][w] for r in found) for w in WATCHED}
        out.append(row)
    return out


def markdown(rows: list[dict[str, Any]]) -> str:
    """One line a row; then what was trained on labels."""
    heads = ["", "encoder", "seeds", *FIGURES, "NMI", *WATCHED]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    by = {r["name"]: r for r in rows}
    for row in (r for r in rows if "kNN" in r["figures"]):
        cells, blank = [], by.get(f"random initialisation, {row['encoder']}")
        for name, figure in row["figures"].items():
            value, low, high = figure.values()
            text = f"{value:.3f} [{low:.3f}, {high:.3f}]"
            cells.append(f"**{text}**" if blank and row is not blank and low > blank["figures"][name]["high"] else text)
        watched = [form.format(row["watched"][w]) if "watched" in row else "–" for w, form in WATCHED.items()]
        lines.append(f"| {' | '.join([row['name'], row['encoder'], str(len(row['seeds'])), *cells, *watched])} |")
    for row in (r for r in rows if "kNN" not in r["figures"]):
        value, low, high = row["figures"][OWN].values()
        lines.append(f"\n{row['name']}: {value:.3f} [{low:.3f}, {high:.3f}], {len(row['seeds'])} seeds.")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/cifar10"))
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--encoder", default="resnet10_x0.25")
    parser.add_argument("--families", nargs="+")
    parser.add_argument("--tasks", nargs="+")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    family = {t["name"]: t["family"] for t in selftaught.tasks() if "image" in t["data"]}
    family |= {name: family[task] for name, (task, _) in VARIANTS.items()}
    chosen = arguments.tasks or [t for t in family if not arguments.families or family[t] in arguments.families]
    arguments.out.mkdir(parents=True, exist_ok=True)
    table, measure = Table(arguments.out / "rows.jsonl"), Measure(arguments.data)
    for n, (seed, name) in enumerate((seed, name) for seed in arguments.seeds for name in chosen):
        begun = time.monotonic()
        run_task(name, seed, arguments, table, measure)
        left = (len(chosen) * len(arguments.seeds) - n - 1) * (time.monotonic() - begun) / 60
        print(f"{name}, seed {seed}; at this pace {left:.0f} min for what is left", file=sys.stderr)
    found = summary(table.rows)
    print(json.dumps({"rows": found}) if arguments.json else markdown(found))


if __name__ == "__main__":
    main()
