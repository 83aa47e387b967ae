"""What several seeds say together."""

import statistics
from typing import Any

from scipy.stats import t as student


def joined(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Mean over the runs, low and high: the mean interval of a run joined with that of the mean over seeds, by Student's t."""
    value = statistics.mean(r["value"] for r in rows)
    within = [statistics.mean(abs(r[end] - r["value"]) for r in rows) for end in ("low", "high")]
    n, between = len(rows), 0.0
    if n > 1:
        between = float(student.ppf(0.975, n - 1)) * statistics.stdev(r["value"] for r in rows) / n**0.5
    low, high = ((w**2 + between**2) ** 0.5 for w in within)
    return {"value": value, "low": value - low, "high": value + high}
