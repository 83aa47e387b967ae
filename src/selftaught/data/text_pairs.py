"""Pairs of texts, such as a sentence and its translation: two columns of a table, or two files of lines."""

import hashlib
import itertools
import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from selftaught.data import text_files
from selftaught.data.asked import parted
from selftaught.data.listing import shown, why
from selftaught.data.source import Skipped, Source
from selftaught.data.texts import TextSource, from_list
from selftaught.data.tokens import Progress, TokenSource, tokenized
from selftaught.errors import BadSample, UserError
from selftaught.modality.text.tokenizer import Tokenizer

SOURCE_COLUMNS = ("source", "src", "sentence1")
TARGET_COLUMNS = ("target", "tgt", "translation", "sentence2")
SCORE_COLUMNS = ("score", "similarity")
TABLES = text_files.TABLES | {".jsonl"}
LISTED = 1000
"""Pairs that were left out, of which results give the names; they count all of them."""
_HOW = (
    "a table of two columns (TABLE?source=COLUMN&target=COLUMN), or two files of lines, PREFIX.en and PREFIX.de, as "
    "PREFIX?source=en&target=de"
)


class Pair(NamedTuple):
    """Two texts and what the pair is called, its score where it has one; or why it cannot be used."""

    name: str
    source: str
    target: str
    bad: str | None = None
    score: float | None = None


class PairSource(Source):
    """Pairs of texts, held in memory. source, target: the two sides, as long as each other.

    hashes: of the source sides, so that a sentence with several translations is on one side of a split. scores: how alike
    the sides are, float64 [N], or None where the data has no such column.
    """

    kind = "text_pairs"
    labels = None

    def __init__(
        self,
        source: TextSource,
        target: TextSource,
        names: Sequence[str],
        skipped: list[Skipped],
        scores: np.ndarray | None = None,
    ) -> None:
        self.source, self.target, self.names, self.skipped = source, target, names, skipped
        self.hashes, self.classes, self.scores = source.hashes, [], scores

    def __len__(self) -> int:
        return len(self.source)

    def fetch(self, index: np.ndarray) -> dict[str, Tensor]:
        raise UserError("pairs of texts have to be tokenized before a batch can be made of them")

    def subset(self, index: np.ndarray) -> "PairSource":
        index = np.arange(len(self))[index]
        names = [self.names[i] for i in index.tolist()]
        scores = None if self.scores is None else self.scores[index]
        return PairSource(self.source.subset(index), self.target.subset(index), names, self.skipped, scores)

    def left_out(self) -> dict[str, Any]:
        """How many pairs were left out, and which and why, as JSON values."""
        return {"left_out_as_unusable": len(self.skipped), "left_out": [list(s) for s in self.skipped[:LISTED]]}

    @property
    def fingerprint(self) -> str:
        """A function of both sides, in order."""
        return _joined(self.source, self.target)


class PairTokens(Source):
    """Token ids of pairs. fetch gives what `TokenSource` does of the source, and of the target under names that begin in
    `prefix`. pairs: the texts."""

    kind = "text_pairs"
    labels = None

    def __init__(self, pairs: PairSource, source: TokenSource, target: TokenSource, prefix: str) -> None:
        self.pairs, self.source, self.target, self._prefix = pairs, source, target, prefix
        self.names, self.hashes, self.classes, self.skipped = pairs.names, pairs.hashes, [], pairs.skipped

    def __len__(self) -> int:
        return len(self.pairs)

    def fetch(self, index: np.ndarray) -> dict[str, Tensor]:
        return self.source.fetch(index) | {self._prefix + k: x for k, x in self.target.fetch(index).items()}

    def subset(self, index: np.ndarray) -> "PairTokens":
        both = self.source.subset(index), self.target.subset(index)
        return PairTokens(self.pairs.subset(index), *both, self._prefix)

    def fitting(self, limit: int) -> np.ndarray:
        """bool [N]: pairs of which neither side has more tokens than `limit`."""
        return np.maximum(self.source.lengths, self.target.lengths) <= limit

    @property
    def fingerprint(self) -> str:
        return self.pairs.fingerprint


def _joined(source: Source, target: Source) -> str:
    return hashlib.blake2b(f"{source.fingerprint} {target.fingerprint}".encode(), digest_size=16).hexdigest()


def tokenized_pairs(
    pairs: PairSource, tokenizer: Tokenizer, limit: int, cache: Path | None, prefix: str, progress: Progress
) -> PairTokens:
    """Both sides as token ids, of which `limit` are fetched; progress counts texts of either side."""
    n = len(pairs)
    source = tokenized(pairs.source, tokenizer, limit, cache, lambda done, _: progress(done, 2 * n))
    target = tokenized(pairs.target, tokenizer, limit, cache, lambda done, _: progress(n + done, 2 * n))
    return PairTokens(pairs, source, target, prefix)


