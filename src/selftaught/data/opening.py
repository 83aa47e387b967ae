"""One entry for whatever the user has: open_data. Which kind of data it is follows from the files."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset

from selftaught.data import arrays, event_files, event_log, item_table, tables, text_files, texts
from selftaught.data.asked import parted
from selftaught.data.cache import cache_or_none, free_bytes, show_bytes
from selftaught.data.images import EqualStore, ImageSource
from selftaught.data.listing import Listing, labels_from_folders, number_labels, scan_folder, shown
from selftaught.data.loaders import MIN_SIDE, DatasetLoader, FileLoader, Loader, pixel_hash
from selftaught.data.prepare import (
    FORMAT,
    Limit,
    Prepared,
    Progress,
    estimate_bytes,
    list_direct,
    open_prepared,
    prepare,
    prepared_bytes,
)
from selftaught.data.shards import expand_braces, list_shards
from selftaught.data.source import Skipped, Source
from selftaught.errors import UserError

PICTURE_SUFFIXES = frozenset(
    [
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".png",
        ".webp",
        ".bmp",
        ".gif",
        ".tif",
        ".tiff",
        ".ppm",
        ".pgm",
        ".pbm",
        ".pnm",
        ".mpo",
    ]
)
_OF_OTHERS = frozenset({"path", "label", "text", "split"})  # what is said of lists of pictures and of texts
_KINDS = (
    "a folder, a .txt, .csv, .tsv or .parquet list of paths, a .npy or .npz file, .tar shards; or text: a folder of .txt, "
    "a .txt or .jsonl, a table with a text column; or a log of events: a table with a user and an item column"
)


def _silent(*_: Any) -> None:
    pass


def open_data(
    data: Any,
    *,
    cache: Path | Literal[False] | None = None,
    short_side: int | None = None,
    path_column: str | None = None,
    label_column: str | None = None,
    max_bad: float = 0.05,
    say: Callable[[str], None] = _silent,
    progress: Progress = _silent,
) -> Source:
    """Open pictures or text, whatever holds them.

    data: a folder (read recursively; class folders give labels), a list of paths, also as a .txt, .csv, .tsv or
        .parquet file, a .npy or .npz file, a .tar, a folder of them or `shard-{0000..0009}.tar`, a NumPy array or
        tensor, a pair (array, labels), or a map-style torch Dataset of pictures or (picture, label). Text: a folder of
        .txt (class folders give labels), a .txt of lines or paragraphs, .jsonl, a table with a text column, or a list of
        strings that are no files.
    cache: folder for prepared data; None: $SELFTAUGHT_CACHE or ~/.cache/selftaught/prepared; False (or
        SELFTAUGHT_CACHE=off): no cache, decode at every fetch. Where the default folder's disk is too small, the same
        is done and said.
    short_side: pictures whose short side is larger are stored with this one (files and Datasets; arrays stay).
    path_column, label_column: of a table, where they are not called path or label; in a path itself they are
        written TABLE?path=COLUMN&label=COLUMN, and for text ?text=COLUMN&label=COLUMN and ?split=line, blank or file.
    max_bad: share of unusable samples above which opening fails.
    say: told, in one line each, what is written, reused or left out. progress: called with (done, total).

    Raises UserError where the data cannot be read, too much of it is bad or fewer than two samples are usable.
    """
    options = _Options(cache, short_side, max_bad, say, progress)
    if isinstance(data, str | os.PathLike):
        return _open_path(str(data), options, path_column, label_column)
    if isinstance(data, list | tuple) and data and all(isinstance(item, str | os.PathLike) for item in data):
        if all(isinstance(item, str) for item in data) and not _are_paths(data):
            return texts.from_list([str(item) for item in data])
        return _open_listing(tables.list_paths(Path("the list"), [(os.fspath(item), None) for item in data]), options)
    if isinstance(data, tuple) and len(data) == 2:
        return _open_array(_array(data[0]), _array(data[1]), "the array", say)
    if isinstance(data, np.ndarray | torch.Tensor):
        return _open_array(_array(data), None, "the array", say)
    if isinstance(data, Dataset):
        return _open_dataset(data, options)
    raise UserError(f"data of type {type(data).__name__} cannot be opened; pass {_KINDS}, an array or a torch Dataset")


class _Options:
    """The arguments of open_data that are about reading, together."""

    def __init__(
        self,
        cache: Path | Literal[False] | None,
        short_side: int | None,
        max_bad: float,
        say: Callable[[str], None],
        progress: Progress,
    ) -> None:
        if short_side is not None and short_side < MIN_SIDE:
            raise UserError(f"short side of {short_side} pixels is below {MIN_SIDE}; use the training size or more")
        self.cache, self.short_side, self.max_bad, self.say, self.progress = cache, short_side, max_bad, say, progress

    @property
    def folder(self) -> Path | None:
        """Where prepared data goes; None: nowhere."""
        return cache_or_none() if self.cache is None else (self.cache or None)


def is_events(data: Any) -> bool:
    """Whether `open_data` would open a log of events, by the file's head."""
    if not isinstance(data, str | os.PathLike):
        return False
    path, given = parted(str(data))
    return not _OF_OTHERS & set(given) and event_files.is_log(path, given)


