"""What was run: key facts, curves, recipe, data, and the commands that make it again."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from html import escape
from typing import Any

import numpy as np

from selftaught.reporting import results
from selftaught.reporting.charts import Mark, curve
from selftaught.reporting.files import RunFiles
from selftaught.reporting.results import Line
from selftaught.reporting.scales import minus

COMMANDS = {
    "evaluation.json": "selftaught evaluate {run} {labelled}",
    "atlas.json": "selftaught evaluate {run} {labelled}",
    "log.jsonl": "selftaught pretrain {data} {how}",
    "recipe.json": "selftaught pretrain {data} {how}",
}
_CONTENTS = {
    "evaluation.json": "No evaluation",
    "atlas.json": "No map of the embedding and no neighbours",
    "log.jsonl": "No training log",
}
_CURVES = {
    "loss": ("loss", "A falling loss alone proves nothing: collapse has a low loss too."),
    "held_out_loss": (
        "held-out loss",
        "The loss on samples kept out of training; rising while the loss falls is overfitting.",
    ),
    "general_loss": (
        "loss on general data",
        "On data unlike the run's, always the same masks or views; rising is forgetting.",
    ),
    "domain_loss": ("loss on the domain", "On the run's held-out samples, measured as that on general data is."),
    "neighbours_kept": (
        "neighbours kept",
        "Share of general samples' 10 nearest neighbours at the start that still are; training lowers it.",
    ),
    "general_knn": ("k-NN on general data", "How often the 10 nearest neighbours' vote is right; never trained."),
    "rank": ("effective rank", "How many directions the features use; near 1 is collapse."),
    "std": ("feature std", "Spread of the L2-normalised features; 0 is collapse, 1 is healthy."),
    "alignment": ("alignment", "Distance of two views of one sample; lower is closer."),
    "uniformity": ("uniformity", "How evenly features cover the sphere; lower is more even."),
    "knn": ("k-NN accuracy", "On held-out labels, for watching only; they never train."),
    "lr": ("learning rate", ""),
}
_NOT_CURVES = {"step", "width", "samples", "projected_width", "general_losses", "rise", "rise_low", "rise_high"}
_MAIN = ("pretext", "encoder", "data", "steps", "epochs", "batch", "seed")
_LIST = 20


def section(title: str, side: str, body: str, full: bool = False) -> str:
    """A section of the page: its title and remarks beside its content, or above it if it needs the `full` width.

    `side` and `body` are HTML already.
    """
    head = f'<div class="side"><h2>{escape(title)}</h2>{unbroken(side)}</div>'
    return f"<section{' class=full' if full else ''}>{head}<div>{body}</div></section>"


def unbroken(html: str) -> str:
    """HTML text in which no line starts with a per cent sign."""
    return html.replace(" %", "&nbsp;%")


def command(files: RunFiles, name: str) -> str:
    """The command that makes a file of the run folder; DATA where the folder does not know the data's place."""
    places = {
        "run": str(files.run),
        "data": words(files.recipe.get("data") or "DATA"),
        "labelled": words(files.evaluation.get("data") or "DATA"),
    }
    # Of a bundle without its run nothing is known but where a run could be.
    how = (
        f"--recipe {shlex.quote(f'{files.run}/recipe.json')} --out {shlex.quote(f'{files.run}-again')}"
        if files.recipe
        else f"--out {shlex.quote(str(files.run))}"
    )
    made = COMMANDS[name].format(how=how, **{key: shlex.quote(place) for key, place in places.items()})
    asked = files.evaluation.get("asked")
    more = asked if name in ("evaluation.json", "atlas.json") and isinstance(asked, list) else []
    return " ".join([made, *(shlex.quote(words(word)) for word in more)])


def encoder_name(recipe: dict[str, Any]) -> str:
    encoder = recipe.get("encoder")
    return words(encoder.get("name", encoder) if isinstance(encoder, dict) else encoder or "", 60)


def missing(files: RunFiles, name: str) -> str:
    """The note that stands where a file is absent: what is not there and the command that makes it."""
    how = f"<code>{escape(command(files, name))}</code>"
    return f'<p class="empty">{_CONTENTS[name]} in this run folder. Make it with {how}</p>'