def open_pairs(data: Any, say: Callable[[str], None], max_bad: float = 0.05) -> PairSource:
    """Open pairs of texts.

    data: a .csv, .tsv, .parquet or .jsonl with columns source and target (or of two columns alone; others by
        `?source=COLUMN&target=COLUMN`), a folder of such tables, `PREFIX?source=en&target=de` for the line-aligned files
        PREFIX.en and PREFIX.de (a folder as PREFIX: all such files in it), or in Python a list of (source, target). A table
        may have a column score, or one named by `?score=COLUMN`.
    max_bad: share of pairs above which those that cannot be read (empty ones do not count) are an error.

    A pair with an empty side is left out, and is in `skipped` as unreadable ones are.
    Raises UserError where there are no pairs, and for files of unequal numbers of lines.
    """
    kept: list[Pair] = []
    skipped: list[Skipped] = []
    broken = 0
    for pair in _read(data, say):
        empty = not pair.source.strip(), not pair.target.strip()
        if pair.bad is not None:
            skipped.append(Skipped(pair.name, pair.bad))
            broken += 1
        elif any(empty):
            side = "both sides are" if all(empty) else "its source is" if empty[0] else "its target is"
            skipped.append(Skipped(pair.name, f"{side} empty"))
        else:
            kept.append(pair)
    what = data if isinstance(data, str | os.PathLike) else "the list"
    if broken > max_bad * (len(kept) + len(skipped)):
        first = next(s for s in skipped if not s.reason.endswith("empty"))
        raise UserError(
            f"{broken} of {len(kept) + len(skipped)} pairs in {what} cannot be read, more than {max_bad:.0%} "
            f"({first.name}: {first.reason}); repair or remove them"
        )
    if len(kept) < 2:
        raise UserError(f"{what} holds {len(kept)} pairs with text on both sides; many are needed")
    if skipped:
        say(f"{len(skipped)} pairs left out, the first {skipped[0].name}: {skipped[0].reason}")
    names = [pair.name for pair in kept]
    sides = from_list([pair.source for pair in kept]), from_list([pair.target for pair in kept])
    for texts in sides:
        texts.names = names
    scored = None not in (scores := [pair.score for pair in kept])
    return PairSource(*sides, names, skipped, np.array(scores, np.float64) if scored else None)


def open_sources(data: Any, say: Callable[[str], None]) -> TextSource | None:
    """The texts to be translated where `data` names them as `open_pairs` does; None where it does not.

    Targets are not read and need not be there.
    """
    if not isinstance(data, str | os.PathLike):
        return None
    given = parted(str(data))[1]
    if "source" not in given and not (not given and Path(data).suffix.lower() in TABLES and _has_source(Path(data))):
        return None
    path, given = _split(data)
    found = [(p.name, p.source) for p in _files(path, given, say, target=False) if p.bad is None and p.source.strip()]
    if len(found) < 2:
        raise UserError(f"{data} holds {len(found)} texts; at least two are needed")
    source = from_list([text for _, text in found])
    source.names = [name for name, _ in found]
    return source


def _has_source(table: Path) -> bool:
    return any(c.lower().strip() in SOURCE_COLUMNS for c in text_files.columns(table))


def _read(data: Any, say: Callable[[str], None]) -> Iterator[Pair]:
    if isinstance(data, str | os.PathLike):
        yield from _files(*_split(data), say, target=True)
    elif isinstance(data, list | tuple) and all(isinstance(x, list | tuple) and len(x) == 2 for x in data):
        yield from (Pair(f"pair {i}", str(a), str(b)) for i, (a, b) in enumerate(data))
    else:
        raise UserError(f"data of type {type(data).__name__} holds no pairs of texts; pass {_HOW}, or a list of pairs")


def _split(data: Any) -> tuple[Path, dict[str, str]]:
    """A path, and what is said behind its question mark."""
    path, given = parted(str(data))
    if unknown := sorted(set(given) - {"source", "target", "score"}):
        raise UserError(f"'{unknown[0]}' after ? is no side of a pair; use {path.name}?source=NAME&target=NAME")
    return path, given


