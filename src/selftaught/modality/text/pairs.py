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

_MARKS, _CLOSING = ".!?。！？…", "\"'”’」』)）\\]"
_END = re.compile(f"[{_MARKS}]+[{_CLOSING}]*$")
_TAIL = re.compile(f"[{_MARKS}{_CLOSING}]+")
_SHORTER, _CUT, _ORDER = 11, 12, 13  # streams of randomness
_GAP = 3  # special tokens of a pair
_ANSWERS = {"nsp": ("B follows A", "B is of another document"), "sop": ("A comes before B", "A and B are swapped")}


class Pairs(NamedTuple):
    """tokens: [CLS] A [SEP] B [SEP], segments 0 and 1. label int64 [B]: 0 as in the document, 1 not (NSP: B is of another
    document; SOP: the later part comes first). known bool [B]: False where a text could not be cut, and has no B."""

    tokens: Tokens
    label: Tensor
    known: Tensor


class _Tables(NamedTuple):
    """Of each token of the vocabulary, bool [V]: whether it ends a sentence, holds nothing but what may stand behind such an
    end (further marks, closing quotes and brackets), and begins with a digit; int64 [V]: the code of the white space that it
    begins with, 0 for none."""

    ends: Tensor
    tail: Tensor
    digit: Tensor
    lead: Tensor


@functools.lru_cache(maxsize=8)
def _tables(tokenizer: Tokenizer) -> _Tables:
    before = tokenizer.decode([tokenizer.unknown])  # at the beginning of a text Metaspace's decoder drops a space
    texts = [tokenizer.decode([tokenizer.unknown, i]).removeprefix(before) for i in range(tokenizer.vocabulary)]
    if tokenizer.spaces == "forgotten":
        texts = [t.strip() for t in texts]
    return _Tables(
        torch.tensor([bool(_END.search(t.strip())) for t in texts]),
        torch.tensor([bool(_TAIL.fullmatch(t.rstrip())) for t in texts]),
        torch.tensor([t.strip()[:1].isdigit() for t in texts]),
        torch.tensor([ord(t[0]) if t[:1].isspace() else 0 for t in texts]),
    )


class _Places(NamedTuple):
    """cuts bool [B, L]: before which tokens each text may be cut. some bool [B]: whether sentences begin there, else words.
    closed bool [B]: whether its last token ends a sentence. alike bool [B]: whether its first token has the same white space
    before it as all tokens at the cuts."""

    cuts: Tensor
    some: Tensor
    closed: Tensor
    alike: Tensor


def _places(modality: TextModality, ids: Tensor, starts: Tensor, length: Tensor) -> _Places:
    ends, tail, digit, lead = (table.to(ids.device)[ids] for table in _tables(modality.tokenizer))
    at = torch.arange(ids.shape[1], device=ids.device)
    word = starts.clone()
    word[:, :1] = False
    word &= at < length[:, None]
    # Marks and closing quotes behind the end of a sentence belong to it.
    ended = torch.where(ends, at, -1).cummax(1).values > torch.where(ends | tail, -1, at).cummax(1).values
    sentence = torch.zeros_like(word)
    sentence[:, 1:] = word[:, 1:] & ended[:, :-1] & ~tail[:, 1:] & ~digit[:, 1:]  # no cut in 3.5
    some = sentence.any(1)
    cuts = torch.where(some[:, None], sentence, word)
    closed = ended.gather(1, (length - 1).clamp_min(0)[:, None])[:, 0]
    return _Places(cuts, some, closed, ~(cuts & (lead != lead[:, :1])).any(1))


def cuts(modality: TextModality, ids: Tensor, starts: Tensor, length: Tensor) -> Tensor:
    """Where each text may be cut in two: bool [B, L], before which tokens. ids, starts [B, L]; length int64 [B].

    After the end of a sentence; in a text without one, before any word. A mark that the tokenizer cuts into bytes (byte-level
    BPE that saw little Chinese) ends no sentence.
    """
    return _places(modality, ids, starts, length).cuts


def _whole_sentences(places: _Places, length: Tensor, edges: Tensor) -> tuple[Tensor, Tensor]:
    """From which token, and before which, each text holds whole sentences: int64 [B] each; of a text without an end of one,
    from which token whole words, up to its own end.

    edges: bool [B, 2], where the text begins and ends as its document does. Elsewhere it was cut by its length, and half a
    sentence at its edge would give the order of the parts away. So would a document's first word, where the tokenizer keeps
    the white space that all others have before them: its sentence is left out then.
    """
    cuts, some, closed, alike = places
    bounds = torch.cat([cuts, torch.zeros_like(cuts[:, :1])], 1)
    bounds[:, 0] = edges[:, 0] & alike
    bounds.scatter_(1, length[:, None], (closed | edges[:, 1])[:, None])
    begin, back = bounds.long().argmax(1), bounds.flip(1).long().argmax(1)
    return begin, torch.where(some, cuts.shape[1] - back, length)


def pairs(modality: TextModality, batch: Batch, order: Order) -> Pairs:
    """Pairs of a batch of texts; a function of (seed, step, samples).

    nsp: rows 2i and 2i + 1 exchange their second parts with probability 1/2, if they are of two documents (BERT). Before, the
    longer of the two loses its end, or a pair's length would tell whether it was exchanged. An odd last row keeps its own.
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
    possible = places.cuts & (at > begin[:, None]) & (at < end[:, None])
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
        both = known & known[partner]
        shorter = torch.minimum(second.length, second.length[partner])  # whatever the coin says
        second = second._replace(length=torch.where(both, shorter, second.length))
        label = coin[rows & ~1] & both & (document != document[partner])  # one coin for both rows
        second = _Part.where(label, _Part(*(x[partner] for x in second)), second)
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
    begins = starts[source] | ~text | (at == 1) | (at == a + 2)  # a text cut within a word begins one all the same
    return Tokens(out, valid, begins, ((at > a + 1) & valid).long())
