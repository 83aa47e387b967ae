"""The report: one page that says whether pretraining was worth it, made from the files of a run folder alone.

The page makes no request of any kind (its Content-Security-Policy forbids them) and all text from the run is escaped:
class names, file names and messages come from strangers' data. The same files give the same bytes.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.resources
from html import escape
from pathlib import Path
from string import Template

import numpy as np

from selftaught import disk
from selftaught.reporting import results
from selftaught.reporting.charts import Point, Series, efficiency, shorten, strip, strip_axis
from selftaught.reporting.facts import (
    curves_section,
    data_section,
    encoder_name,
    facts,
    missing,
    recipe_section,
    section,
    unbroken,
    words,
)
from selftaught.reporting.files import RunFiles, read
from selftaught.reporting.outcome import outcome_section
from selftaught.reporting.pictures import gallery, the_map
from selftaught.reporting.results import Line
from selftaught.reporting.scales import minus, span

REPORT = "report.html"


def write_report(run: Path) -> Path:
    """Write RUN/report.html, atomically, and return its path.

    Files that are absent leave their section out or say which command makes them; broken ones are named at the top.

    Raises: UserError where `run` is not a folder.
    """
    path = run / REPORT
    disk.write_text(path, render(read(run)))
    return path


def render(files: RunFiles) -> str:
    """The page as text."""
    table = results.lines(files.evaluation)
    pictures, picture_css = _pictures_sections(files)
    parts = [
        _efficiency_section(table),
        _results_section(files, table),
        curves_section(files),
        outcome_section(files),
        pictures,
        recipe_section(files),
        data_section(files),
    ]
    script = _resource("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return Template(_resource("page.html")).substitute(
        title=escape(f"{files.run.resolve().name} – selftaught report"),
        script_hash=f"sha256-{digest}",
        style=_resource("page.css") + picture_css,
        header=_header(files, table),
        sections="\n".join(part for part in parts if part),
        footer="Made by selftaught from the files of the run folder. This page is self-contained: it loads nothing.",
        script=script,
    )


def _resource(name: str) -> str:
    return importlib.resources.files("selftaught.reporting").joinpath(name).read_text(encoding="utf-8")


def _header(files: RunFiles, table: list[Line]) -> str:
    tags = filter(None, (words(files.recipe.get("pretext") or "", 60), encoder_name(files.recipe)))
    kicker = f"<b>{escape(files.run.resolve().name)}</b>" + "".join(f"<span>{escape(tag)}</span>" for tag in tags)
    sentences = results.verdict(files.evaluation)
    if sentences:
        title, rest = sentences[0], sentences[1:]
    elif table:
        title, rest = "Evaluated; the verdict is in the table.", []
    else:
        title, rest = "Not evaluated yet: nothing here says what this encoder is worth.", []
    lead = f'<p class="lead">{unbroken(escape(" ".join(rest)))}</p>' if rest else ""
    problems = "".join(f'<p class="empty">{escape(problem)}</p>' for problem in files.problems)
    return f'<p class="kicker">{kicker}</p>\n<h1>{unbroken(escape(title))}</h1>\n{lead}{facts(files, table)}{problems}'


def css_classes(names: list[str]) -> dict[str, str]:
    """The CSS class that gives each kind of features its colour; named encoders take three colours in turn."""
    fixed = {results.PRETRAINED: "pretrained", results.RANDOM: "random", results.RAW: "raw", results.UNIGRAM: "raw"}
    named = [name for name in names if name not in fixed]
    return {name: fixed.get(name) or f"named{named.index(name) % 3}" for name in names}


def _efficiency_section(table: list[Line]) -> str:
    """One chart per measure that was taken at two or more numbers of labels."""
    charts = []
    for measure, metric in dict.fromkeys((line.measure, line.metric) for line in table):
        mine = sorted(
            (x for x in table if (x.measure, x.metric) == (measure, metric) and x.labels_n),
            key=lambda x: x.labels_n or 0,
        )
        if len(mine) < 2:
            continue
        names = results.features(mine)
        css = css_classes(names)
        series = [
            Series(
                results.feature_name(name),
                css[name],
                [
                    Point(float(x.labels_n or 0), c.value, c.low, c.high)
                    for x in mine
                    if (c := x.cells.get(name)) is not None
                ],
            )
            for name in names
        ]
        unit = "per cent" if results.is_share(metric) else ""
        title = f"{mine[0].title}: {results.metric_name(metric)} on held-out samples{', ' + unit if unit else ''}"
        drawings = "".join(
            f'<div class="{kind}">{efficiency(series, *size, metric, title)}</div>'
            for kind, size in (("wide", (800, 410)), ("narrow", (354, 330)))
        )
        charts.append(f'<p class="axis-title">{escape(title)}</p>{drawings}{_saving(mine)}')
    if not charts:
        return ""
    side = "<p>What the same head reaches with fewer labels. Bands are 95 % intervals.</p>"
    return section("Label efficiency", side, "".join(charts))


def _saving(lines: list[Line]) -> str:
    """How few labels the pretrained encoder needs to reach what random init reaches with all of them."""
    most = lines[-1]
    target = most.cells.get(results.RANDOM)
    if target is None or not most.labels_n:
        return ""
    sign = -1 if most.lower_is_better else 1
    for line in lines:
        cell = line.cells.get(results.PRETRAINED)
        if cell is None or not line.labels_n:
            continue
        bound = cell.high if most.lower_is_better else cell.low
        if sign * (cell.value if bound is None else bound) >= sign * target.value and line.labels_n < most.labels_n:
            times = most.labels_n / line.labels_n
            return (
                f'<p class="caption">With {line.labels_n:,} labels the pretrained encoder already passes what the same '
                f"architecture with random weights reaches with {most.labels_n:,}: {times:.3g} times fewer labels.</p>"
            )
    return ""


def _results_section(files: RunFiles, table: list[Line]) -> str:
    if not table:
        return section("Results", "", missing(files, "evaluation.json"))
    names = results.features(table)
    css = css_classes(names)
    heads = "".join(
        f'<th scope="col" class="{css[n]}" title="{escape(results.feature_name(n))}"><i></i>'
        f"{escape(shorten(results.feature_name(n), 18))}</th>"
        for n in names
    )
    rows, group = [], ("", "")
    for line in table:
        if (line.measure, line.metric) != group:
            group = (line.measure, line.metric)
            bounds = _bounds(table, group)
            title = f"{line.title}, {results.metric_name(line.metric)}"
            axis = strip_axis(*bounds, 100.0 if results.is_share(line.metric) else 1.0)
            rows.append(f'<tr class="measure"><th colspan="{len(names) + 2}">{escape(title)}</th>')
            rows.append(f'<td class="plot">{axis}</td></tr>')
        rows.append(_row(line, names, css, bounds))
    protocol = files.evaluation.get("protocol")
    note = f'<p class="note">Protocol: {escape(words(protocol, 600))}.</p>' if protocol else ""
    side = (
        "<p>Pretrained features beside the same architecture with random weights and the raw input, under the same "
        "protocol.</p><p>Brackets hold 95 % intervals. Where they overlap the best one, the figures are marked as a "
        "tie: the difference may be chance.</p>"
    )
    head = f'<tr><th scope="col">labels</th>{heads}<th scope="col">over baseline</th><th></th></tr>'
    body = f'<table class="results"><thead>{head}</thead><tbody>{"".join(rows)}</tbody></table>'
    body = f'<div class="scroll">{body}</div>{note}{_lists(files.evaluation.get("lists"))}'
    return section("Results", side, body, full=len(names) > 4)


def _lists(found: object) -> str:
    """What rankings are told by beside their hits: how many items they show, how rare ones, and for whom they are right."""
    if not isinstance(found, dict):
        return ""
    rows = []
    for name, one in found.items():
        if not isinstance(one, dict):
            continue
        groups = one.get("ndcg@10_by_popularity")
        groups = groups if isinstance(groups, dict) else {}
        cells = [("items shown", _shown(one.get("coverage@10"), "{:.0%}"))]
        cells.append(("novelty, bits", _shown(one.get("novelty@10"), "{:.1f}")))
        for group, title in (("head", "popular"), ("middle", "middling"), ("tail", "rare"), ("cold", "new")):
            cell = groups.get(group)
            cells.append((f"nDCG@10, {title}", _shown(cell.get("value"), "{:.3f}") if isinstance(cell, dict) else "–"))
        label = f'<th scope="row" data-label="">{escape(shorten(results.feature_name(str(name)), 18))}</th>'
        rows.append(f"<tr>{label}" + "".join(f'<td data-label="{t}"><span>{c}</span></td>' for t, c in cells) + "</tr>")
        heads = "".join(f'<th scope="col">{title}</th>' for title, _ in cells)
    if not rows:
        return ""
    table = f'<table class="results"><thead><tr><th></th>{heads}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
    note = (
        "Items shown: in anyone's first ten. Popular items have half of the events that taught, middling ones the next 30 %, "
        "rare ones the last 20 %, new ones none. Novelty: the mean of -log2 of an item's share of these events."
    )
    return f'<div class="scroll">{table}</div><p class="note">{unbroken(note)}</p>'


def _shown(value: object, form: str) -> str:
    found = results.number(value)
    return "–" if found is None else form.format(found)


def _bounds(table: list[Line], group: tuple[str, str]) -> tuple[float, float]:
    """The common axis of the interval plots of one measure."""
    cells = [c for line in table if (line.measure, line.metric) == group for c in line.cells.values()]
    low, high = span(np.array([v for c in cells for v in (c.value, c.low, c.high) if v is not None]))
    room = 0.04 * (high - low)
    return low - room, high + room


def _row(line: Line, names: list[str], css: dict[str, str], bounds: tuple[float, float]) -> str:
    best = line.best()
    parts, shown = [f'<th scope="row" data-label="labels">{escape(line.labels)}</th>'], []
    for name in names:
        cell = line.cells.get(name)
        if cell is None:
            parts.append('<td class="absent">–</td>')
            continue
        label = results.feature_name(name)
        figure, interval = results.figure(cell.value, line.metric), results.interval(cell.low, cell.high, line.metric)
        mark = "" if name not in best else f'<span class="mark">{"best" if len(best) == 1 else "tie"}</span>'
        kind = ' class="best"' if name == best[0] else ""
        parts.append(
            f'<td data-label="{escape(label)}"{kind}><span>{figure}{mark}</span><small>{interval}</small></td>'
        )
        shown.append((css[name], f"{label} {figure} {interval}", cell.value, cell.low, cell.high))
    plot = f'<td class="plot">{strip(shown, *bounds, rows=len(names))}</td>'
    return f"<tr>{''.join(parts)}{_gain(line)}{plot}</tr>"


def _gain(line: Line) -> str:
    gain = line.gain()
    if gain is None:
        return '<td class="absent">–</td>'
    value, baseline, apart = gain
    percent = results.is_share(line.metric)
    amount = minus(f"{100 * value:+.1f} points" if percent else f"{value:+.3f}")
    remark = f"{results.feature_name(baseline)}; {'intervals apart' if apart else 'intervals overlap'}"
    figure = f"<span>{amount}</span><small>{escape(remark)}</small>"
    return f'<td data-label="over baseline">{figure}</td>'


def _pictures_sections(files: RunFiles) -> tuple[str, str]:
    """(the map and the gallery, the CSS they need)."""
    atlas = files.atlas
    if atlas is None and files.recipe.get("kind", "image") != "image":  # of others there are no maps
        return "", ""
    if atlas is None:
        return section("Map of the embedding", "", missing(files, "atlas.json")), ""
    drawn = (
        f"{len(atlas.xy):,} of {atlas.total:,} samples" if len(atlas.xy) < atlas.total else f"{atlas.total:,} samples"
    )
    side = f"<p>{drawn}; those the encoder finds alike lie close together (t-SNE). Hover or tap to see one.</p>"
    if atlas.trust is not None:
        side += (
            f"<p>Trustworthiness {atlas.trust:.2f} of 1: how far neighbours on the map are neighbours in the features. "
            "Distances between far groups mean little.</p>"
        )
    if (atlas.labels >= 0).any():
        side += "<p>Labels only colour the map; they did not place a dot.</p>"
    tiles, css = gallery(atlas)
    beside = (
        "<p>Each sample, left, and the six most similar ones by cosine. Queries are drawn by the seed, not chosen.</p>"
    )
    if (atlas.labels >= 0).any():
        beside += '<p class="key"><i></i>same class<br><i class="different"></i>another class</p>'
    if atlas.agreement is not None and atlas.chance is not None:
        beside += (
            f"<p>Over all {len(atlas.xy):,} samples, {results.share(atlas.agreement)} of such neighbours share the "
            f"class; random ones would in {results.share(atlas.chance)} of cases.</p>"
        )
    return section("Map of the embedding", side, the_map(atlas)) + section("Nearest neighbours", beside, tiles), css
