"""Reading a run folder: every file may be absent, cut short by a kill, or broken; none of that may stop the report."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selftaught.errors import UserError
from selftaught.reporting import atlas
from selftaught.reporting.atlas import Atlas

_PNG, _LARGEST_PICTURE = b"\x89PNG\r\n\x1a\n", 4_000_000


@dataclass(frozen=True)
class RunFiles:
    """What a run folder holds. Absent: {} or [] or None. `problems` names the files that exist but cannot be read."""

    run: Path
    recipe: dict[str, Any]
    log: list[dict[str, Any]]
    health: list[dict[str, Any]]
    alarms: list[dict[str, Any]]
    retention: list[dict[str, Any]]
    data: dict[str, Any]
    summary: dict[str, Any]
    evaluation: dict[str, Any]
    outcome: dict[str, Any]
    rebuilt: bytes | None
    atlas: Atlas | None
    problems: list[str]


def _object(path: Path, problems: list[str]) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        problems.append(f"{path.name} cannot be read: {error}")
        return {}
    if isinstance(value, dict):
        return value
    problems.append(f"{path.name} holds a {type(value).__name__}, not an object")
    return {}


def _picture(path: Path, problems: list[str]) -> bytes | None:
    """The bytes of a PNG file."""
    if not path.exists():
        return None
    try:
        data = path.read_bytes()
    except OSError as error:
        problems.append(f"{path.name} cannot be read: {error}")
        return None
    if data.startswith(_PNG) and len(data) <= _LARGEST_PICTURE:
        return data
    problems.append(f"{path.name} is no PNG picture of at most {_LARGEST_PICTURE // 1_000_000} MB")
    return None


def _rows(path: Path, problems: list[str]) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file by step: a resumed run logs some steps twice, and the later row is the run's."""
    if not path.exists():
        return []
    rows: list[dict[str, Any]] = []
    bad = 0
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        problems.append(f"{path.name} cannot be read: {error}")
        return []
    for line in filter(str.strip, lines):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
        else:
            bad += 1
    if bad:
        problems.append(f"{path.name}: {bad} of {bad + len(rows)} lines cannot be read and are left out")
    return sorted(rows, key=lambda row: row["step"])


def _latest(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return list({row["step"]: row for row in rows}.values())


def _joined(evaluation: dict[str, Any], pairs: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """evaluation.json with the rows, verdicts and protocols of what was measured on pairs of texts, by its name."""
    whole = dict(evaluation)
    for name, one in pairs.items():
        for key in ("rows", "verdict"):
            there, more = whole.get(key), one.get(key)
            if isinstance(more, list):
                whole[key] = [*(there if isinstance(there, list) else []), *more]
        there, more = whole.get("protocol"), one.get("protocol")
        if isinstance(more, dict):
            more = {key: value for key, value in more.items() if key != "left_out"}  # the list; its length stays
            whole["protocol"] = {**(there if isinstance(there, dict) else {}), name: more}
        if "data" not in whole:  # one command makes one of them: that of what was measured first is told
            whole |= {key: one[key] for key in ("data", "asked") if key in one}
        if isinstance(one.get("lists"), dict):
            whole["lists"] = one["lists"]
    return whole


def read(run: Path) -> RunFiles:
    """All files of the run folder that the report is made of.

    Raises: UserError where `run` is not a folder.
    """
    if not run.is_dir():
        raise UserError(f"{run} is not a run folder; give the folder that holds recipe.json")
    problems: list[str] = []
    found = None
    if (run / atlas.TENSORS).exists() and (run / atlas.NAMES).exists():
        try:
            found = atlas.load(run)
        except UserError as error:
            problems.append(str(error))
    return RunFiles(
        run=run,
        recipe=_object(run / "recipe.json", problems),
        log=_latest(_rows(run / "log.jsonl", problems)),
        health=_latest(_rows(run / "health.jsonl", problems)),
        alarms=_rows(run / "alarms.jsonl", problems),
        retention=_latest(_rows(run / "retention.jsonl", problems)),
        data=_object(run / "data.json", problems),
        summary=_object(run / "summary.json", problems),
        evaluation=_joined(
            _object(run / "evaluation.json", problems),
            {name: _object(run / f"{name}.json", problems) for name in ("similarity", "retrieval", "ranking")},
        ),
        outcome=_object(run / "outcome.json", problems),
        rebuilt=_picture(run / "rebuilt.png", problems),
        atlas=found,
        problems=problems,
    )
