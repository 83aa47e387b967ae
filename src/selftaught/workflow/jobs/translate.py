"""Translation: BLEU and chrF on pairs of which pretraining saw neither side."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from selftaught import rng
from selftaught.bundle import Bundle
from selftaught.data import Source, holdout
from selftaught.data.cache import cache_or_none
from selftaught.data.text_pairs import PairSource, PairTokens, open_pairs, open_sources, tokenized_pairs
from selftaught.data.texts import TextSource
from selftaught.data.tokens import tokenized
from selftaught.downstream.base import describe
from selftaught.downstream.translate import TARGET, Translate
from selftaught.encoders import Encoder
from selftaught.errors import UserError, say
from selftaught.evaluation import translation
from selftaught.evaluation.features import raw_batches
from selftaught.evaluation.intervals import Interval
from selftaught.evaluation.translation import Translated
from selftaught.modality.base import Modality
from selftaught.modality.text import TextModality, Tokenizer
from selftaught.settings import from_json, to_json
from selftaught.train.progress import Meter
from selftaught.workflow.evaluate import UNKNOWN, Split, seen_hashes
from selftaught.workflow.jobs.base import Job, not_of_set
from selftaught.workflow.prepare import open_source

_LEAST_TEST = 20
_HELD_OUT = 0.1  # of pairs that pretraining knows nothing of
_DRAW = 13  # key of the pairs that are drawn
_LOOKED_AT = 500  # targets, to see whether the tokenizer gives texts back
_SPECIAL = 2  # tokens


class Translating(Job):
    """A text of another language, or of any other kind, for a text."""

    name, folder, file = "translate", "translate", "translator.safetensors"
    gain = {"bleu": "BLEU", "chrf": "chrF"}  # noqa: RUF012

    def parts(self, run: Path, loaded: Bundle, data: Any, test: Any, quiet: bool) -> Split:
        """With a test set of its own DATA teaches. Without one: pairs neither side of which was seen by pretraining are
        tested, or a tenth where it saw nothing of DATA. Pairs longer than the encoder reads teach nothing."""
        translation.metric([])  # refused before the work where the extra is missing
        modality = _text(loaded.modality)
        train = _tokens(open_pairs(data, _told(quiet)), modality, quiet)
        seen = seen_hashes(run)
        fresh = ~(np.isin(train.pairs.source.hashes, seen) | np.isin(train.pairs.target.hashes, seen))
        if test is not None:
            tested = _tokens(open_pairs(test, _told(quiet)), modality, quiet)
            new = ~(np.isin(tested.pairs.source.hashes, seen) | np.isin(tested.pairs.target.hashes, seen))
            leaked = new & np.isin(tested.hashes, train.hashes)
            teaching, testing = np.arange(len(train)), np.flatnonzero(new & ~leaked)
            protocol = {"split": "given", "left_out_as_duplicates": int(leaked.sum())}
            protocol |= {"seen_by_pretraining": int((~new).sum()) if len(seen) else UNKNOWN}
        else:
            tested = train
            if fresh.all():
                teaching, testing = holdout(train, _HELD_OUT)
                said = "pretraining saw nothing of it" if len(seen) else f"what pretraining saw is {UNKNOWN}"
                protocol = {"split": f"a tenth by content hash; {said}"}
            else:
                testing, said = np.flatnonzero(fresh), "neither side seen by pretraining"
                if 2 * len(testing) > len(train):  # a few sentences that it saw by chance would teach next to nothing
                    testing = np.intersect1d(testing, holdout(train, _HELD_OUT)[1])
                    said = f"a tenth by content hash, {said}"
                teaching = np.flatnonzero(~np.isin(train.hashes, train.hashes[testing]))
                protocol = {"split": said}
            protocol |= {"seen_by_pretraining": int((~fresh).sum()) if len(seen) else UNKNOWN}
        if len(testing) < _LEAST_TEST:
            raise UserError(
                f"only {len(testing)} pairs are left to test on, unseen by pretraining; at least {_LEAST_TEST} are needed: "
                "name a test set with --test"
            )
        fits = train.fitting(modality.size - _SPECIAL)[teaching]
        protocol |= {**train.pairs.left_out(), "left_out_as_too_long": int((~fits).sum())}
        protocol |= {"bleu": translation.signature(list(tested.pairs.target.texts(testing[:1000])))}
        protocol |= {"interval": "95 %, bootstrap over test sentences"}
        protocol |= {"tokenizer_gives_back": _given_back(train.pairs, modality.tokenizer, quiet)}
        return Split(train, teaching[fits], tested, testing, protocol)

    def draw(self, parts: Split, amount: float, seed: int) -> np.ndarray:
        n = len(parts.train_index)
        wanted = max(1, round(amount * n)) if amount <= 1 else round(amount)
        if wanted > n:
            raise UserError(f"--labels {amount:g} asks for more than the {n} pairs there are; use {n} or less")
        return parts.train_index[np.sort(rng.permutation(n, seed, _DRAW)[:wanted])]

    def hashes(self, parts: Split, index: np.ndarray) -> np.ndarray:
        """Of both sides: pretraining reads texts."""
        assert isinstance(parts.train, PairTokens)
        pairs = parts.train.pairs
        return np.concatenate([pairs.source.hashes[index], pairs.target.hashes[index]])

    def describe(self, mode: str) -> dict[str, Any]:
        return {**describe(mode), "betas": [0.9, 0.98], "clip_norm": 1.0}

    def settings(self, mode: str, given: dict[str, Any]) -> dict[str, Any]:
        not_of_set(given, mode="--mode")
        return to_json(from_json(Translate.Config, {"mode": mode, **given}, "task"))

    def facts(self, parts: Split, settings: dict[str, Any]) -> dict[str, Any]:
        return {"task": self.name, "translate": settings}

    def build(self, encoder: Encoder, modality: Modality, facts: dict[str, Any], mode: str) -> Translate:
        config = from_json(Translate.Config, {**facts["translate"], "mode": mode}, "task")
        return Translate(encoder, modality, config)

    def weights(self, task: Translate) -> dict[str, Tensor]:
        return {name: x for name, x in task.state_dict().items() if not name.startswith("encoder.")}

    def load(self, task: Translate, weights: dict[str, Tensor]) -> None:
        own = {f"encoder.{name}": x for name, x in task.encoder.state_dict().items()}
        task.load_state_dict({**own, **weights})

    def measure(self, task: Translate, parts: Split, device: torch.device, quiet: bool) -> Translated:
        assert isinstance(parts.test, PairTokens)
        with Meter("translate", len(parts.test_index), quiet=quiet) as meter:
            found = _translations(task, parts.test, parts.test_index, device, meter)
        return translation.counts(found, list(parts.test.pairs.target.texts(parts.test_index)))

    def figures(self, found: Translated, seed: int) -> dict[str, Interval]:
        return {name: translation.interval(found, name, seed=seed) for name in translation.METRICS}

    def differences(self, found: Translated, other: Translated, seed: int) -> dict[str, Interval]:
        return {name: translation.difference(found, other, name, seed=seed) for name in translation.METRICS}

    def open(self, loaded: Bundle, data: Any, quiet: bool) -> TextSource:
        """The sources of pairs, or texts of any form."""
        source = open_sources(data, _told(quiet)) or open_source(data, None, quiet)
        if not isinstance(source, TextSource):
            raise UserError(f"'{data}' holds {source.kind} data, which cannot be translated; name texts")
        return source

    def predictions(
        self, task: Translate, facts: dict[str, Any], source: TextSource, device: torch.device, meter: Meter
    ) -> dict[str, list[Any]]:
        limit = task.modality.size - _SPECIAL
        tokens = tokenized(source, task.modality.tokenizer, limit, cache_or_none(), lambda done, total: None)
        if cut := int((tokens.lengths > limit).sum()):
            say(f"{cut} texts have more than the {limit} tokens that the encoder reads; their ends are not translated")
        index = np.arange(len(source))
        return {
            "name": list(source.names),
            "source": list(source.texts(index)),
            "translation": _translations(task, tokens, index, device, meter),
        }


def _text(modality: Modality) -> TextModality:
    if not isinstance(modality, TextModality):
        raise UserError(
            f"task 'translate' works on text, not on {modality.name}; pretrain on the text of both languages"
        )
    return modality


def _told(quiet: bool) -> Any:
    return (lambda line: None) if quiet else say


def _tokens(pairs: PairSource, modality: TextModality, quiet: bool) -> PairTokens:
    with Meter("tokenize", 2 * len(pairs), quiet=quiet) as meter:
        return tokenized_pairs(
            *(pairs, modality.tokenizer, modality.size - _SPECIAL, cache_or_none(), TARGET),
            lambda done, _: meter.update(done),
        )


def _given_back(pairs: PairSource, tokenizer: Tokenizer, quiet: bool) -> float:
    """Share of the targets that the tokenizer can give back as they are, but for white space."""
    index = np.arange(len(pairs))[:: max(1, len(pairs) // _LOOKED_AT)]
    texts = list(pairs.target.texts(index, head=2000))
    found = [tokenizer.decode(tokens.ids.tolist()) for tokens in tokenizer.encode(texts)]
    share = sum(a.split() == b.split() for a, b in zip(texts, found, strict=True)) / len(texts)
    if share < 0.9 and not quiet:
        say(
            f"the tokenizer gives back {share:.0%} of the targets as they are (it may drop case and accents), and no "
            "translation can be better than that; pretrain with --set text.tokenizer=bpe"
        )
    return round(share, 4)


def _translations(task: Translate, source: Source, index: np.ndarray, device: torch.device, meter: Meter) -> list[str]:
    """Translations in the order of `index`, made in order of length: what is together then ends together."""
    task.to(device).eval()
    lengths: Any = source.source.lengths if isinstance(source, PairTokens) else source.lengths  # type: ignore[attr-defined]
    order = np.argsort(lengths[index], kind="stable")
    found: list[str] = []
    with torch.inference_mode():
        for batch in raw_batches(source, index[order], device):
            found += task.predict(batch)
            meter.update(len(found))
    back = np.argsort(order, kind="stable")
    return [found[i] for i in back.tolist()]
