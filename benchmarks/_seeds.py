"""What several seeds say together."""

import statistics
from typing import Any


def joined(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Mean over the runs, low and high: the mean interval of a run joined with the spread between them."""
    value = statistics.mean(r["value"] for r in rows)
    within = [statistics.mean(abs(r[end] - r["value"]) for r in rows) for end in ("low", "high")]
    between = 2.0 * (statistics.stdev(r["value"] for r in rows) if len(rows) > 1 else 0.0)
    low, high = ((w**2 + between**2) ** 0.5 for w in within)
    return {"value": value, "low": value - low, "high": value + high}
