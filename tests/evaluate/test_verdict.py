import pytest

from selftaught.evaluation.verdict import compare, verdict, worth


def line(features, values, labels=(50, 500, 5000), measure="linear_probe", half=0.01, against=None):
    """Rows of one curve, intervals of +- half."""
    return [
        {
            "measure": measure, "features": features, "labels": n / 5000, "metric": "accuracy", "value": v,
            "low": v - half, "high": v + half, "seeds": [0], "n": 1000, "labels_n": n,
            **({"against": against} if against else {}),
        }
        for n, v in zip(labels, values)
    ]  # fmt: skip


def test_worth_interpolates_the_baseline_over_log_labels():
    rows = line("pretrained", (0.45, 0.6, 0.7)) + line("random_init", (0.3, 0.4, 0.5))
    # .45 lies half-way between 500 and 5000 labels: sqrt(500 * 5000).
    assert worth(rows) == (50, 0.45, 1581, 5000)
    assert verdict(rows) == [
        (
            "pretraining beats random initialisation with 50, 500, 5000 labels: .600 [.590, .610] vs .400 [.390, .410] "
            "(linear probe, 500 labels)"
        ),
        "pretraining is worth 1531 labels: with 50 labels it does what random initialisation needs 1581 for",
    ]


def test_worth_beyond_the_curve_claims_no_number():
    rows = line("pretrained", (0.55, 0.6, 0.7)) + line("random_init", (0.3, 0.4, 0.5))
    assert worth(rows) == (50, 0.55, None, 5000)
    assert "worth more than 4950 labels" in verdict(rows)[-1]
    assert "never reaches here, even with 5000" in verdict(rows)[-1]


def test_worth_with_a_dip_in_the_baseline_takes_the_first_crossing():
    rows = line("pretrained", (0.39, 0.6, 0.7)) + line("random_init", (0.3, 0.4, 0.35))
    found = worth(rows)
    assert found is not None
    assert 50 < found.equivalent < 500


@pytest.mark.parametrize(
    "rows",
    [
        line("pretrained", (0.25,)) + line("random_init", (0.2,)),  # one point is no curve
        line("pretrained", (0.3, 0.6, 0.7)) + line("random_init", (0.3, 0.4, 0.5)),  # no better with few labels
        line("random_init", (0.3, 0.4, 0.5)),
    ],
)
def test_worth_says_nothing_where_there_is_nothing(rows):
    assert worth(rows) is None


def test_overlapping_intervals_prove_nothing():
    rows = line("pretrained", (0.61,), half=0.03) + line("random_init", (0.60,), half=0.03)
    assert verdict(rows) == [
        (
            "no proof that pretraining helped over random initialisation with 50 labels: .610 [.580, .640] vs "
            ".600 [.570, .630] (linear probe, 50 labels)"
        )
    ]
    assert [c.outcome for c in compare(rows)] == ["unproven"]


def test_the_paired_interval_decides_where_there_is_one():
    paired = {"random_init": [0.01, 0.004, 0.016]}
    rows = line("pretrained", (0.61,), half=0.03, against=paired) + line("random_init", (0.60,), half=0.03)
    (found,) = compare(rows)
    assert (found.outcome, found.low, found.high) == ("better", 0.004, 0.016)
    paired["random_init"][1] = -0.001
    assert compare(rows)[0].outcome == "unproven"


def test_no_worth_is_claimed_from_an_unproven_gain():
    rows = line("pretrained", (0.31, 0.6, 0.7), half=0.02) + line("random_init", (0.3, 0.4, 0.5), half=0.02)
    assert worth(rows) is not None
    assert not any("worth" in sentence for sentence in verdict(rows))


def test_no_number_of_labels_is_told_twice():
    labels = (20, 20, 20, 200)
    rows = line("pretrained", (0.5, 0.5, 0.5, 0.6), labels) + line("random_init", (0.3, 0.3, 0.3, 0.4), labels)
    assert verdict(rows)[0].startswith("pretraining beats random initialisation with 20, 200 labels: ")


def test_says_when_raw_features_win_and_when_they_do_only_sometimes():
    rows = line("pretrained", (0.4, 0.5, 0.6)) + line("random_init", (0.2, 0.3, 0.4)) + line("raw", (0.3, 0.5, 0.8))
    sentences = verdict(rows)
    assert any(s.startswith("raw features beat pretraining with 5000 labels: .600") for s in sentences)
    assert any(s.startswith("pretraining beats raw features with 50 labels") for s in sentences)
    assert any(s.startswith("no proof that pretraining helped over raw features with 500 labels") for s in sentences)


def test_other_encoders_and_measures():
    rows = line("dino", (0.5, 0.6, 0.7), measure="knn") + line("random_init", (0.3, 0.4, 0.5), measure="knn")
    assert "kNN" in verdict(rows, "dino")[0]
    assert "dino" in verdict(rows, "dino")[0]
    assert "no figures of pretrained" in verdict(rows)[0]
    assert "not measured" in verdict(line("pretrained", (0.4, 0.5, 0.6)))[0]


def test_two_budgets_that_come_to_as_many_labels_are_told_apart():
    def twice(features, values, against=None):
        rows = line(features, values, labels=(20, 20), against=against)
        return [{**row, "labels": asked} for row, asked in zip(rows, (10, 0.1))]

    rows = twice("pretrained", (0.5, 0.7)) + twice("random_init", (0.45, 0.4))
    first, second = (c for c in compare(rows) if c.baseline == "random_init")
    assert (first.labels, second.labels) == (10, 0.1)
    assert (first.gain, second.gain) == (pytest.approx(0.05), pytest.approx(0.3))
    assert all(c.low <= c.gain <= c.high for c in (first, second))
    assert ".700 [.690, .710] vs .400 [.390, .410]" in verdict(rows)[0]