def _files(path: Path, given: dict[str, str], say: Callable[[str], None], target: bool) -> Iterator[Pair]:
    """The pairs of a table, of the files that begin in a prefix, or of a folder of either."""
    try:
        if path.is_file():
            if path.suffix.lower() not in TABLES:
                raise UserError(f"{path} is one file and no table; pass {_HOW}")
            yield from _table(path, given, target)
            return
        inside = sorted(p for p in path.iterdir() if p.is_file()) if path.is_dir() else []
        if tables := [p for p in inside if p.suffix.lower() in TABLES]:
            if len(inside) > len(tables):
                say(f"{len(inside) - len(tables)} files beside the tables in {path} are not read")
            for table in tables:
                yield from (
                    pair._replace(name=f"{shown(table.name)} {pair.name}") for pair in _table(table, given, target)
                )
            return
        if "source" not in given or (target and "target" not in given):
            known = "does not exist" if not path.is_dir() else "holds no table"
            raise UserError(f"{path} {known}; pass {_HOW}")
        ends = [given["source"], given["target"]] if target else [given["source"]]
        prefixes = [p.with_suffix("") for p in inside if p.suffix == f".{ends[0]}"] if path.is_dir() else [path]
        if not prefixes:
            raise UserError(f"{path} holds no file that ends in .{ends[0]}; pass {_HOW}")
        for prefix in prefixes:
            yield from _aligned([prefix.with_name(f"{prefix.name}.{end}") for end in ends])
    except BadSample as error:
        raise UserError(f"{path} cannot be read as pairs of texts: {error}") from error
    except OSError as error:
        raise UserError(f"{error.filename or path} cannot be read: {why(error)}") from error


def _aligned(files: list[Path]) -> Iterator[Pair]:
    """The lines of one file, or of two, each with the line of the same number."""
    for file in files:
        if not file.is_file():
            raise UserError(f"{file} does not exist; line-aligned files are PREFIX.en and PREFIX.de, say")
    counts = [0, 0]
    for number, lines in enumerate(itertools.zip_longest(*map(text_files.whole_lines, files), fillvalue=(0, "")), 1):
        for side, (at, _) in enumerate(lines):
            counts[side] += at > 0
        if len(files) == 1 or counts[0] == counts[1]:
            source, target = lines[0][1], lines[-1][1]
            bad = "bytes that its encoding does not allow, or an endless line" if None in (source, target) else None
            yield Pair(f"{shown(files[0].name)}:{number}", (source or "").strip(), (target or "").strip(), bad)
    if len(files) == 2 and counts[0] != counts[1]:
        raise UserError(
            f"{files[0]} has {counts[0]} lines and {files[1]} {counts[1]}; line n of one must be the translation of line n "
            "of the other"
        )


def _table(table: Path, given: dict[str, str], target: bool) -> Iterator[Pair]:
    columns = text_files.columns(table)
    if not columns:
        raise UserError(f"{table} has no columns that can be read; pass {_HOW}")
    source = _column(columns, given.get("source"), SOURCE_COLUMNS, 0, table)
    other = _column(columns, given.get("target"), TARGET_COLUMNS, 1, table) if target else None
    score = text_files.choose_column(columns, given.get("score"), SCORE_COLUMNS, table) if target else None
    # What else is in a row is read as its label is.
    pairs = text_files.rows(table, text_files.Plan(text=source, label=other))
    if score is None:
        yield from (Pair(row.name, row.text, row.label or "", row.bad) for row in pairs)
        return
    for row, scored in zip(pairs, text_files.rows(table, text_files.Plan(text=source, label=score)), strict=True):
        value, bad = _number(scored.label)
        yield Pair(row.name, row.text, row.label or "", row.bad or bad, value)


def _number(text: str | None) -> tuple[float | None, str | None]:
    """A score, or why it is none."""
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    return (value, None) if math.isfinite(value) else (None, f"its score '{text or ''}' is no number")


def is_pairs(data: Any) -> bool:
    """Whether `data` is meant as pairs of texts: it names two sides, or is a table that has both and no other text."""
    if not isinstance(data, str | os.PathLike):
        return False
    if given := parted(str(data))[1]:
        return {"source", "target"} <= set(given)
    if Path(data).suffix.lower() not in TABLES or not Path(data).is_file():
        return False
    columns = {c.lower().strip() for c in text_files.columns(Path(data))}
    both = columns & set(SOURCE_COLUMNS) and columns & set(TARGET_COLUMNS)
    return bool(both) and not columns & set(text_files.TEXT_COLUMNS)


def _column(columns: list[str], wanted: str | None, usual: tuple[str, ...], place: int, table: Path) -> str:
    """The column of one side: as named, by its usual name, or by its place where there are two."""
    if wanted in columns:
        return str(wanted)
    found = next((c for c in columns if c.lower().strip() in usual), columns[place] if len(columns) == 2 else None)
    if wanted is not None or found is None:
        what = f"column '{wanted}'" if wanted is not None else f"column {', '.join(usual[:-1])} or {usual[-1]}"
        raise UserError(
            f"{table} has no {what}; its columns: {', '.join(columns[:20])}; name two: "
            f"{table.name}?source=COLUMN&target=COLUMN"
        )
    return found
