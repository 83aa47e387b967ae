"""The results of an evaluation for the terminal."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from selftaught.reporting import results


def results_table(evaluation: dict[str, Any]) -> RenderableType:
    """The rows of evaluation.json as a table, one line per measure and number of labels, and the verdict below.

    Names are rich Text, never markup: a class or encoder called '[red]' is printed as it is. The best figure of a line
    is bold and carries a '*'; figures whose 95 % interval meets the best one's carry a '~', so that nothing is lost
    where the output is plain text.
    """
    table = results.lines(evaluation)
    columns = results.features(table)
    if not table:
        return Text("no results: the evaluation has no rows")
    view = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    group = ("", "")
    for title in ("measure", "labels"):
        view.add_column(Text(title), no_wrap=True)
    for name in columns:
        view.add_column(Text(results.feature_name(name)), justify="right", no_wrap=True)
    for line in table:
        best = line.best()
        view.add_row(
            Text("" if group == (line.measure, line.metric) else f"{line.title}\n{results.metric_name(line.metric)}"),
            Text(line.labels),
            *(_cell(line, name, best) if name in line.cells else Text("–  ") for name in columns),
        )
        group = (line.measure, line.metric)
    note = Text("* best   ~ its 95 % interval meets the best one's   [95 % interval]", style="dim")
    sentences = [Text(sentence) for sentence in results.verdict(evaluation)]
    return Group(view, note, *([Text("")] if sentences else []), *sentences)


def _cell(line: results.Line, name: str, best: list[str]) -> Text:
    cell = line.cells[name]
    mark = " *" if name == best[0] else " ~" if name in best else "  "
    text = Text(results.figure(cell.value, line.metric) + mark, style="bold" if name == best[0] else "")
    span = results.interval(cell.low, cell.high, line.metric)
    if span:
        text.append(f"\n{span}  ", style="dim not bold")
    return text