def _open_path(data: str, options: _Options, path_column: str | None, label_column: str | None) -> Source:
    path, given = parted(data)
    if not _OF_OTHERS & set(given) and event_files.is_log(path, given):
        return _open_log(path, given, options)
    if given:
        if unknown := sorted(set(given) - _OF_OTHERS):
            raise UserError(
                f"'{unknown[0]}' after ? names no column; use {path.name}?path=COLUMN&label=COLUMN, or text=COLUMN"
            )
        path_column, label_column = given.get("path", path_column), given.get("label", label_column)
    plan = text_files.Plan(given.get("split"), given.get("text"), label_column)
    suffix = path.suffix.lower()
    if suffix in arrays.SUFFIXES and path.is_file():
        return _open_array(*arrays.load_array(path), str(path), options.say)
    if not path.exists() and "{" in data and suffix == ".tar":
        listing = list_shards(path, expand_braces(str(path)), PICTURE_SUFFIXES)
    elif not path.exists():
        raise UserError(f"{path} does not exist; pass {_KINDS}")
    elif path.is_dir():
        stamps, skipped, others = scan_folder(path, PICTURE_SUFFIXES | text_files.SUFFIXES | {".tar"})
        written = [stamp for stamp in stamps if Path(stamp[0]).suffix.lower() in text_files.SUFFIXES]
        if plan.split or plan.text or _are_texts(written, stamps):
            if len(stamps) > len(written):
                options.say(f"{len(stamps) - len(written)} pictures or .tar beside the texts in {path} are not read")
            return _open_texts(path, written, skipped, plan, options)
        for name, _, _ in written:
            others[Path(name).suffix.lower()] = others.get(Path(name).suffix.lower(), 0) + 1
        listing = _list_folder(path, sorted(set(stamps) - set(written)), skipped, others, options.say)
    elif suffix in text_files.SUFFIXES | text_files.TABLES and path_column is None and _is_text(path, plan):
        status = path.stat()
        return _open_texts(path, [(path.name, status.st_size, status.st_mtime_ns)], [], plan, options)
    elif suffix in tables.SUFFIXES:
        listing = tables.list_table(path, path_column=path_column, label_column=label_column)
    elif suffix == ".tar":
        listing = list_shards(path, [path], PICTURE_SUFFIXES)
    elif suffix in PICTURE_SUFFIXES:
        raise UserError(f"{data} is one image only; pass a folder or list of many pictures")
    else:
        raise UserError(f"{data} is of no known kind ('{suffix}'); pass {_KINDS}")
    for note in listing.notes:
        options.say(note)
    return _open_listing(listing, options)


