"""Tokenizers: trained on a corpus, or taken from a local Hugging Face folder; and where the words of a text begin.

All of them end in the same five special tokens of BERT, whatever they are called in a folder.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from selftaught.errors import UserError
from selftaught.modality.text.words import Segmenter, unspaced, word_starts

try:
    import tokenizers
    from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers
except ImportError:  # said when a tokenizer is asked for: lists of tasks must not need it
    tokenizers = None  # type: ignore[assignment]

Kind = Literal["wordpiece", "bpe", "unigram", "char"]
Spaces = Literal["forgotten", "joined", "own"]
KINDS: tuple[Kind, ...] = ("wordpiece", "bpe", "unigram", "char")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_OTHERS = {"[PAD]": ("<pad>",), "[UNK]": ("<unk>",), "[CLS]": ("<s>",), "[SEP]": ("</s>",), "[MASK]": ("<mask>",)}
_BATCH, _CHARACTERS = 1000, 2**21  # texts, and characters of them, that are given to a trainer together


class TokenIds(NamedTuple):
    """The token ids of one text, without special tokens (int32), and which of them begin a word (bool)."""

    ids: np.ndarray
    starts: np.ndarray


class Tokenizer:
    """A `tokenizers.Tokenizer` with BERT's special tokens.

    vocabulary: number of token ids. pad, unknown, first, last, mask: ids of the special tokens ([PAD], [UNK], [CLS],
    [SEP], [MASK]). segmenter: what tells the words of Chinese, named by `words`; None: each character is a word. spaces: what
    becomes of the space before a word: "forgotten" (WordPiece), "joined" to the word's first token (byte-level BPE,
    unigram), or a token of its "own".

    Raises UserError where one of the special tokens is missing, and for a segmenter that is not there.
    """

    def __init__(self, backend: tokenizers.Tokenizer, words: str = "") -> None:
        self.backend = backend
        self.segmenter = Segmenter(words) if words else None
        backend.no_padding()
        backend.no_truncation()
        found = []
        for name in SPECIAL:
            ids = [backend.token_to_id(n) for n in (name, *_OTHERS[name])]
            number = next((i for i in ids if i is not None), None)
            if number is None:
                raise UserError(f"the tokenizer has no {name} token; train one here, or add it to its vocabulary")
            found.append(number)
        self.pad, self.unknown, self.first, self.last, self.mask = found
        self.vocabulary = 1 + max(backend.get_vocab(with_added_tokens=True).values())  # a folder's may leave ids out
        joined = isinstance(backend.decoder, decoders.ByteLevel | decoders.Metaspace)
        forgotten = isinstance(backend.decoder, decoders.WordPiece)
        self.spaces: Spaces = "forgotten" if forgotten else "joined" if joined else "own"

    @classmethod
    def train(cls, texts: Iterable[str], kind: str = "wordpiece", vocabulary: int = 8000, words: str = "") -> Tokenizer:
        """Learn a vocabulary from texts.

        kind: "wordpiece" (BERT's, lower-cased, Chinese by the character), "bpe" (byte-level, as GPT-2's), "unigram"
            (as SentencePiece's) or "char". The same texts give the same tokenizer, but for unigram, whose trainer in
            `tokenizers` breaks ties by chance: it is the same in a run and all that comes of it, not in two runs.
        vocabulary: at most this many tokens, special ones included.
        words: what tells the words of Chinese; it changes where words begin, not the tokens.

        Raises UserError for an unknown kind or texts without a single token.
        """
        _there()
        if words:
            Segmenter(words)  # refused before the work
        if kind not in KINDS:
            raise UserError(f"tokenizer '{kind}' is unknown; use {', '.join(KINDS[:-1])} or {KINDS[-1]}")
        if vocabulary < 300:
            raise UserError(f"vocabulary {vocabulary} is below 300 tokens; use text.vocabulary=300 or more")
        backend, trainer = _parts(kind, vocabulary)
        if kind == "wordpiece":
            backend = _train_wordpiece(backend, texts, vocabulary)
        else:
            backend.train_from_iterator(_batched(texts), trainer)
        if backend.get_vocab_size() <= len(SPECIAL):
            raise UserError("the texts hold nothing that a tokenizer could learn from; are they empty?")
        return cls.parse(
            backend.to_str(), words=words
        )  # what is saved: Unigram's scores lose their last bits on the way

    @classmethod
    def load(cls, folder: Path, words: str = "") -> Tokenizer:
        """The tokenizer.json of a local Hugging Face folder. No code of the folder is run."""
        file = folder / "tokenizer.json"
        if not file.is_file():
            raise UserError(f"'{folder}' holds no tokenizer.json; save it with tokenizer.save_pretrained(FOLDER)")
        try:
            text = file.read_text("utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"'{file}' is no tokenizer: {error}") from error
        return cls.parse(text, str(file), words)

    @classmethod
    def parse(cls, text: str, where: str = "tokenizer", words: str = "") -> Tokenizer:
        """The tokenizer that `dump` described, but for its segmenter."""
        _there()
        try:
            return cls(tokenizers.Tokenizer.from_str(text), words)
        except UserError:
            raise
        except Exception as error:  # the library's errors are bare Exceptions
            raise UserError(f"'{where}' is no tokenizer: {str(error).splitlines()[0][:100]}") from error

    def dump(self) -> str:
        """All of it, as Hugging Face's tokenizer.json."""
        return json.dumps(json.loads(self.backend.to_str()), ensure_ascii=False, indent=1)

    def encode(self, texts: Sequence[str]) -> list[TokenIds]:
        """Token ids of texts, and where their words begin (see `word_starts`)."""
        found = self.backend.encode_batch(list(texts), add_special_tokens=False)
        return [
            TokenIds(np.array(one.ids, np.int32), word_starts(text, one.word_ids, one.offsets, self._inside(text)))
            for text, one in zip(texts, found, strict=True)
        ]

    def _inside(self, text: str) -> np.ndarray | None:
        return None if self.segmenter is None else self.segmenter.inside(text)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids; special tokens are shown. Of WordPiece without the spaces that its decoder puts between Chinese
        characters."""
        text = self.backend.decode(list(ids), skip_special_tokens=False)
        return unspaced(text) if self.spaces == "forgotten" else text

    def spelled(self, token: int) -> str:
        """A token as the vocabulary spells it; of a byte-level one, where bytes have stand-ins, the text if that can be shown."""
        if isinstance(self.backend.decoder, decoders.ByteLevel):
            text = self.decode([token])
            if text.isprintable() and "\ufffd" not in text:
                return text
        return str(self.backend.id_to_token(token))

    def pieces(self, ids: Sequence[int]) -> list[tuple[int, str]]:
        """Token ids in pieces (number of tokens, text): one for each token, but for bytes of one character, which are one.

        The texts join to `decode(ids)`.
        """
        found, begin, done = list[tuple[int, str]](), 0, ""
        for stop in range(1, len(ids) + 1):
            text = self.decode(ids[:stop])
            if stop < len(ids) and text.endswith("\ufffd"):  # the rest of the character is still to come
                continue
            found.append((stop - begin, text[len(done) :]))
            begin, done = stop, text
        return found


def _there() -> None:
    if tokenizers is None:
        raise UserError("text needs the extra 'text': pip install 'selftaught[text]'")


def _parts(kind: str, vocabulary: int) -> tuple[tokenizers.Tokenizer, trainers.Trainer]:
    """An untrained tokenizer of a kind, and what trains it."""
    size: dict[str, Any] = {"vocab_size": vocabulary, "special_tokens": list(SPECIAL), "show_progress": False}
    if kind == "wordpiece":
        return _wordpiece({}), trainers.WordPieceTrainer(**size)
    if kind == "bpe":
        backend = tokenizers.Tokenizer(models.BPE(unk_token="[UNK]"))
        backend.normalizer = normalizers.NFC()
        chinese = pre_tokenizers.Split(tokenizers.Regex(r"\p{Han}+"), "isolated")
        backend.pre_tokenizer = pre_tokenizers.Sequence([chinese, pre_tokenizers.ByteLevel(add_prefix_space=False)])
        backend.decoder = decoders.ByteLevel()
        return backend, trainers.BpeTrainer(initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), **size)
    if kind == "unigram":
        backend = tokenizers.Tokenizer(models.Unigram())
        backend.normalizer = normalizers.NFKC()
        backend.pre_tokenizer = pre_tokenizers.Metaspace()
        backend.decoder = decoders.Metaspace()
        return backend, trainers.UnigramTrainer(unk_token="[UNK]", **size)
    backend = tokenizers.Tokenizer(models.WordLevel(unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(r"(?m)."), "isolated")
    backend.decoder = decoders.Fuse()
    return backend, trainers.WordLevelTrainer(**size)


def _wordpiece(vocabulary: dict[str, int]) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    return backend


def _train_wordpiece(backend: tokenizers.Tokenizer, texts: Iterable[str], vocabulary: int) -> tokenizers.Tokenizer:
    """WordPiece with an alphabet in a fixed order.

    The trainer numbers the letters inside of words (##a) as it meets them in a hash table, which is another order in each
    process, and breaks ties by number. Given as special tokens they have their numbers beforehand; the vocabulary then
    moves into a tokenizer in which they are ordinary. The commonest letters are taken, on at most three quarters of the
    vocabulary.
    """
    words: Counter[str] = Counter()
    for text in texts:
        words.update(w for w, _ in backend.pre_tokenizer.pre_tokenize_str(backend.normalizer.normalize_str(text)))
    count, inside = Counter[str](), set[str]()
    for word, n in words.items():
        inside.update(word[1:])
        for character in word:
            count[character] += n
    common = sorted(count, key=lambda c: (-count[c], c))
    room = np.cumsum([1 + (c in inside) for c in common]) <= (vocabulary - len(SPECIAL)) * 3 // 4
    alphabet = sorted(c for c, fits in zip(common, room) if fits)
    fixed = [*SPECIAL, *alphabet, *(f"##{c}" for c in alphabet if c in inside)]
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocabulary, special_tokens=fixed, limit_alphabet=0, show_progress=False
    )
    ordered = (word for word in sorted(words) for _ in range(words[word]))
    backend.train_from_iterator(_batched(ordered), trainer)
    learnt = _wordpiece(backend.get_vocab())
    learnt.add_special_tokens(list(SPECIAL))
    return learnt


def _batched(texts: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if len(batch) == _BATCH or size >= _CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
