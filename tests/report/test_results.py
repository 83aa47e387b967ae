import io
import math

import fake_run
from rich.console import Console

from selftaught.reporting import results, results_table, show


def row(features, value, low=None, high=None, labels=1.0, labels_n=500, **more):
    base = {"measure": "knn", "metric": "accuracy", "features": features, "labels": labels, "labels_n": labels_n}
    return base | {"value": value, "low": low, "high": high, "seeds": [0], "n": 100} | more


def test_lines_group_by_measure_and_labels_most_labels_first():
    table = results.lines(fake_run.evaluation())
    assert [(x.title, x.labels_n) for x in table] == [
        *(("Linear probe", n) for n in sorted(fake_run.COUNTS, reverse=True)),
        ("k-NN", 50000),
    ]
    assert table[0].labels == "50,000 (all)"
    assert table[3].labels == "500 (1 %)"
    assert results.features(table) == ["pretrained", "random_init", "raw"]


def test_named_features_stand_between_pretrained_and_baselines():
    table = results.lines(
        {"rows": [row("raw", 0.1), row("dino", 0.3), row("random_init", 0.2), row("pretrained", 0.4)]}
    )
    assert results.features(table) == ["pretrained", "dino", "random_init", "raw"]


def test_best_names_all_that_cannot_be_told_apart():
    (line,) = results.lines({"rows": [row("pretrained", 0.5, 0.45, 0.55), row("raw", 0.44, 0.40, 0.46), row("x", 0.3)]})
    assert line.best() == ["pretrained", "raw"]
    (line,) = results.lines({"rows": [row("pretrained", 0.5, 0.47, 0.55), row("raw", 0.44, 0.40, 0.46)]})
    assert line.best() == ["pretrained"]


def test_gain_is_over_the_better_baseline_and_positive_is_better():
    (line,) = results.lines({"rows": [row("pretrained", 0.5, 0.4, 0.6), row("raw", 0.3), row("random_init", 0.35)]})
    value, baseline, apart = line.gain()
    assert (round(value, 6), baseline, apart) == (0.15, "random_init", True)
    rows = [row(f, v, metric="perplexity") for f, v in (("pretrained", 20.0), ("raw", 50.0), ("random_init", 40.0))]
    (line,) = results.lines({"rows": rows})
    assert line.gain() == (20.0, "random_init", True)
    assert line.best() == ["pretrained"]


def test_a_worse_encoder_is_shown_as_worse():
    (line,) = results.lines({"rows": [row("pretrained", 0.2, 0.1, 0.25), row("raw", 0.3, 0.28, 0.32)]})
    assert line.best() == ["raw"]
    assert line.gain()[0] < 0


def test_rows_without_a_number_are_left_out():
    rows = [row("pretrained", math.nan), row("raw", None), "not a row", row("x", 0.5, math.inf, "high")]
    (line,) = results.lines({"rows": rows})
    assert set(line.cells) == {"x"}
    assert line.cells["x"].low is None
    assert line.cells["x"].high is None
    assert results.lines({}) == []
    assert results.lines({"rows": None}) == []


def test_labels_as_a_count_or_a_share():
    def shown(**labels):
        return results.lines({"rows": [row("raw", 0.1, **labels)]})[0].labels

    assert shown(labels=100, labels_n=100) == "100"
    assert shown(labels=1, labels_n=10) == "10 (1 a class)"
    assert shown(labels=1.0, labels_n=10) == "10 (all)"
    assert shown(labels=7, labels_n=None) == "7"
    assert shown(labels=0, labels_n=0) == "none"
    assert shown(labels=0.01, labels_n=500) == "500 (1 %)"
    assert shown(labels=0.1, labels_n=None) == "10 %"
    assert shown(labels=None, labels_n=None) == "–"


def _printed(evaluation) -> str:
    console = Console(file=io.StringIO(), width=100, force_terminal=False)
    console.print(results_table(evaluation))
    return console.file.getvalue()


def test_terminal_shows_figures_intervals_and_verdict_as_plain_text():
    text = _printed(fake_run.evaluation())
    assert "67.1 % *" in text
    assert "[66.2, 68.0]" in text, "brackets are text, not markup"
    assert "no interval touches a baseline" in text
    assert "\x1b" not in text
    assert "…" not in text


def test_terminal_takes_markup_in_names_as_text_and_marks_ties():
    text = _printed({"rows": [row("[red]x[/nope]", 0.5, 0.4, 0.6), row("raw", 0.45, 0.4, 0.5)], "verdict": ["[b]tie"]})
    assert "[red]x[/nope]" in text
    assert "45.0 % ~" in text
    assert "[b]tie" in text
    assert "no results" in _printed({})


def test_nothing_is_cut_where_there_is_little_room(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    names = ("pretrained", "runs/pictures-simclr-long", "random_init", "raw")
    show(results_table({"rows": [row(name, 0.5, 0.4, 0.6, labels=50) for name in names]}))
    said = capsys.readouterr().out
    assert "…" not in said
    assert "runs/pictures-simclr-long" in said
    assert "500 (50 a class)" in said
