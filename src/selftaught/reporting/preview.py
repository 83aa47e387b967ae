"""What a task sees of its data, for the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from selftaught.modality.text.spans import Span, printable

_STYLES = {"": "", "masked": "bold cyan", "random": "bold red", "kept": "bold yellow"}
_LEGEND = {
    "masked": "[MASK→a] a is hidden",
    "random": "[b→a] a is hidden behind a random b",
    "kept": "[=a] a is to be guessed, but read as it is",
}


def preview_lines(samples: list[tuple[str, str, list[tuple[str, list[Span]]]]]) -> Iterator[Text]:
    """Samples (name, answer, texts) in lines, and what the marks in them mean. The marks are there without colour too."""
    met = set()
    for name, answer, texts in samples:
        yield Text.assemble((printable(name), "bold"), f": {answer}" if answer else "")
        for reader, spans in texts:
            met |= {span.fate for span in spans}
            yield Text.assemble((f"  {reader}: ", "dim"), *((span.text, _STYLES[span.fate]) for span in spans))
    for fate, words in _LEGEND.items():
        if fate in met:
            yield Text(words, style=_STYLES[fate])


def shares_table(rows: list[dict[str, Any]], batches: int) -> Table:
    """How often each thing was drawn, beside the share that the settings ask for."""
    over = f"over {batches} batches" if batches > 1 else "over one batch"
    table = Table(f"drawn {over}", box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("share", "set", "of"):
        table.add_column(title, justify="right")
    for row in rows:
        shares = ("–" if row[key] is None else f"{100 * row[key]:.1f} %" for key in ("share", "asked"))
        table.add_row(Text(row["name"]), *shares, f"{row['of']:,}")
    return table
