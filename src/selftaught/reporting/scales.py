"""Axes and series: sensible ticks, domains that survive outliers, and long runs thinned without losing a spike."""

import itertools
import math

import numpy as np
from jaxtyping import Float

_HUGE = 1e100  # beyond this, differences of two values overflow


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers (1, 2, 2.5 or 5 times a power of ten) inside [low, high].

    After Heckbert, "Nice numbers for graph labels", Graphics Gems 1990. One tick where low == high.
    """
    if not high > low:
        return [low]
    power = 10.0 ** math.floor(math.log10((high - low) / max(1, count - 1)))
    choices = [
        [i * step for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]
        for step in (m * power for m in (0.5, 1, 2, 2.5, 5, 10))
    ]
    return min(choices, key=lambda ticks: abs(len(ticks) - count)) or [low, high]


def tick_labels(ticks: list[float]) -> list[str]:
    """One text per tick, with the same number of decimals: as many as tell neighbours apart."""
    step = min((b - a for a, b in itertools.pairwise(ticks)), default=abs(ticks[0]) if ticks else 1.0)
    largest = max((abs(t) for t in ticks), default=0.0)
    if largest >= 10_000:
        texts = [compact(t) for t in ticks]
    elif 0 < largest < 1e-3:
        texts = ["0" if t == 0 else f"{t:.2g}" for t in ticks]
    else:
        decimals = next((d for d in range(6) if abs(round(step, d) - step) < 1e-6 * max(step, 1e-12)), 6)
        texts = [f"{0.0 if abs(t) < 1e-12 else t:.{decimals}f}" for t in ticks]
    return [minus(text) for text in texts]


def minus(text: str) -> str:
    """A number's text with a true minus sign."""
    return text.replace("-", "−")


def compact(value: float) -> str:
    """A large number in short: 12500 -> '12.5k', 3e6 -> '3M'."""
    for size, suffix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{suffix}" if abs(value) < 1e15 else f"{value:.1e}"
    return f"{value:.4g}"


def span(values: Float[np.ndarray, " n"]) -> tuple[float, float]:
    """The range of the finite values: (0, 1) for none, and room on both sides of a constant."""
    finite = np.clip(values[np.isfinite(values)], -_HUGE, _HUGE)
    if finite.size == 0:
        return 0.0, 1.0
    low, high = float(finite.min()), float(finite.max())
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        room = 0.1 * abs(low) or 1.0
        return low - room, high + room
    return low, high


def extent(values: Float[np.ndarray, " n"]) -> tuple[float, float]:
    """The range that a curve's axis should show: `span`, unless outliers stretch it more than five times.

    Then it is the range of the middle 98 % with a margin, and the outliers are drawn at the edge.
    """
    low, high = span(values)
    finite = np.clip(values[np.isfinite(values)], -_HUGE, _HUGE)
    if finite.size < 20:
        return low, high
    inner_low, inner_high = (float(q) for q in np.quantile(finite, (0.01, 0.99)))
    inner = inner_high - inner_low
    if inner > 0 and high - low > 5 * inner:
        return max(low, inner_low - inner), min(high, inner_high + inner)
    return low, high


def thin(
    x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"], buckets: int
) -> tuple[Float[np.ndarray, " m"], Float[np.ndarray, " m"]]:
    """At most four points per bucket of x (first, least, greatest, last), in order, so that every spike survives.

    Values that are not finite are left out. Short series come back whole.
    """
    finite = np.isfinite(x) & np.isfinite(y)
    x, y = x[finite], y[finite]
    if len(x) <= 4 * buckets:
        return x, y
    place = _buckets(x, buckets)
    starts = np.flatnonzero(np.r_[True, place[1:] != place[:-1]])
    ends = np.r_[starts[1:], len(x)]
    keep: set[int] = set()
    for a, b in zip(starts, ends):
        keep.update((int(a), int(b) - 1, int(a + y[a:b].argmin()), int(a + y[a:b].argmax())))
    kept = np.array(sorted(keep))
    return x[kept], y[kept]


def smooth(
    x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"], buckets: int
) -> tuple[Float[np.ndarray, " m"], Float[np.ndarray, " m"]]:
    """The median of y in each bucket of x at the bucket's mean x: the trend under a noisy curve."""
    finite = np.isfinite(x) & np.isfinite(y)
    x, y = x[finite], y[finite]
    if len(x) <= buckets:
        return x, y
    place = _buckets(x, buckets)
    used = np.unique(place)
    return (
        np.array([x[place == b].mean() for b in used]),
        np.array([float(np.median(y[place == b])) for b in used]),
    )


def _buckets(x: Float[np.ndarray, " n"], buckets: int) -> np.ndarray:
    width = max(float(x[-1] - x[0]), 1e-12)
    return np.minimum(((x - x[0]) / width * buckets).astype(np.int64), buckets - 1)
