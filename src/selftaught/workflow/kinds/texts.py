"""Text: tokenized once, cut into pieces for pretraining, compared with TF-IDF."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from selftaught.batch import Shown
from selftaught.data.cache import cache_or_none, show_bytes
from selftaught.data.text_audit import audit_texts, text_offers
from selftaught.data.texts import TextSource
from selftaught.data.tokens import TokenSource, tokenized
from selftaught.encoders import EncoderConfig
from selftaught.encoders.transformers_models import describe
from selftaught.errors import UserError
from selftaught.modality.text import TextModality, Tokenizer
from selftaught.modality.text.running import RunningText
from selftaught.modality.text.spans import Span, spans
from selftaught.settings import from_json
from selftaught.train.progress import Meter
from selftaught.workflow.kinds.base import Audited, Kind, Reading, Training, counted, leaked

TERMS = 4096
"""Terms of TF-IDF: the commonest words and pairs of them, or characters and pairs where words are not separated."""


WEIGHTS = ("model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True)
class Settings:
    """tokenizer: wordpiece, bpe, unigram or char, trained on the training documents; or a local Hugging Face folder.
    vocabulary: its tokens, at most. words: jieba: hide Chinese by its words where pretext.words is true; empty: by the
    character. running: the documents are pieces of running text; pretraining (clm) reads windows from anywhere in them, and
    no token marks where one begins or ends."""

    tokenizer: str = "wordpiece"
    vocabulary: int = 8000
    words: str = ""
    running: bool = False


class Texts(Kind):
    """Documents."""

    name, unit, noun = "text", "tokens", "documents"
    largest_batch = {"cpu": 32, "cuda": 256}  # noqa: RUF012
    raw_is = f"TF-IDF of the {TERMS} commonest terms of the labelled texts"
    unlabelled = "put the documents into one folder per class, or name a label column (?label=COLUMN after the path)"

    def pick_size(self, source: TextSource, device: str, needs: frozenset[str]) -> int:
        return 128

    def fit(
        self, source: TextSource, size: int, train: np.ndarray, settings: dict[str, Any], encoder: str
    ) -> TextModality:
        """Train the tokenizer on the training documents, or load it; a local folder of weights brings its own."""
        chosen = from_json(Settings, {"tokenizer": encoder, **settings} if Path(encoder).is_dir() else settings, "text")
        modality = RunningText if chosen.running else TextModality
        if Path(chosen.tokenizer).is_dir():
            return modality(Tokenizer.load(Path(chosen.tokenizer), chosen.words), size)
        return modality(Tokenizer.train(source.texts(train), chosen.tokenizer, chosen.vocabulary, chosen.words), size)

    def choose(self, size: int, device: str, needs: frozenset[str]) -> str:
        if "causal" in needs:
            return "gpt2_nano" if device == "cpu" else "gpt2"
        return "bert_tiny" if device == "cpu" else "bert_small"

    def encoder(self, name: str, size: int, source: TextSource, modality: TextModality) -> EncoderConfig:
        config = EncoderConfig(name, size, 0, options=describe(name), vocabulary=modality.tokenizer.vocabulary)
        if not Path(name).is_dir():
            return config
        file = next((f for n in WEIGHTS if (f := Path(name) / n).is_file()), None)
        if file is None:
            raise UserError(f"'{name}' holds no weights; it needs {' or '.join(WEIGHTS)}")
        return replace(config, weights=str(file.resolve()))

    def whole(self, source: TextSource, modality: TextModality, quiet: bool) -> TokenSource:
        with Meter("tokenize", len(source), quiet=quiet) as meter:
            return tokenized(
                source, modality.tokenizer, modality.room, cache_or_none(), lambda done, _: meter.update(done)
            )

    def cut_short(self, whole: TokenSource, modality: TextModality) -> int:
        return int((whole.lengths > modality.room).sum())

    def base_lr(self, device: str, needs: frozenset[str], encoder: EncoderConfig) -> float:
        """2e-3 at batch 32 for an encoder 128 wide, less for wider ones; that of long runs on a GPU."""
        width = encoder.options.get("hidden_size") or encoder.options.get("n_embd") or 768
        return 5.6e-3 * (128 / width) ** 0.5 if device == "cpu" else 1e-3

    def training(
        self, source: TextSource, modality: TextModality, train: np.ndarray, held: np.ndarray, quiet: bool
    ) -> Training:
        """Pieces of the documents; a document's pieces are on its side of the split."""
        whole, documents = self.whole(source, modality, quiet), np.concatenate([train, held])
        pieces, owner = whole.windows(documents) if modality.running else whole.cut(documents)
        split = int((owner < len(train)).sum())
        return Training(pieces, np.arange(split), np.arange(split, len(pieces)))

    def reading(self, source: TextSource, modality: TextModality, index: np.ndarray, quiet: bool) -> Reading:
        """All pieces of the documents, so that long ones are read to their end."""
        pieces, owner = self.whole(source, modality, quiet).cut(index)
        return Reading(pieces, np.arange(len(pieces)), owner)

    def raw(
        self, modality: TextModality, train: tuple[TextSource, np.ndarray], test: tuple[TextSource, np.ndarray]
    ) -> tuple[Tensor, Tensor]:
        """TF-IDF with sublinear counts, its terms and weights from the training documents."""
        from sklearn.feature_extraction.text import TfidfVectorizer

        spaced = _is_spaced(train[0].texts(train[1][:200]))
        vectorizer = TfidfVectorizer(
            max_features=TERMS,
            ngram_range=(1, 2),
            sublinear_tf=True,
            analyzer="word" if spaced else "char",
            dtype=np.float32,
        )
        try:
            fitted = vectorizer.fit_transform(train[0].texts(train[1]))
        except ValueError as error:
            raise UserError(f"TF-IDF finds no term in these documents: {error}") from error
        return torch.from_numpy(fitted.toarray()), torch.from_numpy(
            vectorizer.transform(test[0].texts(test[1])).toarray()
        )

    def audit(self, source: TextSource, other: TextSource | None, quiet: bool) -> Audited:
        with Meter("look for copies", len(source) + (0 if other is None else len(other)), quiet=quiet) as meter:
            found = audit_texts(source, other, meter.update)
        low, middle, high = found.length
        copies = f"{found.exact_extra} exact copies, {found.near_count} documents with a near duplicate" + (
            f"; {found.conflicting} texts under several labels" if found.conflicting else ""
        )
        lines = [
            ("documents", f"{found.samples}, {show_bytes(found.bytes)}"),
            ("length", f"{low}-{high} characters, median {middle} ({found.words} words between spaces)"),
            ("scripts", ", ".join(f"{name} {share:.0%}" for name, share in found.scripts.items()) or "no letters"),
            ("classes", counted(found.classes, found.unlabelled, self.noun)),
            ("left out", f"{found.skipped_count}" + "".join(f"\n{n}: {r}" for n, r in found.skipped[:10])),
            ("duplicates", copies),
            *(("", " = ".join(group[:4])) for group in found.exact[:3]),
            *(("", " ~ ".join(group[:4])) for group in found.near[:3]),
            *leaked(found),
        ]
        return Audited(found.to_json(), text_offers(found), lines)

    def facts(self, source: TextSource) -> dict[str, Any]:
        return {"bytes": int(source.sizes.sum())}

    def thumbnails(self, source: TextSource, index: np.ndarray) -> None:
        return None

    def texts(self, modality: TextModality, shown: Shown, rows: int) -> list[list[tuple[str, list[Span]]]]:
        return [[text for seen in shown.seen for text in spans(modality, seen, row)] for row in range(rows)]


def _is_spaced(texts: Iterable[str]) -> bool:
    """Whether words are separated by spaces: at least one character in fifteen is one."""
    joined = "".join(text[:2000] for text in texts)
    return sum(character.isspace() for character in joined) * 15 >= len(joined)
