"""The results of an evaluation for the terminal."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from selftaught.reporting import results


def show(found: RenderableType) -> None:
    """Print a table, or a group of them with words, with no cell cut: a table that needs more room than there is gets it."""
    console = Console()
    room = console.options.update(max_width=100_000)
    for part in found.renderables if isinstance(found, Group) else (found,):
        needed = Measurement.get(console, room, part).maximum if isinstance(part, Table) else 0
        Console(width=max(console.width, needed)).print(part)


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


def ranking_table(found: dict[str, Any], metrics: tuple[str, ...] = ("hr@10", "ndcg@10", "mrr")) -> RenderableType:
    """The rows of ranking.json, one line a recommender, the best by the second metric first, and the verdict below."""
    rows = {(r["features"], r["metric"]): r for r in found["rows"]}
    names = sorted({name for name, _ in rows}, key=lambda name: -rows[name, metrics[1]]["value"])
    view = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    view.add_column("recommender", no_wrap=True)
    for metric in metrics:
        view.add_column(Text(results.metric_name(metric)), justify="right", no_wrap=True)
    view.add_column("cover", justify="right", no_wrap=True)
    for name in names:  # three intervals must fit a terminal of 80 columns
        cells = [
            f"{r['value']:.4f} {results.interval(r['low'], r['high'], 'ndcg@10')}".replace("0.", ".")
            for r in (rows[name, m] for m in metrics)
        ]
        title = Text(results.feature_name(name), style="bold" if name == results.PRETRAINED else "")
        view.add_row(title, *map(Text, cells), f"{found['lists'][name]['coverage@10']:.0%}")
    protocol = found["protocol"]
    how = (
        f"{protocol['split']}, {protocol['cases']} cases, {protocol['items']} items, seen ones {protocol['seen_items']}"
    )
    more = "[95 % interval]   cover: items in anyone's first ten"
    return Group(view, Text(how, style="dim"), Text(more, style="dim"), Text(), *map(Text, results.verdict(found)))
