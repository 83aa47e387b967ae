"""Where the words of a text begin, and the segmenter that knows it of Chinese."""

import functools
import re
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from selftaught.errors import UserError

_CHINESE = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]{2,256}")
"""Runs of Chinese; longer ones in pieces, because the time jieba takes grows with the square of a run of rare characters."""


class Segmenter:
    """Chinese words by jieba's dictionary and hidden Markov model, in place of single characters.

    name: as in `text.words`. key: name and version, which what was made with it depends on.

    Raises UserError for an unknown name, and where jieba is not installed.
    """

    def __init__(self, name: str) -> None:
        if name != "jieba":
            raise UserError(
                f"text.words '{name}' is unknown; use jieba, or leave it out: each character is a word then"
            )
        self.name = name
        self.key = f"{name}-{_jieba()[1]}"

    def inside(self, text: str) -> np.ndarray:
        """bool [len(text)]: which characters go on with a Chinese word; those that begin one are not."""
        cut, out = _jieba()[0].lcut, np.zeros(len(text), bool)
        for run in _CHINESE.finditer(text):
            out[run.start() : run.end()] = True
            begins = np.cumsum([0, *(len(word) for word in cut(run.group()))])[:-1]
            out[run.start() + begins] = False
        return out


@functools.cache
def _jieba() -> tuple[Any, str]:
    """jieba's segmenter with its own dictionary, and its version.

    The dictionary is read here and not by jieba, which would say so on standard error, and first look for a marshalled
    copy in the temporary folder, where anyone may have put one.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its regular expressions and of pkg_resources
            import jieba
    except ImportError as error:
        raise UserError("text.words=jieba needs the extra 'chinese': pip install 'selftaught[chinese]'") from error
    segmenter = jieba.Tokenizer()
    segmenter.FREQ, segmenter.total = segmenter.gen_pfdict(segmenter.get_dict_file())
    segmenter.initialized = True
    return segmenter, str(jieba.__version__)


def word_starts(
    text: str,
    words: Sequence[int | None],
    offsets: Sequence[tuple[int, int]],
    inside: np.ndarray | None = None,
) -> np.ndarray:
    """Which tokens begin a word, bool [n]: whole-word masking hides a word's tokens together.

    words, offsets: of each token, as the tokenizer says. A word begins where its pre-tokenizer says so, and besides at
    and after each punctuation mark and each Chinese, Japanese or Thai character: those scripts are written without
    spaces, so that a run of them is no word. inside: bool [characters], those that go on with a word that a segmenter
    found (`Segmenter.inside`): there none begins, whatever else would say so.
    """
    n = len(words)
    if n == 0:
        return np.ones(0, bool)
    codes = np.frombuffer((text + " ").encode("utf-32-le", "surrogatepass"), np.uint32)
    begin = np.array(offsets, np.int64).reshape(n, 2)[:, 0]
    begin = np.minimum(begin + _space(codes[np.minimum(begin, len(codes) - 1)]), len(codes) - 1)
    word = np.array([-1 if w is None else w for w in words])
    alone = _alone(codes)
    starts = np.ones(n, bool)
    further = begin[1:] > begin[:-1]  # else a byte of the same character
    apart = alone | _space(codes)
    starts[1:] = (word[1:] != word[:-1]) | (further & (alone[begin[1:]] | apart[begin[1:] - 1]))
    if inside is not None:
        starts[1:] &= ~np.append(inside, False)[begin[1:]]
    return starts


def unspaced(text: str) -> str:
    """A text without single spaces between characters of the scripts of China and Japan, which put none between words."""
    return _BETWEEN.sub("", text)


def _space(codes: np.ndarray) -> np.ndarray:
    return (codes == 32) | ((codes >= 9) & (codes <= 13)) | (codes == 0xA0) | (codes == 0x3000)


# Blocks whose characters are each a word of their own: scripts without spaces, and punctuation.
_ALONE = np.array(
    [
        *((0x21, 0x2F), (0x3A, 0x40), (0x5B, 0x60), (0x7B, 0x7E), (0xA1, 0xBF)),  # ASCII and Latin-1 punctuation
        *((0x0E00, 0x0E7F), (0x0E80, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF)),  # Thai, Lao, Burmese, Khmer
        (0x2000, 0x206F),  # general punctuation
        *((0x2E80, 0x30FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF)),  # CJK, kana
        *((0xFE30, 0xFE4F), (0xFF00, 0xFF0F), (0xFF1A, 0xFF20), (0xFF3B, 0xFF40), (0xFF5B, 0xFF65)),  # wide punctuation
    ]
)


def _alone(codes: np.ndarray) -> np.ndarray:
    block = np.searchsorted(_ALONE_FIRST, codes, side="right") - 1
    return (block >= 0) & (codes <= _ALONE_LAST[block])


_ALONE_FIRST, _ALONE_LAST = _ALONE[_ALONE[:, 0].argsort()].T
_EASTERN = "".join(f"{chr(first)}-{chr(last)}" for first, last in _ALONE.tolist() if first >= 0x2E80)
_BETWEEN = re.compile(f"(?<=[{_EASTERN}]) (?=[{_EASTERN}])")
