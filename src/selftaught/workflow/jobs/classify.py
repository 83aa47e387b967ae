"""Classification: accuracy on samples that pretraining never saw."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from selftaught.bundle import Bundle
from selftaught.data import Source
from selftaught.downstream.base import describe
from selftaught.downstream.classify import Classify
from selftaught.encoders import Encoder
from selftaught.errors import say
from selftaught.evaluation.efficiency import draw_labels
from selftaught.evaluation.features import raw_batches
from selftaught.evaluation.intervals import Interval, bootstrap, difference
from selftaught.modality.base import Modality
from selftaught.settings import from_json, to_json
from selftaught.train.progress import Meter
from selftaught.workflow.evaluate import Split, seen_hashes, split
from selftaught.workflow.jobs.base import Job, not_of_set
from selftaught.workflow.kinds import kind_called
from selftaught.workflow.prepare import open_source, same_kind, still_readable


class Classifying(Job):
    """One class a sample."""

    name, folder, file = "classify", "finetune", "head.safetensors"
    gain = {"accuracy": "accuracy"}  # noqa: RUF012

    def parts(self, run: Path, loaded: Bundle, data: Any, test: Any, quiet: bool) -> Split:
        """With a test set of its own DATA teaches; without one, DATA is split as evaluate splits it."""
        seen, size = seen_hashes(run), loaded.encoder.config.size
        parts = split(data, None, seen, size, quiet) if test is None else split(test, data, seen, size, quiet)
        same_kind(parts.train, loaded.modality, data)
        train = _whole(parts.train, loaded.modality, quiet)
        test = train if parts.test is parts.train else _whole(parts.test, loaded.modality, quiet)
        both = [train] if test is train else [train, test]
        cut = sum(kind_called(s.kind).cut_short(s, loaded.modality) for s in both)
        protocol = {**parts.protocol, **({"read_by_their_beginning": cut} if cut else {})}
        return replace(parts, train=train, test=test, protocol=protocol)

    def draw(self, parts: Split, amount: float, seed: int) -> np.ndarray:
        assert parts.train.labels is not None
        labels = torch.from_numpy(parts.train.labels[parts.train_index])
        # To draw_labels a share is a float and a number per class an int; 1 is all labels, of either type.
        drawn = draw_labels(labels, float(amount) if amount <= 1 else round(amount), seed=seed, draw=0)
        return parts.train_index[drawn.numpy()]

    def describe(self, mode: str) -> dict[str, Any]:
        return describe(mode)

    def settings(self, mode: str, given: dict[str, Any]) -> dict[str, Any]:
        not_of_set(given, mode="--mode", classes="the data")
        return to_json(from_json(Classify.Config, {"mode": mode, "classes": 0, **given}, "task"))

    def facts(self, parts: Split, settings: dict[str, Any]) -> dict[str, Any]:
        return {"task": self.name, "classes": parts.train.classes, "smoothing": settings["smoothing"]}

    def build(self, encoder: Encoder, modality: Modality, facts: dict[str, Any], mode: str) -> Classify:
        return Classify(
            encoder, modality, Classify.Config(len(facts["classes"]), mode, float(facts.get("smoothing", 0)))
        )

    def weights(self, task: Classify) -> dict[str, Tensor]:
        return task.head.state_dict()

    def load(self, task: Classify, weights: dict[str, Tensor]) -> None:
        task.head.load_state_dict(weights)

    def measure(self, task: Classify, parts: Split, device: torch.device, quiet: bool) -> Tensor:
        """Which test samples are classified correctly, bool [n]."""
        assert parts.test.labels is not None
        found = _probabilities(task, parts.test, parts.test_index, device).argmax(1)
        correct = found == torch.from_numpy(parts.test.labels[parts.test_index])
        return correct[torch.from_numpy(parts.test.readable(parts.test_index))]

    def figures(self, found: Tensor, seed: int) -> dict[str, Interval]:
        return {"accuracy": bootstrap(found[None], seed=seed)}

    def differences(self, found: Tensor, other: Tensor, seed: int) -> dict[str, Interval]:
        return {"accuracy": difference(found[None], other[None], seed=seed)}

    def open(self, loaded: Bundle, data: Any, quiet: bool) -> Source:
        source = open_source(data, loaded.encoder.config.size, quiet)
        same_kind(source, loaded.modality, data)
        return _whole(source, loaded.modality, quiet)

    def predictions(
        self, task: Classify, facts: dict[str, Any], source: Source, device: torch.device, meter: Meter
    ) -> dict[str, list[Any]]:
        """The likeliest class of each sample, and its probability."""
        probabilities = _probabilities(task, source, np.arange(len(source)), device)
        meter.update(len(source))
        here = still_readable(source)
        best = probabilities[torch.from_numpy(here)].max(1)
        return {
            "name": [source.names[i] for i in here.tolist()],
            "class": [facts["classes"][i] for i in best.indices.tolist()],
            "probability": best.values.tolist(),
        }


def _whole(source: Source, modality: Modality, quiet: bool) -> Source:
    """As batches can be made of; says what is not read to its end."""
    kind = kind_called(source.kind)
    whole = kind.whole(source, modality, quiet)
    if (cut := kind.cut_short(whole, modality)) and not quiet:
        say(
            f"{cut} {kind.noun} are longer than the encoder reads; a class is told by their beginnings (pretrain: --size)"
        )
    return whole


def _probabilities(task: Classify, source: Source, index: np.ndarray, device: torch.device) -> Tensor:
    task.to(device).eval()
    with torch.inference_mode():
        return torch.cat([task.predict(batch).cpu() for batch in raw_batches(source, index, device)])
