import numpy as np
import pytest
from pictures import pixels

from selftaught.data import holdout, open_data
from selftaught.errors import UserError

MANY = np.random.default_rng(0).integers(0, 256, (2000, 8, 8), dtype=np.uint8)


def test_a_partition_of_about_the_share():
    train, held = holdout(open_data(MANY), 0.2)
    assert sorted([*train, *held]) == list(range(2000))
    assert 320 < len(held) < 480  # 400 expected, standard deviation 18


def test_duplicates_stay_together_and_additions_move_nobody():
    doubled = np.concatenate([MANY, MANY[::-1], MANY[:7]])
    few, many = (set(holdout(open_data(x), 0.3)[1].tolist()) for x in (MANY, doubled))
    assert {i for i in many if i < 2000} == few
    for i in range(2000):
        assert (i in many) == (3999 - i in many)


def test_the_seed_counts_and_nothing_else_does():
    source = open_data(MANY)
    assert holdout(source, 0.3, 1)[1].tolist() == holdout(open_data(MANY), 0.3, 1)[1].tolist()
    assert holdout(source, 0.3, 1)[1].tolist() != holdout(source, 0.3, 2)[1].tolist()
    assert set(holdout(source, 0.1)[1]) < set(holdout(source, 0.3)[1])


def test_refused():
    source = open_data(np.stack([pixels(1)] * 3))
    with pytest.raises(UserError, match="not between 0 and 1"):
        holdout(source, 1.5)
    with pytest.raises(UserError, match="of these 3 samples"):
        holdout(source, 0.5)
