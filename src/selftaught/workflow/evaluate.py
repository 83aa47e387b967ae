"""evaluate: what is an encoder worth, beside random initialisation and raw features?"""

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from selftaught import bundle, disk, rng
from selftaught.data import Source, holdout
from selftaught.encoders import build, named
from selftaught.errors import UserError, say
from selftaught.evaluation import efficiency, features
from selftaught.evaluation.efficiency import Row
from selftaught.evaluation.verdict import verdict
from selftaught.reporting import make_atlas, results_table, show, write_report
from selftaught.settings import digest, load_json
from selftaught.train.progress import Meter
from selftaught.workflow.kinds import kind_called
from selftaught.workflow.likelihood import likelihood
from selftaught.workflow.prepare import label_budget, open_source, pick_device, positive, same_kind

_ATLAS = 1500
_LEAST_TEST = 20
_LEAST_TAUGHT = 5  # samples of each class: fewer are copies by chance rather than the part that pretraining saw
UNKNOWN = "unknown"  # how many of the samples pretraining saw, where nothing says what it saw


@dataclass(frozen=True)
class Asked:
    """What evaluate was asked, beside run and data. train: labelled data for the probes, or None. labels: shares of the
    labels (up to 1), or labels a class. against: encoders to compare with."""

    train: Any = None
    labels: tuple[float, ...] = (0.01, 0.05, 0.1, 1.0)
    against: tuple[str, ...] = ()
    draws: int = 5
    seed: int = 0
    device: str = "auto"
    quiet: bool = False

    def said(self, *only: str) -> list[str]:
        """What differs from the defaults as words of the command line, of all options or the named ones."""
        words: list[str] = []
        defaults = {field.name: field.default for field in fields(self)}
        for option in only or ("train", "labels", "against", "draws", "seed"):
            value = getattr(self, option)
            if option == "train" and value is not None and not isinstance(value, str | Path):
                words += ["--train", "TRAIN"]  # an array, say, which no command line can name
            elif option == "train" and value is None:
                continue
            elif value != defaults[option]:
                given = value if isinstance(value, tuple) else (value,)
                many = [f"{v:g}" if isinstance(v, float) else str(v) for v in given]
                # Amounts follow one another; of encoders each has the option before it.
                words += [f"--{option}", *many] if option == "labels" else [w for v in many for w in (f"--{option}", v)]
        return words

    def __post_init__(self) -> None:
        for amount in self.labels:
            label_budget(amount)
        for name in {"pretrained", *efficiency.BASELINES}.intersection(self.against):
            raise UserError(f"--against {name} would have the name of a row that is there anyway; write ./{name}")
        positive(draws=self.draws)


@dataclass(frozen=True)
class Split:
    """Labelled samples for the probes and samples to test on; the two may lie in different sources."""

    train: Source
    train_index: np.ndarray
    test: Source
    test_index: np.ndarray
    protocol: dict[str, Any]


def seen_hashes(run: Path) -> np.ndarray:
    """Content hashes of the samples that a run learned from: in pretraining and, where it is fine-tuned, with labels. Empty
    for a bundle without its run: what it saw is unknown then."""
    for folder in (run, run.parent, *([run.parent.parent] if run.name == "encoder" else [])):
        if (folder / "seen.npy").is_file():
            try:
                return np.load(folder / "seen.npy", allow_pickle=False)
            except (ValueError, EOFError) as error:
                raise UserError(f"'{folder / 'seen.npy'}' is damaged, so what pretraining saw is unknown") from error
    return np.empty(0, dtype=np.uint64)


def labelled(source: Source, what: str) -> np.ndarray:
    """Positions of the samples with a label; UserError where there are none."""
    known = np.empty(0, np.int64) if source.labels is None else np.flatnonzero(source.labels >= 0)
    if len(known) == 0:
        raise UserError(f"{what} has no labels; {kind_called(source.kind).unlabelled}")
    return known