def _open_log(path: Path, given: dict[str, str], options: "_Options") -> Source:
    """A log of events; after the path its columns, which events are kept, and a table of its items:
    ?user=COLUMN&least=4&core=5&repeats=first&session=30&items=FILE&words=COLUMN&attributes=COLUMN,COLUMN."""
    known = {*event_files.USUAL, "least", "core", "repeats", "session", "items", "words", "attributes"}
    if unknown := sorted(set(given) - known):
        raise UserError(f"'{unknown[0]}' after ? is not known for a log of events; use {', '.join(sorted(known))}")
    chosen = event_log.filter_of(given)
    folder, log = options.folder, {role: name for role, name in given.items() if role in event_files.USUAL}
    source = event_log.open_events(
        path, log, chosen, cache=folder, max_bad=options.max_bad, say=options.say, progress=options.progress
    )
    if {"items", "words", "attributes"} & set(given):  # without a table of items these are columns of the log itself
        table = Path(given.get("items", path))
        table = path.parent / table if not table.exists() else table
        key = given.get("item") if table == path else None
        facts = item_table.read_items(table, source.items, given.get("words"), given.get("attributes"), key)
        source.about, without = facts
        if without:
            options.say(f"{without} of {len(source.items)} items are not in {table}")
    return source


def _are_paths(data: Sequence[str]) -> bool:
    """Whether strings name files: one of the first is there, or most end like a picture's name and have no blank."""
    if any(text_files.is_file(Path(item)) for item in data[:16]):
        return True
    ends = tuple(PICTURE_SUFFIXES)
    return 2 * sum(item.lower().endswith(ends) and len(item.split()) == 1 for item in data) > len(data)


def _are_texts(written: list[tuple[str, int, int]], stamps: list[tuple[str, int, int]]) -> bool:
    """Whether a folder is one of texts: most of its files are, and most of them are not called like a picture, whose boxes or
    caption they hold then."""
    pictures = {Path(name).stem for name, _, _ in set(stamps) - set(written)}
    alone = sum(Path(name).stem not in pictures for name, _, _ in written) if pictures else len(written)
    return 2 * len(written) > len(stamps) and 2 * alone > len(written)


def _is_text(path: Path, plan: text_files.Plan) -> bool:
    if path.suffix.lower() in text_files.TABLES:
        return text_files.has_text_column(path, plan, tables.PATH_COLUMNS)
    return path.suffix.lower() == ".jsonl" or not text_files.is_list_of_paths(path, PICTURE_SUFFIXES)


def _open_texts(
    root: Path,
    stamps: list[tuple[str, int, int]],
    skipped: list[Skipped],
    plan: text_files.Plan,
    options: "_Options",
) -> Source:
    return texts.open_texts(
        root,
        stamps,
        skipped,
        plan,
        cache=options.folder,
        max_bad=options.max_bad,
        say=options.say,
        progress=options.progress,
    )


def _list_folder(
    root: Path,
    stamps: list[tuple[str, int, int]],
    skipped: list[Skipped],
    others: dict[str, int],
    say: Callable[[str], None],
) -> Listing:
    """The pictures, or the shards, among what `scan_folder` found."""
    pictures = [stamp for stamp in stamps if not stamp[0].lower().endswith(".tar")]
    if stamps and not pictures:
        return list_shards(root, [root / name for name, _, _ in stamps], PICTURE_SUFFIXES)
    if not pictures and not skipped:
        held = ", ".join(
            f"{n} {suffix or 'without suffix'}" for suffix, n in sorted(others.items(), key=lambda o: -o[1])[:5]
        )
        raise UserError(
            f"no picture in {root} (" + (f"it holds {held}" if held else "it is empty") + "); "
            "pictures end in .jpg, .png, .webp, .bmp, .gif, .tif or .ppm; "
            "lists, arrays and shards are passed as the file itself"
        )
    if len(stamps) > len(pictures):
        say(f"{len(stamps) - len(pictures)} .tar beside the pictures in {root} are not read; pass them by themselves")
    names = [shown(name) for name, _, _ in pictures]
    labels, classes, note = labels_from_folders(names)
    return Listing(
        root,
        names,
        [root / name for name, _, _ in pictures],
        pictures,
        labels=labels,
        classes=classes,
        skipped=skipped,
        notes=[note] if note else [],
    )


def _open_listing(listing: Listing, options: _Options) -> Source:
    limit = Limit(options.max_bad, listing.skipped, len(listing) + len(listing.skipped), str(listing.root))
    if not limit.total:
        raise UserError(f"no picture in {listing.root}; pass {_KINDS}")
    limit.check([], limit.total if not len(listing) else 0)
    loader = FileLoader(listing, options.short_side)
    key = f"image{FORMAT}-{options.short_side or 'full'}-{listing.key()}"
    return _finish(_prepared(loader, key, limit, options), listing, options)


