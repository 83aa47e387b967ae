"""Charts as inline SVG text. Colours come from the page's CSS classes, so that one drawing serves light and dark."""

import math
import unicodedata
from collections.abc import Callable, Sequence
from html import escape
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from selftaught.reporting import results, scales


class Point(NamedTuple):
    """A figure at x, with its 95 % interval where there is one."""

    x: float
    value: float
    low: float | None
    high: float | None


class Series(NamedTuple):
    """One line of a chart: its name as shown, its CSS class, its points in order of x."""

    name: str
    css: str
    points: list[Point]


class Mark(NamedTuple):
    """An event at a step: the number it has in the list below the chart, and what it says."""

    step: float
    number: int
    text: str


def text_width(text: str, size: float) -> float:
    """A cautious estimate of a text's width in pixels: wide East Asian signs take a full em, others 0.58."""
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in text)
    return size * (wide + 0.58 * (len(text) - wide))


def shorten(text: str, length: int) -> str:
    """The text, or its beginning and its end: names of runs often differ in their ends."""
    end = length // 2
    return text if len(text) <= length else f"{text[: length - 1 - end]}…{text[-end:]}"


def _path(x: Sequence[float], y: Sequence[float]) -> str:
    return "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in zip(x, y))


def _text(x: float, y: float, text: str, css: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{css}" text-anchor="{anchor}">{escape(text)}</text>'


def _spread(wanted: list[float], gap: float, low: float, high: float) -> list[float]:
    """Positions at least `gap` apart and inside [low, high] where they fit, as near as may be to the wanted ones."""
    order = np.argsort(wanted, kind="stable")
    placed = np.array(wanted, dtype=float)[order]
    for i in range(1, len(placed)):
        placed[i] = max(placed[i], placed[i - 1] + gap)
    overflow = placed[-1] - high if len(placed) else 0.0
    if overflow > 0:
        placed[-1] = high
        for i in range(len(placed) - 2, -1, -1):
            placed[i] = min(placed[i], placed[i + 1] - gap)
    result = np.empty_like(placed)
    result[order] = np.maximum(placed, low)
    return [float(v) for v in result]


def efficiency(series: list[Series], width: int, height: int, metric: str, label: str) -> str:
    """Label efficiency: value over number of labels (log), 95 % bands, each line named at its end.

    `label` is the chart's description for those who cannot see it. Series with no points are left out; a series of one
    point is a dot with its interval.
    """
    series = [s for s in series if s.points]
    percent = results.is_share(metric)
    xs = sorted({p.x for s in series for p in s.points if p.x > 0})
    if not xs:
        return ""
    names = [shorten(s.name, 22) for s in series]
    if width >= 500:  # a phone has room for the name alone; the figure is in the table
        names = [f"{name}  {results.figure(s.points[-1].value, metric)}" for name, s in zip(names, series)]
    right = 20 + max(text_width(name, 13.0) for name in names)
    left, top, bottom = 46.0, 14.0, 46.0
    low, high = math.log10(xs[0]), math.log10(xs[-1])
    if high == low:
        low, high = low - 0.5, high + 0.5
    bounds = [v for s in series for p in s.points for v in (p.low, p.high, p.value) if v is not None]
    y_low, y_high = scales.span(np.array(bounds))
    room = 0.06 * (y_high - y_low)
    y_low, y_high = y_low - room if not percent else max(0.0, y_low - room), y_high + room
    scale = 100 if percent else 1

    def px(x: float) -> float:
        return left + (math.log10(x) - low) / (high - low) * (width - left - right)

    def py(y: float) -> float:
        return height - bottom - (y - y_low) / (y_high - y_low) * (height - top - bottom)

    parts = [f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}" class="chart">']
    ticks = scales.nice_ticks(y_low * scale, y_high * scale, 6)
    for tick, words in zip(ticks, scales.tick_labels(ticks)):
        y = py(tick / scale)
        parts.append(f'<line x1="{left}" x2="{width - right:.1f}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>')
        parts.append(_text(left - 8, y + 4, words, "tick", "end"))
    parts.append(_label_ticks(xs, px, height - bottom))
    parts.append(_text(left, height - 8.0, "labelled samples used, log scale", "axis"))
    parts += [_band(s, px, py) for s in series]
    ends = _spread([py(s.points[-1].value) for s in series], 17.0, top, height - bottom)
    for s, name, end in zip(series, names, ends):
        parts.append(_line(s, px, py, metric))
        last = s.points[-1]
        x, y = px(last.x), py(last.value)
        if abs(end - y) > 3 or width - right - x > 6:
            parts.append(f'<path d="M{x + 6:.1f} {y:.1f}L{width - right + 8:.1f} {end:.1f}" class="leader {s.css}"/>')
        parts.append(_text(width - right + 12, end + 4.5, name, f"end {s.css}"))
    return "".join(parts) + "</svg>"


def _label_ticks(xs: list[float], px: Callable[[float], float], base: float) -> str:
    """A tick at every measured number of labels; its text only where it does not touch the one before."""
    parts, free = [], -math.inf
    for x in xs:
        words = f"{x:,.0f}"
        half = text_width(words, 12.0) / 2
        parts.append(f'<line x1="{px(x):.1f}" x2="{px(x):.1f}" y1="{base}" y2="{base + 5}" class="stub"/>')
        if px(x) - half > free:
            parts.append(_text(px(x), base + 19, words, "tick", "middle"))
            free = px(x) + half + 6
    return "".join(parts)


def _band(s: Series, px: Callable[[float], float], py: Callable[[float], float]) -> str:
    banded = [(px(p.x), py(p.low), py(p.high)) for p in s.points if p.low is not None and p.high is not None]
    if len(banded) == 1:
        x, low, high = banded[0]
        return f'<path d="M{x:.1f} {low:.1f}V{high:.1f}" class="whisker {s.css}"/>'
    if not banded:
        return ""
    xs, lows, highs = zip(*banded)
    return f'<path d="{_path(xs + xs[::-1], highs + lows[::-1])}Z" class="band {s.css}"/>'


def _line(s: Series, px: Callable[[float], float], py: Callable[[float], float], metric: str) -> str:
    xs, ys = [px(p.x) for p in s.points], [py(p.value) for p in s.points]
    dots = []
    for x, y, p in zip(xs, ys, s.points):
        span = results.interval(p.low, p.high, metric)
        title = escape(f"{s.name}, {p.x:,.0f} labels: {results.figure(p.value, metric)} {span}")
        dots.append(
            f'<g class="dot"><circle cx="{x:.1f}" cy="{y:.1f}" r="12" class="hit"/>'
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4"/><title>{title}</title></g>'
        )
    return f'<g class="series {s.css}"><path d="{_path(xs, ys)}"/>{"".join(dots)}</g>'


STRIP = 200  # width of an interval plot and of its axis


def strip_axis(low: float, high: float, scale: float) -> str:
    """The axis that stands above a column of interval plots."""
    ticks = scales.nice_ticks(low * scale, high * scale, 4)
    words = (
        _text(_strip_x(tick / scale, low, high), 13.0, text, "tick", "middle")
        for tick, text in zip(ticks, scales.tick_labels(ticks))
    )
    return f'<svg viewBox="0 0 {STRIP} 16" class="strip" aria-hidden="true">{"".join(words)}</svg>'


def _strip_x(v: float, low: float, high: float) -> float:
    return 12 + (v - low) / (high - low) * (STRIP - 24)  # room for half of "100"


def strip(cells: list[tuple[str, str, float, float | None, float | None]], low: float, high: float, rows: int) -> str:
    """Intervals side by side on one axis, for a line of a table: (CSS class, title, value, low, high) each."""
    width, gap = STRIP, 11
    height = gap * max(rows, len(cells)) + 4

    def px(v: float) -> float:
        return _strip_x(v, low, high)

    parts = [f'<svg viewBox="0 0 {width} {height}" class="strip" aria-hidden="true">']
    for tick in scales.nice_ticks(low, high, 4):
        parts.append(f'<line x1="{px(tick):.1f}" x2="{px(tick):.1f}" y1="0" y2="{height}" class="grid"/>')
    for i, (css, title, value, a, b) in enumerate(cells):
        y = 2 + gap * (i + 0.5)
        whisker = f'<path d="M{px(a):.1f} {y}H{px(b):.1f}" class="whisker"/>' if a is not None and b is not None else ""
        dot = f'<circle cx="{px(value):.1f}" cy="{y}" r="3.2"/>'
        hit = f'<rect x="0" y="{y - gap / 2}" width="{width}" height="{gap}" class="hit"/>'
        parts.append(f'<g class="{css}">{hit}{whisker}{dot}<title>{escape(title)}</title></g>')
    return "".join(parts) + "</svg>"


def curve(
    title: str, steps: Float[np.ndarray, " n"], values: Float[np.ndarray, " n"], end: float, marks: Sequence[Mark] = ()
) -> str:
    """One small chart of a metric over steps 0 to `end`: the thinned curve, its trend, its last value, the alarms.

    Values that are not finite are drawn as ticks at the top edge; finite ones outside the axis as arrows at the edge.
    """
    width, height, left, right, top, bottom = 340.0, 170.0, 44.0, 12.0, 12.0, 24.0
    low, high = scales.extent(values)
    room = 0.05 * (high - low)
    low, high = low - room, high + room
    end = max(end, 1.0)

    def px(x: float) -> float:
        return left + x / end * (width - left - right)

    def py(y: float) -> float:
        return height - bottom - (min(max(y, low), high) - low) / (high - low) * (height - top - bottom)

    finite = np.isfinite(values)
    summary = "no finite value"
    if finite.any():
        best, worst = values[finite].min(), values[finite].max()
        summary = f"last {values[finite][-1]:.4g}, least {best:.4g}, greatest {worst:.4g}"
    parts = [
        f'<svg viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label="{escape(f"{title}: {summary}")}" class="curve">',
        f"<title>{escape(f'{title}: {summary}')}</title>",
    ]
    ticks = scales.nice_ticks(low, high, 4)
    for tick, words in zip(ticks, scales.tick_labels(ticks)):
        parts.append(f'<line x1="{left}" x2="{width - right}" y1="{py(tick):.1f}" y2="{py(tick):.1f}" class="grid"/>')
        parts.append(_text(left - 7, py(tick) + 4, words, "tick", "end"))
    ticks = scales.nice_ticks(0.0, end, 5)
    for tick in ticks:
        anchor = "middle" if px(tick) < width - 24 else "end"
        parts.append(_text(px(tick), height - 6, scales.compact(tick), "tick", anchor))
    parts.append(f'<line x1="{left}" x2="{width - right}" y1="{height - bottom}" y2="{height - bottom}" class="base"/>')
    parts += [_mark(m, px(min(m.step, end)), top, height - bottom) for m in marks]
    parts.append(_trace(steps, values, px, py))
    parts.append(_outside(steps, values, low, high, px, (top, height - bottom)))
    return "".join(parts) + "</svg>"


def _trace(
    steps: Float[np.ndarray, " n"],
    values: Float[np.ndarray, " n"],
    px: Callable[[float], float],
    py: Callable[[float], float],
) -> str:
    x, y = scales.thin(steps, values, 140)
    if len(x) == 0:
        return ""
    trend_x, trend_y = scales.smooth(steps, values, 90)
    raw = ""
    if len(trend_x) < len(x):
        raw = f'<path d="{_path([px(v) for v in x], [py(v) for v in y])}" class="raw-line"/>'
    points = [px(v) for v in trend_x], [py(v) for v in trend_y]
    dot = f'<circle cx="{points[0][-1]:.1f}" cy="{points[1][-1]:.1f}" r="3" class="last"/>'
    return f'{raw}<path d="{_path(*points)}" class="trend"/>{dot}'


def _outside(
    steps: Float[np.ndarray, " n"],
    values: Float[np.ndarray, " n"],
    low: float,
    high: float,
    px: Callable[[float], float],
    edges: tuple[float, float],
) -> str:
    """Marks at the edges: values off the axis, and at the top those not finite (the first of each run of them)."""
    bad = ~np.isfinite(values)
    first = bad & ~np.r_[False, bad[:-1]]
    off = ~bad & ((values > high) | (values < low))
    parts = []
    for i in np.flatnonzero(first | off)[:60]:
        x = px(float(steps[i]))
        text = escape(f"step {steps[i]:,.0f}: {values[i]:.4g}")
        if bad[i]:
            shape = f"M{x - 3:.1f} {edges[0] - 8}l6 6m0 -6l-6 6"
        else:
            shape = (
                f"M{x - 4:.1f} {edges[0] - 2}l4 -6l4 6z" if values[i] > high else f"M{x - 4:.1f} {edges[1]}l4 6l4 -6z"
            )
        parts.append(f'<path d="{shape}" class="{"notfinite" if bad[i] else "off"}"><title>{text}</title></path>')
    return "".join(parts)


def _mark(mark: Mark, x: float, top: float, base: float) -> str:
    return (
        f'<g class="alarm"><line x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{base}"/>'
        f'<circle cx="{x:.1f}" cy="{top - 3}" r="7"/>{_text(x, top + 0.5, str(mark.number), "number", "middle")}'
        f"<title>{escape(mark.text)}</title></g>"
    )