def split(
    data: Any,
    train: Any,
    seen: np.ndarray,
    size: int,
    quiet: bool,
    test_source: Source | None = None,
    others: np.ndarray | None = None,
) -> Split:
    """Who may teach the probes and who is tested. No tested sample was seen by pretraining or by a probe.

    With `train`: probes learn from it and DATA is the test set. Without, where pretraining saw a part of DATA: probes
    learn from that part and the held-out rest is tested. Where it saw nothing of DATA, or a few copies that teach too
    little: a half each, by content hash, of what it never saw.
    seen: `seen_hashes`; empty: unknown, and the protocol says so. test_source: DATA, where it is open already. others:
    hashes of what the encoders to compare with saw.
    """
    test_source = test_source or open_source(data, size, quiet)
    test = labelled(test_source, f"'{data}'")
    others = seen[:0] if others is None else others
    by_this, by_others = (np.isin(test_source.hashes[test], hashes) for hashes in (seen, others))
    fresh = test[~by_this & ~by_others]
    protocol: dict[str, Any] = {"seen_by_pretraining": int(by_this.sum()) if len(seen) else UNKNOWN}
    if len(others):
        protocol["seen_by_compared_alone"] = int((by_others & ~by_this).sum())
    if train is not None:
        train_source = open_source(train, size, quiet)
        if train_source.classes != test_source.classes:
            raise UserError(
                f"the classes of --train ({', '.join(train_source.classes[:5])} ...) and of DATA "
                f"({', '.join(test_source.classes[:5])} ...) differ; use the same folder names"
            )
        train_index = labelled(train_source, f"'{train}'")
        leaked = np.isin(test_source.hashes[fresh], train_source.hashes[train_index])
        fresh = fresh[~leaked]
        protocol |= {"split": "given", "left_out_as_duplicates": int(leaked.sum())}
    elif len(seen) and _teaches(test_source, old := np.setdiff1d(test, fresh), fresh):
        train_source, train_index = test_source, old
        protocol |= {"split": "held out from pretraining by content hash"}
    else:
        train_source = test_source
        # Where a part was seen, by another key than pretraining's, by which all that it held out lies in one half.
        half, other = holdout(test_source, 0.5, seed=int(len(fresh) < len(test)))
        train_index, fresh = np.intersect1d(half, fresh), np.intersect1d(other, fresh)
        said = "pretraining saw neither" if len(seen) else f"what pretraining saw is {UNKNOWN}"
        protocol |= {"split": f"halves by content hash; {said}"}
    if len(fresh) < _LEAST_TEST:
        raise UserError(
            f"only {len(fresh)} labelled samples of '{data}' are unseen by pretraining; at least {_LEAST_TEST} are needed: "
            "name a test set of its own, and the labelled training set with --train"
        )
    return Split(train_source, train_index, test_source, fresh, protocol)


def _teaches(source: Source, old: np.ndarray, fresh: np.ndarray) -> bool:
    """Whether the samples that pretraining saw can teach the classes of the fresh ones."""
    assert source.labels is not None
    counts = np.bincount(source.labels[old], minlength=len(source.classes))
    return len(old) > len(fresh) or bool(len(old) and (counts[source.labels[fresh]] >= _LEAST_TAUGHT).all())


def others_saw(against: tuple[str, ...], quiet: bool) -> np.ndarray:
    """Content hashes of the samples that the runs and bundles among the encoders to compare with were pretrained on."""
    found = [np.empty(0, dtype=np.uint64)]
    for name in against:
        if not name.startswith(("timm:", "hf:")):
            found.append(seen_hashes(bundle.find(Path(name))))
            if not quiet and not len(found[-1]):
                say(f"'{name}' has no seen.npy: what it was trained on is unknown, and it may be tested on it")
    return np.unique(np.concatenate(found))


def read_size(loaded: bundle.Bundle, against: tuple[str, ...]) -> int:
    """The largest size that an encoder to be measured reads; what is stored for a smaller one would be stretched for it. Those
    of a hub are made for the size of the first."""
    bundles = [bundle.architecture(Path(name)) for name in against if not name.startswith(("timm:", "hf:"))]
    return max(config.size for config in (loaded.encoder.config, *bundles))


def off_the_shelf(name: str, size: int, channels: int) -> tuple[Any, Any]:
    """An encoder to compare with, by hub name or bundle, and its preprocessing."""
    if name.startswith(("timm:", "hf:")) and not channels:
        raise UserError(f"--against {name} is an encoder of pictures; for text name a run or a bundle")
    if name.startswith(("timm:", "hf:")):
        encoder = build(named(name, size, channels))
        found: Any = getattr(encoder.model, "pretrained_cfg", {})
        mean, std = (list(found[k]) if channels == 3 else [sum(found[k]) / 3] * channels for k in ("mean", "std"))
        return encoder, bundle.modality_from_json(
            "image", {"size": size, "channels": channels, "mean": mean, "std": std}
        )
    other = bundle.load(Path(name))
    if bool(other.encoder.config.vocabulary) != (channels == 0):
        raise UserError(f"--against {name} is an encoder of {other.modality.name} data; name one of the same kind")
    return other.encoder, other.modality