def _open_dataset(dataset: Dataset[Any], options: _Options) -> Source:
    if isinstance(dataset, IterableDataset):
        raise UserError(
            f"{type(dataset).__name__} is an IterableDataset, which cannot be indexed; pass a map-style Dataset"
        )
    try:
        n = len(dataset)  # type: ignore[arg-type]
    except (TypeError, NotImplementedError):
        raise UserError(f"{type(dataset).__name__} has no length; pass a map-style Dataset with __len__") from None
    if not n:
        raise UserError(f"{type(dataset).__name__} is empty; pass a Dataset with pictures")
    loader = DatasetLoader(dataset, n, options.short_side)
    prepared = _prepared(loader, None, Limit(options.max_bad, [], n, type(dataset).__name__), options)
    labels, classes = number_labels(loader.labels)
    listing = Listing(Path(type(dataset).__name__), loader.names, [], [], labels=labels, classes=classes)
    return _finish(prepared, listing, options)


def _prepared(loader: Loader, key: str | None, limit: Limit, options: _Options) -> Prepared:
    """From the cache if it is there, into it if there is room, else without one."""
    root = options.folder
    if root is None:
        return list_direct(loader, limit, options.progress)
    if key is not None and (found := open_prepared(root / key, len(loader))) is not None:
        limit.check(found.skipped, limit.total)
        options.say(f"using prepared cache {root / key} ({show_bytes(prepared_bytes(root / key))})")
        return found
    expected = estimate_bytes(loader)
    if options.cache is None and expected * 1.1 > (free := free_bytes(root)):
        options.say(
            f"no prepared cache: it would take about {show_bytes(expected)}, {root} has {show_bytes(free)} to spare; "
            "pictures are decoded at every use (slower); set SELFTAUGHT_CACHE to a folder on another disk"
        )
        return list_direct(loader, limit, options.progress)
    return prepare(loader, root, key, limit, expected=expected, say=options.say, progress=options.progress)


def _finish(prepared: Prepared, listing: Listing, options: _Options) -> Source:
    kept = prepared.kept
    if len(kept) < 2:
        raise UserError(f"{listing.root} holds one image only; pass a folder or list of many pictures")
    prepared.skipped[:0] = listing.skipped  # in place: the direct store adds to this list
    if prepared.skipped:
        name, reason = prepared.skipped[0]
        options.say(f"{len(prepared.skipped)} samples left out, the first {name}: {reason}")
    return ImageSource(
        prepared.store,
        names=[listing.names[i] for i in kept] if len(kept) < len(listing) else listing.names,
        hashes=prepared.hashes,
        sizes=prepared.shapes[:, 1:],
        channels=prepared.channels,
        labels=None if listing.labels is None else listing.labels[kept],
        classes=listing.classes,
        skipped=prepared.skipped,
    )


def _array(x: Any) -> np.ndarray:
    return x.detach().cpu().numpy() if isinstance(x, torch.Tensor) else np.asarray(x)


def _open_array(x: np.ndarray, labels: np.ndarray | None, name: str, say: Callable[[str], None]) -> Source:
    pixels = arrays.to_pictures(x, name)
    n, channels, height, width = pixels.shape
    if n < 2:
        raise UserError(f"{name} holds one image only; pass many pictures")
    if min(height, width) < MIN_SIDE:
        raise UserError(f"{name} holds pictures of {width} x {height} pixels; at least {MIN_SIDE} a side are needed")
    numbers, classes = (None, []) if labels is None else number_labels(arrays.to_labels(labels, n))
    say(f"{n} pictures of {width} x {height} from {name}")
    return ImageSource(
        EqualStore(pixels),
        names=[f"item {i}" for i in range(n)],
        hashes=np.fromiter((pixel_hash(picture) for picture in pixels), np.uint64, n),
        sizes=np.full((n, 2), (height, width), np.int32),
        channels=channels,
        labels=numbers,
        classes=classes,
        skipped=[],
    )
