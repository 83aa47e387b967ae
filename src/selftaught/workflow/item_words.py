"""What is known of items as numbers: their words and attributes by an encoder of text, or by TF-IDF."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from selftaught import bundle
from selftaught.data.events import EventSource
from selftaught.errors import UserError

WIDTH = 128
_AT_ONCE = 256


def width_of(words: str | None) -> int:
    """How many numbers an item gets. words: the run whose encoder reads; None: TF-IDF."""
    return WIDTH if words is None else _encoder(words).encoder.width


def item_vectors(source: EventSource, words: str | None) -> Tensor:
    """Of each item of a log float32 [V, F], rows of mean square 1; of one that nothing is known of zero.

    UserError where the log has no table of items.
    """
    if source.about is None:
        raise UserError(
            "this encoder reads what is known of the items, and the log has no table of them; add ?items=FILE to its path"
        )
    has: list[list[str]] = [[] for _ in source.items]
    for item, code in zip(source.about.item.tolist(), source.about.attribute.tolist(), strict=True):
        has[item].append(source.about.attributes[code])
    texts = [" ".join([said, *more]).strip() for said, more in zip(source.about.words, has, strict=True)]
    found = _by_terms(texts) if words is None else _by_encoder(texts, words)
    found[torch.tensor([not text for text in texts])] = 0.0
    return found * torch.rsqrt(found.square().mean(1, keepdim=True) + 1e-12)


def _by_terms(texts: list[str]) -> Tensor:
    """TF-IDF of words and of what is inside them, its leading directions (latent semantic analysis)."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import make_union
    from sklearn.utils.extmath import randomized_svd

    both = make_union(
        TfidfVectorizer(token_pattern=r"[^\s]+", sublinear_tf=True, dtype=np.float32),
        TfidfVectorizer(
            analyzer="char_wb", ngram_range=(2, 4), sublinear_tf=True, max_features=50_000, dtype=np.float32
        ),
    )
    try:
        terms = both.fit_transform(texts)
    except ValueError as error:
        raise UserError(f"the words of the items hold no term: {error}") from error
    left, value, _ = randomized_svd(terms, min(WIDTH, *(n - 1 for n in terms.shape)), random_state=0)
    found = torch.zeros(len(texts), WIDTH)
    found[:, : left.shape[1]] = torch.from_numpy(left * value).float()
    return found


def _by_encoder(texts: list[str], words: str) -> Tensor:
    loaded = _encoder(words)
    parts = (texts[i : i + _AT_ONCE] for i in range(0, len(texts), _AT_ONCE))
    return torch.cat([loaded([text or " " for text in part]).float().clone() for part in parts])


def _encoder(words: str) -> bundle.Bundle:
    loaded = bundle.load(Path(words))
    if loaded.modality.name != "text":
        raise UserError(f"'{words}' is an encoder of {loaded.modality.name} data; event.words needs one of text")
    return loaded