class Partial:
    """Rows measured so far, kept on disk, so that the same evaluation goes on where it was stopped."""

    def __init__(self, file: Path, key: str) -> None:
        self.file, self.key = file, key
        found = load_json(file) if file.is_file() else {}
        self.rows: list[Row] = found["rows"] if found.get("key") == key else []

    def add(self, row: Row) -> None:
        """Keep one more row."""
        self.rows = [*self.rows, row]
        disk.write_json(self.file, {"key": self.key, "rows": self.rows})


def home(run: Path) -> Path:
    """The folder that results go to: the run's or the fine-tuned model's, also where its bundle is named."""
    of_run = any((run.parent / name).is_file() for name in ("recipe.json", "finetune.json"))
    return run.parent if run.name == "encoder" and of_run else run


class Shifted:
    """Progress of one part of a whole: its count starts where the parts before it ended."""

    def __init__(self, meter: Meter, start: int) -> None:
        self.meter, self.start = meter, start

    def __call__(self, done: int, total: int) -> None:
        self.meter.update(self.start + done)


def feature_sets(
    loaded: bundle.Bundle, parts: Split, against: tuple[str, ...], where: torch.device, quiet: bool
) -> dict[str, tuple[Tensor, Tensor]]:
    """Features (probe samples, test samples) of the encoder, of its random initialisation, of named ones, and raw."""
    config = loaded.encoder.config
    sets = {"pretrained": (loaded.encoder, loaded.modality)}
    # The control is the very draw of weights that the run began with, not another one.
    sets["random_init"] = (build(config.bare(), rng.fold(loaded.info.get("seed", 0)) >> 1), loaded.modality)
    for name in against:
        sets[name] = off_the_shelf(name, config.size, config.channels)
    matrices: dict[str, tuple[Tensor, Tensor]] = {}
    kind, samples = kind_called(parts.test.kind), ((parts.train, parts.train_index), (parts.test, parts.test_index))
    read = {  # once for each preprocessing there is
        id(modality): [kind.reading(source, modality, index, quiet) for source, index in samples]
        for _, modality in sets.values()
    }
    total = sum(len(reading.rows) for _, modality in sets.values() for reading in read[id(modality)])
    with Meter("encode", total, quiet=quiet) as meter:
        done = 0
        for name, (encoder, modality) in sets.items():
            both = []
            for reading, (_, index) in zip(read[id(modality)], samples, strict=True):
                found = features.encode(encoder, modality, reading.source, reading.rows, where, Shifted(meter, done))
                both.append(reading.joined(found, len(index)))
                done += len(reading.rows)
            matrices[name] = (both[0], both[1])
    matrices["raw"] = kind.raw(loaded.modality, *samples)
    return matrices


def readable(
    parts: Split, matrices: dict[str, tuple[Tensor, Tensor]]
) -> tuple[Split, dict[str, tuple[Tensor, Tensor]]]:
    """Without the samples that could not be read when their turn came: their features are another sample's."""
    train, test = parts.train_index, parts.test_index
    kept = parts.train.readable(train), parts.test.readable(test)
    if kept[0].all() and kept[1].all():
        return parts, matrices
    rows = [torch.from_numpy(k) for k in kept]
    fewer = {name: (both[0][rows[0]], both[1][rows[1]]) for name, both in matrices.items()}
    protocol = {**parts.protocol, "left_out_as_unreadable": int((~kept[0]).sum() + (~kept[1]).sum())}
    return replace(parts, train_index=train[kept[0]], test_index=test[kept[1]], protocol=protocol), fewer


