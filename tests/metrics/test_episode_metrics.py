"""Means over episodes and ranks over data sets, against plain loops."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from setwise.errors import InvalidInput
from setwise.metrics import mean_interval, mean_rank

FRACTIONS = st.lists(st.floats(0, 1), min_size=1, max_size=30)


@given(FRACTIONS)
def test_the_interval_is_1_96_standard_errors(values):
    n = len(values)
    mean = sum(values) / n
    half = 1.96 * math.sqrt(sum((v - mean) ** 2 for v in values) / n) / math.sqrt(n)
    assert mean_interval(values) == pytest.approx((mean, half), abs=1e-12)


def test_no_episode_has_no_mean():
    with pytest.raises(InvalidInput, match="no episode"):
        mean_interval([])


def test_ranks_equal_plain_loops_with_shared_places():
    table = {
        "a": {"birds": 0.7, "signs": 0.5, "only here": 1.0},
        "b": {"birds": 0.6, "signs": 0.5},
        "c": {"birds": 0.6, "signs": 0.9},
    }
    expected = {}
    for method, row in table.items():
        ranks = []
        for data_set in ("birds", "signs"):
            others = [other[data_set] for name, other in table.items() if name != method]
            better, equal = (sum(v > row[data_set] for v in others), sum(v == row[data_set] for v in others))
            ranks.append(1 + better + equal / 2)
        expected[method] = sum(ranks) / 2
    assert mean_rank(table) == pytest.approx(expected)


def test_methods_without_a_common_data_set_have_no_ranks():
    with pytest.raises(InvalidInput, match="every method was evaluated on"):
        mean_rank({"a": {"birds": 1.0}, "b": {"signs": 1.0}})
