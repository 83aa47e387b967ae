"""Two texts in one sequence, [CLS] A [SEP] B [SEP]: what follows what, and in which order.

The pairs are made of a batch: each text is cut at a random sentence end. `google-research/bert` and
`google-research/albert` (create_pretraining_data.py) make them once, before training.
"""

import functools
import re
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from selftaught.batch import Batch, Seen, Share, Shown, Tokens
from selftaught.modality.text import TextModality
from selftaught.modality.text.tokenizer import Tokenizer

Order = Literal["nsp", "sop"]
SHORT = 0.1
"""Share of the sequences that are shortened at random, so that short ones are seen too (short_seq_prob)."""

_END = re.compile("[.!?。！？…]+[\"'”’」』)）]*$")
_SHORTER, _CUT, _ORDER, _FRONT = 11, 12, 13, (14, 15)  # streams of randomness
_GAP = 3  # special tokens of a pair
_ANSWERS = {"nsp": ("B follows A", "B is of another document"), "sop": ("A comes before B", "A and B are swapped")}


class Pairs(NamedTuple):
    """tokens: [CLS] A [SEP] B [SEP], segments 0 and 1. label int64 [B]: 0 as in the document, 1 not (NSP: B is of another
    document; SOP: the later part comes first). known bool [B]: False where a text could not be cut, and has no B."""

    tokens: Tokens
    label: Tensor
    known: Tensor


@functools.lru_cache(maxsize=8)
def _tables(tokenizer: Tokenizer) -> tuple[Tensor, Tensor]:
    """Which tokens of the vocabulary end a sentence, and which begin with a digit: bool [V] each."""
    words = [tokenizer.decode([i]).strip() for i in range(tokenizer.vocabulary)]
    ends = torch.tensor([bool(_END.search(w)) for w in words])
    return ends, torch.tensor([w[:1].isdigit() for w in words])


class _Places(NamedTuple):
    """Before which tokens of each text a sentence other than its first begins, and a word: bool [B, L]; and whether its last
    token ends a sentence, bool [B]."""

    sentence: Tensor
    word: Tensor
    closed: Tensor


def _places(modality: TextModality, ids: Tensor, starts: Tensor, length: Tensor) -> _Places:
    ends, digit = (table.to(ids.device) for table in _tables(modality.tokenizer))
    word = starts.clone()
    word[:, :1] = False
    word &= torch.arange(ids.shape[1], device=ids.device) < length[:, None]
    sentence = torch.zeros_like(word)
    sentence[:, 1:] = word[:, 1:] & ends[ids[:, :-1]] & ~digit[ids[:, 1:]]  # no cut in 3.5
    last = ids.gather(1, (length - 1).clamp_min(0)[:, None])[:, 0]
    return _Places(sentence, word, ends[last])


def cuts(modality: TextModality, ids: Tensor, starts: Tensor, length: Tensor) -> Tensor:
    """Where each text may be cut in two: bool [B, L], before which tokens. ids, starts [B, L]; length int64 [B].

    After the end of a sentence; in a text without one, before any word. A mark that the tokenizer cuts into bytes (byte-level
    BPE that saw little Chinese) ends no sentence.
    """
    return _cuts(_places(modality, ids, starts, length))


def _cuts(places: _Places) -> Tensor:
    return torch.where(places.sentence.any(1, keepdim=True), places.sentence, places.word)


def _whole_sentences(places: _Places, length: Tensor, edges: Tensor) -> tuple[Tensor, Tensor]:
    """From which token, and before which, each text holds whole sentences: int64 [B] each; all of a text without an end of one.

    edges: bool [B, 2], where the text begins and ends as its document does. Elsewhere it was cut by its length, and half a
    sentence at its edge would give the order of the parts away.
    """
    sentence, _, closed = places
    bounds = torch.cat([sentence, torch.zeros_like(sentence[:, :1])], 1)
    bounds[:, 0] = edges[:, 0]
    bounds.scatter_(1, length[:, None], (closed | edges[:, 1])[:, None])
    some = sentence.any(1)
    begin, back = bounds.long().argmax(1), bounds.flip(1).long().argmax(1)
    return torch.where(some, begin, 0), torch.where(some, sentence.shape[1] - back, length)