def facts(files: RunFiles, table: list[Line]) -> str:
    """The key facts below the headline, as many as the files give."""
    found = [*_result_facts(table), *_run_facts(files)]
    items = "".join(
        f"<div><dt>{escape(a)}</dt><dd>{escape(b)}<small>{escape(c)}</small></dd></div>" for a, b, c in found
    )
    return f'<dl class="facts">{items}</dl>' if items else ""


def _result_facts(table: list[Line]) -> Iterator[tuple[str, str, str]]:
    mine = [line for line in table if results.PRETRAINED in line.cells]
    # Of rankings the figure that the verdict is told by.
    top = next((line for line in mine if line.metric == "ndcg@10"), mine[0] if mine else None)
    if top is None:
        return
    cell = top.cells[results.PRETRAINED]
    labels = f" with {top.labels_n:,} labels" if top.labels_n else ""
    span = results.interval(cell.low, cell.high, top.metric)
    yield (
        f"{top.title} {results.metric_name(top.metric)}",
        results.figure(cell.value, top.metric),
        f"{span}{labels}".strip(),
    )
    gain = top.gain()
    if gain is not None:
        value, baseline, apart = gain
        amount = f"{100 * value:+.1f} points" if results.is_share(top.metric) else f"{value:+.3f}"
        words = "" if apart else "; intervals overlap"
        yield "Over the best baseline", minus(amount), f"{results.feature_name(baseline)}{words}"


def _run_facts(files: RunFiles) -> Iterator[tuple[str, str, str]]:
    count = results.number(files.data.get("train", files.data.get("count")))
    if count is not None:
        held_out = results.number(files.data.get("held_out"))
        if files.data.get("kind") == "event":  # the protocol divides their events, not users
            yield "Users", f"{count:,.0f}", ""
        else:
            yield "Training samples", f"{count:,.0f}", f"{held_out:,.0f} held out" if held_out else ""
    seconds = results.number(files.summary.get("seconds"))
    if seconds is not None:
        rate = results.number(files.summary.get("samples_per_second"))
        speed = f"{rate:,.0f} samples/s" if rate is not None else ""
        device = files.summary.get("device")
        yield "Training time", duration(seconds), " on ".join(filter(None, (speed, str(device) if device else "")))
    parameters = results.number(files.summary.get("parameters"))
    if parameters is not None:
        yield (
            "Parameters",
            f"{parameters / 1e6:.3g} M" if parameters >= 1e5 else f"{parameters:,.0f}",
            encoder_name(files.recipe),
        )


