"""Frozen dataclasses to JSON and strictly back: an unknown setting names its nearest match, an ill-typed one its type."""

import dataclasses
import hashlib
import json
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from selftaught.errors import UserError, unknown

T = TypeVar("T")


def to_json(value: Any) -> Any:
    """Dataclasses to plain JSON values; tuples become lists."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(k): to_json(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(v) for v in value]
    if isinstance(value, Path):
        return str(value)
    return value


def from_json(cls: type[T], data: Any, where: str = "") -> T:
    """The strict inverse of `to_json`: an unknown, missing or ill-typed field is refused by name."""
    if not isinstance(data, dict):
        raise UserError(f"{where or cls.__name__}: expected an object, got {json.dumps(data)}")
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    hints = typing.get_type_hints(cls)
    values = {}
    for name, value in data.items():
        if name not in fields:
            raise unknown("setting", f"{where}.{name}".lstrip("."), [f"{where}.{n}".lstrip(".") for n in fields])
        values[name] = _convert(hints[name], value, f"{where}.{name}".lstrip("."))
    for name, f in fields.items():
        if name not in values and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            raise UserError(f"setting '{where}.{name}' is missing".replace("'.", "'"))
    return cls(**values)


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        return _convert(next(a for a in arguments if a is not type(None)), value, where)
    if dataclasses.is_dataclass(hint):
        return from_json(typing.cast(type, hint), value, where)
    if origin is tuple and isinstance(value, list | tuple):
        inner = arguments[:1] * len(value) if arguments[1:] == (...,) else arguments
        if len(inner) == len(value):
            return tuple(_convert(a, v, where) for a, v in zip(inner, value, strict=True))
    if origin is dict and isinstance(value, dict):
        return value
    if origin is typing.Literal and value in arguments:
        return value
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    expected = getattr(hint, "__name__", str(hint))
    if origin is typing.Literal:
        expected = "one of " + ", ".join(map(str, arguments))
    raise UserError(f"setting '{where}' is {json.dumps(value)}; it must be {expected}")


def digest(value: Any) -> str:
    """A short hash of a recipe or any JSON value."""
    text = json.dumps(to_json(value), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def load_json(path: Path) -> Any:
    """Read a JSON file; a missing or broken one is refused in one line."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"'{path}' does not exist") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"'{path}' is not JSON: {error}") from error


def merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Nested settings with those of `new` put over those of `old`."""
    both = {**old, **new}
    for name in old.keys() & new.keys():
        if isinstance(old[name], dict) and isinstance(new[name], dict):
            both[name] = merged(old[name], new[name])
    return both


def differences(old: Any, new: Any, where: str = "") -> list[str]:
    """Lines `field: old -> new` for every leaf in which two JSON values differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        lines = []
        for name in sorted({*old, *new}):
            lines += differences(old.get(name), new.get(name), f"{where}.{name}".lstrip("."))
        return lines
    return [] if old == new else [f"{where}: {json.dumps(old)} -> {json.dumps(new)}"]


def sections(pairs: Sequence[str], known: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Settings by section; a section that is not among the `known` ones names its nearest match."""
    tree = parse_settings(pairs)
    for section, values in tree.items():
        if section not in known:
            raise unknown("section of settings", section, known)
        if not isinstance(values, dict):
            raise UserError(f"setting '{section}' is a section; set one of its fields, such as {section}.NAME=VALUE")
    return tree


def parse_settings(pairs: Sequence[str]) -> dict[str, Any]:
    """`["pretext.temperature=0.2", "optim.lr=0.1"]` as nested dictionaries; values are JSON, else text."""
    tree: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name:
            raise UserError(f"setting '{pair}' is not NAME=VALUE, such as pretext.temperature=0.2")
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            value = text
        *path, last = name.split(".")
        node = tree
        for part in path:
            node = node.setdefault(part, {})
            if not isinstance(node, dict):
                raise UserError(f"setting '{pair}' goes below a value set before")
        node[last] = value
    return tree