def pairs(modality: TextModality, batch: Batch, order: Order) -> Pairs:
    """Pairs of a batch of texts; a function of (seed, step, samples).

    nsp: rows 2i and 2i + 1 exchange their second parts with probability 1/2, if they are of two documents; then the
    longer part loses tokens at its front or back, each at random, until the pair fits (BERT). An odd last row keeps its own.
    sop: the two parts, of whole sentences, change places with probability 1/2 (ALBERT).
    """
    ids, starts, given = batch.inputs["ids"], batch.inputs["starts"], batch.inputs["length"]
    length = _shortened(batch, given.clamp_max(modality.size - _GAP))
    b, width = ids.shape
    rows = torch.arange(b, device=ids.device)
    if width == 0:
        tokens = modality.plain(batch)
        return Pairs(tokens._replace(segments=torch.zeros_like(tokens.ids)), torch.zeros_like(rows), rows < 0)
    places = _places(modality, ids, starts, length)
    begin, end = torch.zeros_like(length), length
    if order == "sop":
        edges = batch.inputs["edges"].clone()
        edges[:, 1] &= length == given
        begin, end = _whole_sentences(places, length, edges)
    at = torch.arange(width, device=ids.device)
    possible = _cuts(places) & (at > begin[:, None]) & (at < end[:, None])
    known = possible.any(1)
    cut = batch.uniform(_CUT, width).masked_fill(~possible, -1.0).argmax(1)
    begin, end = torch.where(known, begin, 0), torch.where(known, end, length)
    cut = torch.where(known, cut, length)
    first, second = _Part(rows, begin, cut - begin), _Part(rows, cut, end - cut)
    coin = batch.uniform(_ORDER, 1)[:, 0] < 0.5
    if order == "sop":
        label = coin & known
        first, second = _Part.where(label, second, first), _Part.where(label, first, second)
    else:
        partner = torch.where((rows ^ 1) < b, rows ^ 1, rows)
        document = batch.inputs["document"]
        able = known & known[partner] & (document != document[partner])
        label = coin[rows & ~1] & able  # one coin for both rows
        second = _Part.where(label, _Part(*(x[partner] for x in second)), second)
        first, second = _fitting(batch, first, second, modality.size - _GAP)
    return Pairs(_joined(modality.tokenizer, ids, starts, first, second), label.long(), known)


def shown(found: Pairs, order: Order) -> Shown:
    """Pairs for people: both texts, what is to be told of them, and how often either answer is right."""
    known, label = found.known.tolist(), found.label.tolist()
    answers = tuple(_ANSWERS[order][y] if there else "too short to be cut in two" for y, there in zip(label, known))
    pairs, n = sum(known), len(known)
    shares = {"texts cut in two": Share(pairs, n), _ANSWERS[order][1]: Share(sum(label), pairs, 0.5)}
    return Shown((Seen("reads", found.tokens),), shares, answers)


class _Part(NamedTuple):
    """A run of tokens for each row of a batch: from which row, from which token, how many; int64 [B] each."""

    row: Tensor
    begin: Tensor
    length: Tensor

    @staticmethod
    def where(condition: Tensor, one: "_Part", other: "_Part") -> "_Part":
        return _Part(*(torch.where(condition, x, y) for x, y in zip(one, other)))


def _shortened(batch: Batch, length: Tensor) -> Tensor:
    """A tenth of the texts cut to a random length of at least two tokens."""
    u = batch.uniform(_SHORTER, 2)
    shorter = 2 + (u[:, 1] * (length - 1)).floor().long()
    return torch.where((u[:, 0] < SHORT) & (length > 2), torch.minimum(shorter, length), length)


def _fitting(batch: Batch, first: _Part, second: _Part, room: int) -> tuple[_Part, _Part]:
    """Both parts within `room` tokens: the longer one loses a token at a time, at its front or back at random."""
    a, b = first.length, second.length
    new_a = torch.minimum(a, (room - b).clamp_min((room + 1) // 2))
    new_b = torch.minimum(b, room - new_a)
    lost = (a - new_a, b - new_b)
    most = int(torch.maximum(*lost).max()) + 1
    at = torch.arange(most, device=a.device)
    front = [((batch.uniform(stream, most) < 0.5) & (at < n[:, None])).sum(1) for stream, n in zip(_FRONT, lost)]
    return (
        first._replace(begin=first.begin + front[0], length=new_a),
        second._replace(begin=second.begin + front[1], length=new_b),
    )


def _joined(t: Tokenizer, ids: Tensor, starts: Tensor, first: _Part, second: _Part) -> Tokens:
    """[CLS] first [SEP] second [SEP]; without the last where there is no second part."""
    a, b = first.length[:, None], second.length[:, None]
    total = 2 + a + b + (b > 0)
    at = torch.arange(int(total.max()), device=ids.device)
    valid = at < total
    in_first, in_second = (at > 0) & (at <= a), (at > a + 1) & (at <= a + 1 + b)
    row = torch.where(in_second, second.row[:, None], first.row[:, None])
    column = torch.where(in_second, second.begin[:, None] + at - a - 2, first.begin[:, None] + at - 1)
    source = (row, column.clamp(0, ids.shape[1] - 1))
    text = in_first | in_second
    out = torch.where(text, ids[source], torch.where(valid, t.last, t.pad))
    out[:, 0] = t.first
    begins = starts[source] | ~text | (at == 1) | (at == a + 2)  # a part that lost its front begins a word all the same
    return Tokens(out, valid, begins, ((at > a + 1) & valid).long())