def duration(seconds: float) -> str:
    """Seconds in words: 4210 -> '1 h 10 min'."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes:02d} min"
    return f"{hours // 24} d {hours % 24} h"


def words(value: Any, limit: int = 300) -> str:
    """Any JSON value in words, cut at `limit` characters."""
    if isinstance(value, dict):
        text = ", ".join(f"{str(k).replace('_', ' ')} {words(v)}" for k, v in value.items())
    elif isinstance(value, list):
        text = ", ".join(words(v) for v in value[:_LIST]) + (
            f" and {len(value) - _LIST:,} more" if len(value) > _LIST else ""
        )
    elif isinstance(value, bool) or value is None:
        text = {True: "yes", False: "no", None: "–"}[value]
    elif isinstance(value, float):
        text = f"{value:.6g}"
    else:
        text = f"{value:,}" if isinstance(value, int) and abs(value) >= 10_000 else str(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def curves_section(files: RunFiles) -> str:
    """Small charts of every logged metric: the loss first, then health, then the rest, the learning rate last."""
    if not files.log and not files.health:
        return section("Training", "", missing(files, "log.jsonl"))
    end = float(max(row["step"] for row in (*files.log, *files.health)))
    marks = [Mark(float(a["step"]), i, str(a.get("name", "alarm"))) for i, a in enumerate(files.alarms, 1)]
    logs = (files.retention, files.health, files.log)
    sources = {key: rows for rows in logs for key in dict.fromkeys(k for row in rows for k in row)}
    known = [key for key in _CURVES if key in sources and key != "lr"]
    other = [key for key in sources if key not in _CURVES and key not in _NOT_CURVES]
    charts = [_chart(key, sources[key], end, marks) for key in (*known, *other, *(["lr"] if "lr" in sources else []))]
    side = "<p>Over training steps. The bold line is the median, the thin one every value’s range.</p>"
    if not files.alarms and files.health:
        side += "<p>No alarm was raised.</p>"
    alarms = "".join(
        f"<li><b>{i}</b> {escape(_named(a))}, step {a['step']:,}"
        + "".join(f"<span>{escape(str(a[key]))}</span>" for key in ("seen", "cause", "remedy") if a.get(key))
        + "</li>"
        for i, a in enumerate(files.alarms, 1)
    )
    listed = f'<ol class="alarms">{alarms}</ol>' if alarms else ""
    return section("Training", side, f'<div class="multiples">{"".join(charts)}</div>{listed}')


def _named(alarm: dict[str, Any]) -> str:
    return str(alarm.get("name", "alarm")).replace("_", " ")


def _chart(key: str, rows: list[dict[str, Any]], end: float, marks: list[Mark]) -> str:
    """One chart, or '' where the metric is never a number. null is 'not measured'; NaN and infinity are drawn."""
    pairs = [
        (row["step"], row[key])
        for row in rows
        if isinstance(row.get(key), int | float) and not isinstance(row[key], bool)
    ]
    if not pairs:
        return ""
    steps, values = (np.array(column, dtype=np.float64) for column in zip(*pairs))
    title, note = _CURVES.get(key, (key.replace("_", " "), ""))
    last = minus(f"{values[-1]:.3g}")
    drawing = curve(title, steps, values, end, marks if key != "lr" else ())
    remark = f"<p>{escape(note)}</p>" if note else ""
    return f"<figure><figcaption>{escape(title)}<span>{last}</span></figcaption>{drawing}{remark}</figure>"


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}" if name else str(key))
    else:
        yield name, value


def _table(rows: list[tuple[str, str]]) -> str:
    body = "".join(f'<tr><th scope="row">{escape(a)}</th><td>{escape(b)}</td></tr>' for a, b in rows)
    return f'<table class="facts-table"><tbody>{body}</tbody></table>'


def recipe_section(files: RunFiles) -> str:
    """What was run, and the commands that run it again."""
    if not files.recipe:
        return ""
    train = files.recipe.get("train")
    settings = {**(train if isinstance(train, dict) else {}), **files.recipe, "encoder": encoder_name(files.recipe)}
    main = [(key, words(settings[key])) for key in _MAIN if settings.get(key) not in (None, "")]
    optim = settings.get("optim")
    if isinstance(optim, dict):
        main.append(("optimiser", words({k: v for k, v in optim.items() if not isinstance(v, dict | list)})))
    everything = [(name, words(value)) for name, value in _flat(files.recipe)]
    whole = f"<details><summary>The whole recipe: {len(everything)} settings</summary>{_table(everything)}</details>"
    again = "\n".join((command(files, "recipe.json"), command(files, "evaluation.json")))
    version = files.recipe.get("selftaught")
    with_version = f" with selftaught {escape(str(version))}" if version else ""
    reproduce = (
        f'<h3>Run it again</h3><pre>{escape(again)}</pre><p class="note">The same recipe, data and thread count give '
        f"the same bits on the same class of machine{with_version}.</p>"
    )
    return section("What was run", "", _table(main) + whole + reproduce)


def data_section(files: RunFiles) -> str:
    """What the run was fed: counts, classes, and every sample that was left out with its reason."""
    data = files.data
    if not data:
        return ""
    rows = [
        (str(key).replace("_", " "), words(value)) for key, value in data.items() if key not in ("skipped", "classes")
    ]
    classes = data.get("classes")
    if isinstance(classes, list | dict) and classes:
        rows.insert(1, ("classes", f"{len(classes):,}: {words(classes, 700)}"))
    elif classes is not None:
        rows.insert(1, ("classes", words(classes)))
    skipped = data.get("skipped")
    body = _table(rows)
    if isinstance(skipped, list) and skipped:
        named = [(words(s.get("name")), words(s.get("reason"))) for s in skipped[:200] if isinstance(s, dict)]
        more = f'<p class="note">and {len(skipped) - 200:,} more in data.json</p>' if len(skipped) > 200 else ""
        title = f"{len(skipped):,} samples left out, with reasons"
        body += f"<details><summary>{title}</summary>{_table(named)}{more}</details>"
    elif isinstance(skipped, list):
        body += '<p class="note">No sample had to be left out.</p>'
    return section("Data", "", body)
