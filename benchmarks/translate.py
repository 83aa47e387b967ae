"""Translation en -> de on Multi30k: from an encoder pretrained on the text of both languages, beside from scratch.

    python benchmarks/translate.py --data multi30k_en_de.tar [--seeds 0] [--pairs 2900 29000] [--steps 1200] [--json]

The tar holds multi30k/{train,val,test_2016_flickr}.{en,de}.gz; its members are read into --out. Pretraining (mlm) reads the
lines of both languages of train as documents and knows nothing of their pairing. Then the same decoder is trained on top of
the pretrained encoder and of a random one, with the same pairs, steps and settings, and the test set is translated by
beam search. Sizes and settings were chosen on val (`--on val`). Every seed is a run folder below --out, every number of
pairs a folder in it; a second call takes up what an interrupted one left. A row's interval covers test sentences; that of
several seeds joins it with the spread between them.
"""

import argparse
import gzip
import json
import tarfile
from pathlib import Path
from typing import Any

import selftaught
from _seeds import joined

PARTS = ("train", "val", "test_2016_flickr")
EPOCHS = {2900: 15.0}
OTHERWISE = 2.0
LARGEST = 1 << 26  # bytes of a member, unpacked


def unpack(tar: Path, out: Path) -> None:
    """The members that are needed, by name, as OUT/PART.LANGUAGE; and the unpaired text of train in OUT/mono."""
    (out / "mono").mkdir(parents=True, exist_ok=True)
    wanted = {f"multi30k/{part}.{end}.gz": out / f"{part}.{end}" for part in PARTS for end in ("en", "de")}
    with tarfile.open(tar) as archive:
        for name, file in wanted.items():
            stream = archive.extractfile(name)
            assert stream is not None, name
            with gzip.open(stream) as member:
                text = member.read(LARGEST)
            file.write_bytes(text)
            if file.stem == "train":
                (out / "mono" / f"{file.name}.txt").write_bytes(text)


def one_seed(seed: int, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of one seed, from its folders where they are done already."""
    data, run = arguments.out / "data", arguments.out / f"mlm-{seed}"
    if not (run / "encoder").is_dir():
        settings = ["text.tokenizer=bpe", f"text.vocabulary={arguments.vocabulary}", "train.health_every=400"]
        settings += arguments.set
        options: dict[str, Any] = {"pretext": "mlm", "encoder": arguments.encoder, "size": 64, "set": settings}
        options |= {"steps": arguments.steps, "batch": 128, "lr": 3e-3, "seed": seed}
        selftaught.pretrain(f"{data / 'mono'}?split=line", out=run, **options)
    rows = []
    for pairs in arguments.pairs:
        out = run / f"{arguments.on}-{pairs}"
        if not (out / "finetune.json").is_file():
            test = {"val": "val", "test": "test_2016_flickr"}[arguments.on]
            options = {"labels": pairs, "epochs": EPOCHS.get(pairs, OTHERWISE), "batch": 64, "lr": arguments.lr}
            options |= {"test": f"{data / test}?source=en&target=de", "task": "translate", "seed": seed, "out": out}
            selftaught.finetune(run, f"{data / 'train'}?source=en&target=de", **options)
        found = json.loads((out / "finetune.json").read_text())
        steps = json.loads((out / "train.json").read_text())["steps"]
        differences = [{**d, "features": "difference"} for d in found["differences"]]
        rows += [{**row, "pairs": pairs, "steps": steps, "seed": seed} for row in (*found["rows"], *differences)]
    return rows


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean over seeds of each figure; the interval joins the mean interval of a run with the spread between seeds."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["pairs"], row["metric"], row["features"]), []).append(row)
    out = []
    for (pairs, metric, features), found in groups.items():
        figures = {name: round(value, 2) for name, value in joined(found).items()}
        more = {"seeds": [r["seed"] for r in found], "steps": found[0]["steps"]}
        out.append({"pairs": pairs, "metric": metric, "features": features, **figures, **more})
    return out


def markdown(rows: list[dict[str, Any]]) -> str:
    """One line a number of pairs and start, one column a metric."""
    lines = ["| pairs | steps | start | BLEU | chrF | seeds |", "|---" * 6 + "|"]
    for pairs, features in dict.fromkeys((r["pairs"], r["features"]) for r in rows):
        found = {r["metric"]: r for r in rows if (r["pairs"], r["features"]) == (pairs, features)}
        cells = [f"{found[m]['value']:.1f} [{found[m]['low']:.1f}, {found[m]['high']:.1f}]" for m in ("bleu", "chrf")]
        first = found["bleu"]
        name = features.replace("_", " ")
        lines.append(f"| {pairs} | {first['steps']} | {name} | {' | '.join(cells)} | {len(first['seeds'])} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/multi30k"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--pairs", type=int, nargs="+", default=[2900, 29000])
    parser.add_argument("--encoder", default="bert_tiny")
    parser.add_argument("--vocabulary", type=int, default=6000)
    parser.add_argument("--steps", type=int, default=1200, help="of pretraining")
    parser.add_argument("--lr", type=float, default=2e-3, help="of fine-tuning")
    parser.add_argument("--set", action="append", default=[], help="a setting of pretraining, KEY=VALUE")
    parser.add_argument("--on", choices=("val", "test"), default="test", help="what is translated")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if not (arguments.out / "data" / "mono" / "train.de.txt").is_file():
        unpack(arguments.data, arguments.out / "data")
    found = summary([row for seed in arguments.seeds for row in one_seed(seed, arguments)])
    print(json.dumps({"rows": found}) if arguments.json else markdown(found))


if __name__ == "__main__":
    main()
