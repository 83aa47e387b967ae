"""Settings go to JSON and come back strictly."""

from dataclasses import dataclass, field

import pytest

from selftaught.encoders import EncoderConfig
from selftaught.errors import UserError
from selftaught.recipe import Recipe
from selftaught.settings import differences, digest, from_json, parse_settings, to_json
from selftaught.train.config import TrainConfig


@dataclass(frozen=True)
class Inner:
    rate: float = 0.5
    pair: tuple[float, float] = (0.1, 0.2)


@dataclass(frozen=True)
class Outer:
    name: str
    count: int = 3
    inner: Inner = field(default_factory=Inner)
    maybe: float | None = None


RECIPE = Recipe(
    data="d", data_hash="h", holdout=0.1, limit=96, kind="image", modality={}, pretext="simclr", pretext_config={},
    encoder=EncoderConfig("resnet18", 32), train=TrainConfig(steps=10, batch=8),
)  # fmt: skip


@pytest.mark.parametrize("value", [Outer("x", 4, Inner(1.0, (0.3, 0.4)), 2.0), RECIPE])
def test_round_trip(value: Outer | Recipe) -> None:
    assert from_json(type(value), to_json(value)) == value


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"name": "x", "cuont": 1}, "unknown setting 'cuont'; did you mean 'count'"),
        ({"name": "x", "inner": {"rte": 1}}, "unknown setting 'inner.rte'; did you mean 'inner.rate'"),
        ({}, "setting 'name' is missing"),
        ({"name": 3}, "setting 'name' is 3; it must be str"),
        ({"name": "x", "count": 1.5}, "setting 'count' is 1.5; it must be int"),
        ({"name": "x", "count": True}, "setting 'count' is true; it must be int"),
        ({"name": "x", "inner": {"pair": [1]}}, "setting 'inner.pair' is"),
        ({"name": "x", "inner": 3}, "inner: expected an object, got 3"),
        ([], "Outer: expected an object"),
    ],
)
def test_what_does_not_fit_is_named(data: object, message: str) -> None:
    with pytest.raises(UserError) as error:
        from_json(Outer, data)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_settings_of_the_command_line() -> None:
    pairs = ["pretext.temperature=0.2", "pretext.view.flip=0", "optim.name=lars", "train.ema=null"]
    assert parse_settings(pairs) == {
        "pretext": {"temperature": 0.2, "view": {"flip": 0}},
        "optim": {"name": "lars"},
        "train": {"ema": None},
    }
    for bad in ("temperature", "=3", "a=1"):
        pairs = [bad] if bad != "a=1" else ["a=1", "a.b=2"]
        with pytest.raises(UserError):
            parse_settings(pairs)


def test_differences_and_digest() -> None:
    old, new = {"a": 1, "b": {"c": [1, 2]}}, {"a": 1, "b": {"c": [1, 3]}, "d": None}
    assert differences(old, new) == ["b.c: [1, 2] -> [1, 3]"]
    assert digest(old) != digest(new)
    assert digest(old) == digest({"b": {"c": [1, 2]}, "a": 1})