def evaluate(run: Path, loaded: bundle.Bundle, data: Any, source: Source, asked: Asked) -> dict[str, Any]:
    """Probe and kNN over label budgets, and what a language model predicts of unseen text, which needs no labels.

    Writes evaluation.json, the map and report.html; prints the table.
    """
    same_kind(source, loaded.modality, data)
    seed, quiet = asked.seed, asked.quiet
    seen, where = seen_hashes(run), torch.device(pick_device(asked.device))
    if not quiet and not len(seen):
        say(f"'{run}' has no seen.npy: what it was trained on is unknown, and it may be tested on it")
    predicted = likelihood(run, loaded, source, seen, seed, where, quiet)
    result: dict[str, Any] = {
        "protocol": {} if len(seen) else {"seen_by_pretraining": UNKNOWN},
        "data": str(data) if isinstance(data, str | Path) else "DATA",
        "data_hash": source.fingerprint,
        "asked": asked.said(),
        "recipe_hash": loaded.info.get("recipe_hash"),
        "verdict": [],
        "rows": [],
    }
    parts = pretrained = None
    if predicted is None or (source.labels is not None and (source.labels >= 0).any()):
        others = others_saw(asked.against, quiet)
        parts = split(data, asked.train, seen, read_size(loaded, asked.against), quiet, source, others)
        matrices = feature_sets(loaded, parts, asked.against, where, quiet)
        parts, matrices = readable(parts, matrices)
        pretrained = matrices["pretrained"][1]
        _probe(run, loaded, parts, matrices, asked, result)
    elif not quiet:
        say(f"'{data}' has no labels, which probes need: {kind_called(source.kind).unlabelled}")
    if predicted is not None:
        result["protocol"] |= predicted.protocol
        result["verdict"] += predicted.verdict
        result["rows"] += predicted.rows
    _keep(run, result, parts, pretrained, seed, quiet)
    return result


def _probe(
    run: Path,
    loaded: bundle.Bundle,
    parts: Split,
    matrices: dict[str, tuple[Tensor, Tensor]],
    asked: Asked,
    result: dict[str, Any],
) -> None:
    """Probe and kNN over label budgets, into `result`; what an interrupted call measured is not measured again."""
    assert parts.train.labels is not None
    assert parts.test.labels is not None
    question: list[Any] = [
        loaded.info.get("recipe_hash"),
        parts.protocol,
        parts.train.fingerprint,
        parts.test.fingerprint,
    ]
    question += [asked.labels, asked.against, asked.draws, asked.seed]
    partial = Partial(home(run) / "evaluation.partial.json", digest(question))
    with Meter("probe", 1, quiet=asked.quiet) as meter:

        def progress(done: int, total: int) -> None:
            meter.total = total
            meter.update(done)

        rows = efficiency.curve(
            matrices,
            torch.from_numpy(parts.train.labels[parts.train_index]),
            torch.from_numpy(parts.test.labels[parts.test_index]),
            shares=[x for x in asked.labels if x <= 1],
            counts=[round(x) for x in asked.labels if x > 1],
            draws=asked.draws,
            seed=asked.seed,
            measures=("linear_probe", "knn"),
            done=partial.rows,
            save=partial.add,
            progress=progress,
        )
    result |= {
        "protocol": {
            **parts.protocol,
            "train_samples": len(parts.train_index),
            "test_samples": len(parts.test_index),
            "classes": len(parts.train.classes),
            "draws": asked.draws,
            "interval": "95 %, bootstrap over draws and test samples",
            "raw": kind_called(parts.test.kind).raw_is,
            "hyperparameters": "chosen on parts of the labelled training samples",
        },
        "verdict": [line[0].upper() + line[1:] + "." for line in verdict(rows)],
        "rows": rows,
    }


def _keep(run: Path, result: dict[str, Any], parts: Split | None, found: Tensor | None, seed: int, quiet: bool) -> None:
    """Write what was found into the run folder and show it."""
    folder = home(run)
    disk.write_json(folder / "evaluation.json", result)
    (folder / "evaluation.partial.json").unlink(missing_ok=True)
    if parts is not None and found is not None:
        _map(folder, parts, found, seed)
    page = write_report(folder)
    if not quiet:
        show(results_table(result))
        say(f"report: {page}")


def _map(folder: Path, parts: Split, found: Tensor, seed: int) -> None:
    """The map of the tested samples' features, where they can be pictured."""
    some = np.sort(rng.permutation(len(parts.test_index), seed, 6)[:_ATLAS])
    chosen = parts.test_index[some]
    labels = None if parts.test.labels is None else parts.test.labels[chosen]
    thumbs = kind_called(parts.test.kind).thumbnails(parts.test, chosen)
    if thumbs is not None:
        names = [parts.test.names[int(i)] for i in chosen]
        features, total = found[torch.from_numpy(some)].numpy(), len(parts.test_index)
        atlas = make_atlas(features, thumbs, names, labels, parts.test.classes, seed, total)
        with disk.filling(folder):
            atlas.save(folder)
