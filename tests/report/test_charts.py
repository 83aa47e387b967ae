import math
import re
from xml.etree import ElementTree

import numpy as np
import pytest

from selftaught.reporting import scales
from selftaught.reporting.charts import Mark, Point, Series, _spread, curve, efficiency, strip


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (0.187, 0.671), (-3.4, -1.1), (0, 9749), (1e-9, 3e-9), (5, 5.0001), (-1e12, 1e12)]
)
def test_ticks_are_round_evenly_spaced_and_inside(low, high):
    ticks = scales.nice_ticks(float(low), float(high), 5)
    assert 3 <= len(ticks) <= 8
    assert min(ticks) >= low - 1e-9 * abs(low)
    assert max(ticks) <= high + 1e-9 * abs(high)
    steps = np.diff(ticks)
    np.testing.assert_allclose(steps, steps[0], rtol=1e-6)
    digits = f"{steps[0]:.3e}".split("e")[0].rstrip("0").rstrip(".")
    assert digits in {"1", "2", "2.5", "5"}


def test_tick_labels_tell_neighbours_apart():
    for low, high in [(0, 1), (0.05, 0.075), (99_000, 101_000), (-3.5, -1), (0, 3e-4), (1e6, 5e6)]:
        labels = scales.tick_labels(scales.nice_ticks(float(low), float(high)))
        assert len(set(labels)) == len(labels), labels
        assert max(map(len, labels)) <= 7
    assert scales.tick_labels([-0.5, 0.0, 0.5]) == ["−0.5", "0.0", "0.5"]
    assert scales.compact(12_500.0) == "12.5k"
    assert scales.compact(3e6) == "3M"


def test_thinning_keeps_every_spike_and_the_ends():
    x = np.arange(100_000.0)
    y = np.random.default_rng(0).normal(size=100_000)
    spikes = {1234: 50.0, 1235: -70.0, 77_777: 44.0}
    for place, value in spikes.items():
        y[place] = value
    tx, ty = scales.thin(x, y, 200)
    assert len(tx) <= 4 * 200
    assert (np.diff(tx) > 0).all()
    assert set(spikes.values()) <= set(ty.tolist())
    assert (tx[0], tx[-1]) == (0.0, 99_999.0)


def test_thinning_leaves_short_series_whole_and_drops_what_is_not_finite():
    tx, ty = scales.thin(np.array([0.0, 1.0, 2.0]), np.array([1.0, math.nan, 3.0]), 10)
    assert tx.tolist() == [0.0, 2.0]
    assert ty.tolist() == [1.0, 3.0]


def test_trend_is_the_median_of_its_bucket():
    x = np.arange(1000.0)
    y = np.where(x % 10 == 0, 1e6, 2.0)  # a tenth of the values are outliers: a mean would move
    assert set(scales.smooth(x, y, 50)[1].tolist()) == {2.0}


def test_extent_resists_outliers_but_shows_ordinary_ranges_whole():
    y = np.linspace(3, 6, 500)
    assert scales.extent(y) == (3.0, 6.0)
    y[17] = 1e9
    low, high = scales.extent(y)
    assert low == 3.0
    assert 6 <= high < 12
    assert scales.extent(np.array([math.nan, math.inf])) == (0.0, 1.0)
    low, high = scales.extent(np.full(3, 0.5))
    assert low < 0.5 < high


@pytest.mark.parametrize(
    "values",
    [[1.0], [math.nan], [math.inf, -math.inf], [1e308, -1e308], [2.0, 2.0], [1.0, math.nan, 3.0], [0.0]],
)
def test_curve_survives_strange_values(values):
    text = curve("loss", np.arange(len(values), dtype=float), np.array(values), float(len(values) - 1))
    ElementTree.fromstring(text)
    assert not re.search(r'[dxy12]="[^"]*(nan|inf)', text)


def test_curve_marks_what_its_axis_cannot_show():
    y = np.full(100, 2.0) + np.linspace(0, 0.1, 100)
    y[40], y[60], y[61] = 1e6, math.nan, math.nan
    text = curve("loss", np.arange(100.0), y, 99.0, [Mark(40.0, 1, "spike & <b>")])
    assert text.count('class="off"') == 1
    assert "step 40: 1e+06" in text
    assert text.count('class="notfinite"') == 1, "one mark for a run of NaN"
    assert "spike &amp; &lt;b&gt;" in text


def test_long_curve_is_small_and_keeps_its_spike():
    y = np.random.default_rng(0).normal(5, 0.3, 200_000)
    y[123_456] = 7.9
    text = curve("loss", np.arange(200_000.0), y, 199_999.0)
    assert len(text) < 20_000
    assert "greatest 7.9" in text
    heights = [float(pair.split()[1]) for d in re.findall(r' d="M([^"]*)"', text) for pair in d.split("L")]
    assert min(heights) < 25, "the spike reaches the top of the chart"


def _positions(text: str, css: str) -> list[tuple[float, float]]:
    root = ElementTree.fromstring(text)
    group = next(g for g in root.iter("g") if g.get("class") == f"series {css}")
    return [(float(c.get("cx")), float(c.get("cy"))) for c in group.iter("circle") if c.get("class") is None]


def test_efficiency_chart_is_logarithmic_in_labels_and_higher_is_up():
    points = [Point(10.0, 0.1, None, None), Point(100.0, 0.2, None, None), Point(1000.0, 0.4, None, None)]
    (x1, y1), (x2, y2), (x3, y3) = _positions(
        efficiency([Series("a", "pretrained", points)], 800, 400, "accuracy", ""), "pretrained"
    )
    assert x2 - x1 == pytest.approx(x3 - x2, abs=0.2)
    assert (y1 - y2) * 2 == pytest.approx(y2 - y3, abs=0.4)


def test_efficiency_names_each_line_at_its_end_without_touching():
    series = [
        Series(f"名 <{i}>", "pretrained", [Point(10.0, 0.5, 0.4, 0.6), Point(100.0, 0.6 + i / 1000, 0.5, 0.7)])
        for i in range(5)
    ]
    text = efficiency(series, 800, 400, "accuracy", "label")
    root = ElementTree.fromstring(text)
    ends = [t for t in root.iter("text") if t.get("class").startswith("end ")]
    assert [t.text for t in ends] == [f"名 <{i}>  {60 + i / 10:.1f} %" for i in range(5)]
    heights = sorted(float(t.get("y")) for t in ends)
    assert min(np.diff(heights)) >= 16.8
    assert text.count('class="band') == 5


def test_one_point_series_has_a_dot_and_a_whisker_and_no_series_draws_nothing():
    text = efficiency([Series("a", "raw", [Point(10.0, 0.5, 0.4, 0.6)])], 354, 330, "accuracy", "")
    ElementTree.fromstring(text)
    assert 'class="whisker raw"' in text
    assert efficiency([Series("a", "raw", [])], 354, 330, "accuracy", "") == ""


def test_spread_keeps_order_and_room():
    placed = _spread([50.0, 50.0, 51.0, 10.0], 17.0, 0.0, 70.0)
    assert min(np.diff(sorted(placed))) >= 17 - 1e-9
    assert max(placed) <= 70
    assert placed[3] == 10.0


def test_strip_places_values_on_its_axis():
    text = strip([("raw", "raw <1>", 0.0, None, None), ("pretrained", "p", 1.0, 0.9, 1.0)], 0.0, 1.0, 2)
    xs = [float(c.get("cx")) for c in ElementTree.fromstring(text).iter("circle")]
    assert xs == [12.0, 188.0]
    assert "raw &lt;1&gt;" in text
