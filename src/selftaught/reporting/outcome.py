"""What the task makes of held-out samples: the pictures it rebuilds, and how its answers are confused."""

import base64
from html import escape

from selftaught.reporting.facts import section, unbroken, words
from selftaught.reporting.files import RunFiles

_NAMES = 12  # answers of which a table is drawn


def outcome_section(files: RunFiles) -> str:
    """The section; empty for a task that neither makes pictures nor gives answers."""
    parts = [_pictures(files), _confusions(files)]
    if not any(parts):
        return ""
    side = (
        "<p>Held-out samples, by the task's own question after training. They were not chosen: a hash orders them.</p>"
    )
    return section("What the task makes of it", side, "".join(parts))


def _pictures(files: RunFiles) -> str:
    names = files.outcome.get("pictures")
    if files.rebuilt is None or not isinstance(names, list):
        return ""
    columns = ", ".join(words(name, 30) for name in names)
    data = base64.b64encode(files.rebuilt).decode()
    image = f'<img class="rebuilt" alt="{escape(columns)}" src="data:image/png;base64,{data}">'
    return f'{image}<p class="caption">A row is a sample; columns: {escape(columns)}.</p>'


def _confusions(files: RunFiles) -> str:
    """A table of shares: of the questions whose right answer the row names, how often each answer was given."""
    names, counts = files.outcome.get("answers"), files.outcome.get("counts")
    if not isinstance(names, list) or not isinstance(counts, list) or not 1 < len(names) <= _NAMES:
        return ""
    if len(counts) != len(names) or not all(_is_row(row, len(names)) for row in counts):
        return ""
    titles = [escape(words(name, 30)) for name in names]
    heads = "".join(f'<th scope="col">{title}</th>' for title in titles)
    rows = []
    for i, (title, row) in enumerate(zip(titles, counts, strict=True)):
        cells = []
        for j, n in enumerate(row):
            share = n / max(1, sum(row))
            mark = ' class="best"' if i == j else ""
            cells.append(f'<td{mark} style="--share:{share:.3f}"><span>{share:.0%}</span></td>')
        rows.append(f'<tr><th scope="row">{title}</th>{"".join(cells)}</tr>')
    total, right = sum(map(sum, counts)), sum(counts[i][i] for i in range(len(names)))
    table = f'<table class="confusions"><thead><tr><th>right is</th>{heads}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
    guess = files.outcome.get("guess")  # not in folders of older versions
    by_chance = guess if isinstance(guess, float) and 0 < guess < 1 else 1 / len(names)
    said = f"{right / max(1, total):.1%} of {total:,} answers are right; a guess would be in {by_chance:.1%}."
    return f'<div class="scroll">{table}</div><p class="caption">{unbroken(said)} Columns: what the task said.</p>'


def _is_row(row: object, n: int) -> bool:
    return isinstance(row, list) and len(row) == n and all(isinstance(x, int) and x >= 0 for x in row)
