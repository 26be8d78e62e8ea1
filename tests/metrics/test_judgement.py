"""Corrected p values and the words of a comparison."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from setwise.metrics import Interval, classification_metrics, holm, lower_is_better, verdict

P_VALUES = st.dictionaries(st.sampled_from("abcdefgh"), st.floats(0, 1))


@given(P_VALUES)
def test_holm_equals_a_plain_loop(p):
    corrected = holm(p)
    ordered = sorted(p.values())
    for name, value in p.items():
        # the largest product among all p values that are not larger
        products = [(len(ordered) - rank) * other for rank, other in enumerate(ordered) if other <= value]
        assert corrected[name] == pytest.approx(min(1.0, max(products)))


@given(P_VALUES)
def test_holm_keeps_the_order_and_never_makes_a_p_value_smaller(p):
    corrected = holm(p)
    assert list(corrected) == list(p)
    for name in p:
        assert p[name] <= corrected[name] <= 1
        assert all(corrected[name] <= corrected[other] for other in p if p[name] <= p[other])


def test_holm_rejects_step_by_step_as_in_the_paper():
    # 0.01 < 0.05 / 3, 0.02 < 0.05 / 2, 0.2 > 0.05
    assert holm({"a": 0.01, "b": 0.2, "c": 0.02}) == pytest.approx({"a": 0.03, "b": 0.2, "c": 0.04})


def test_p_values_of_one_seed_are_not_counted():
    corrected = holm({"a": math.nan, "b": 0.02})
    assert corrected["b"] == 0.02
    assert math.isnan(corrected["a"])


def interval(estimate, low, high, num_seeds=50):
    return Interval(estimate, low, high, 0.01, num_seeds)


@pytest.mark.parametrize(
    ("primary", "many", "word"),
    [
        (interval(0.01, 0.002, 0.02), None, "gain"),
        (interval(0.01, 0.002, 0.02), interval(-0.004, -0.01, 0.0), "gain"),
        (interval(0.01, 0.002, 0.02), interval(-0.005, -0.01, 0.0), "gain"),
        (interval(0.01, 0.002, 0.02), interval(-0.006, -0.01, 0.0), "trade-off"),
        (interval(0.01, 0.0, 0.02), None, "no gain"),
        (interval(0.01, -0.002, 0.02), interval(0.1, 0.05, 0.2), "no gain"),
        (interval(-0.01, -0.02, 0.0), None, "no gain"),
        (interval(-0.01, -0.02, -0.001), interval(0.1, 0.05, 0.2), "loss"),
        (interval(0.5, math.nan, math.nan, num_seeds=1), None, "undecided"),
    ],
)
def test_word_follows_the_primary_interval_and_many_shot_accuracy(primary, many, word):
    assert verdict(primary, many).word == word


def test_sentences_give_points_with_the_interval_and_the_number_of_seeds():
    primary, many = interval(0.0123, 0.004, 0.0206), interval(-0.011, -0.02, 0.0)
    numbers = r"+1.2 points (95 % interval +0.4 to +2.1, 50 seeds)"
    assert verdict(primary, None).sentence == f"Gain: {numbers}."
    assert verdict(primary, interval(0.001, 0.0, 0.0)).sentence == f"Gain: {numbers}; many-shot accuracy +0.1 points."
    assert verdict(primary, many).sentence == (
        f"Trade-off, not a gain: {numbers}, but many-shot accuracy is worse by 1.1 points, more than the 0.5 that a "
        "gain may cost."
    )
    assert verdict(interval(0.0, -0.01, 0.01), many).sentence == (
        "No gain here: +0.0 points (95 % interval -1.0 to +1.0, 50 seeds); the interval contains 0."
    )
    assert verdict(interval(-0.02, -0.03, -0.01), None).sentence == (
        "Loss: -2.0 points (95 % interval -3.0 to -1.0, 50 seeds)."
    )
    assert verdict(interval(0.0004, 0.0001, 0.0007), None).sentence == (
        "Gain: +0.04 points (95 % interval +0.01 to +0.1, 50 seeds)."
    )
    assert "worse by 0.53 points, more than the 0.5 that" in verdict(primary, interval(-0.0053, -0.02, 0.0)).sentence
    assert "one seed" in verdict(interval(0.02, math.nan, math.nan, num_seeds=1), None).sentence


def test_tolerance_is_an_argument():
    assert verdict(interval(0.01, 0.002, 0.02), interval(-0.006, -0.01, 0.0), tolerance=0.01).word == "gain"


def test_of_all_metrics_less_of_the_calibration_error_alone_is_better():
    group = torch.tensor([True, True])
    names = classification_metrics(torch.eye(2), torch.tensor([0, 1]), groups={"many": group, "few": group})
    for prefix in ("", "adjusted_"):
        assert {name for name in names if lower_is_better(prefix + name)} == {"ece"}
    assert not lower_is_better("mean_average_precision")


@pytest.mark.parametrize(
    ("primary", "many", "word"),
    [
        (interval(-0.01, -0.02, -0.002), None, "gain"),
        (interval(-0.01, -0.02, -0.002), interval(-0.006, -0.01, 0.0), "trade-off"),
        (interval(-0.01, -0.02, 0.0), None, "no gain"),
        (interval(0.01, 0.0, 0.02), None, "no gain"),
        (interval(0.01, 0.002, 0.02), interval(0.1, 0.05, 0.2), "loss"),
        (interval(-0.5, math.nan, math.nan, num_seeds=1), None, "undecided"),
    ],
)
def test_a_gain_is_a_fall_where_less_is_better_and_the_sentence_says_so(primary, many, word):
    found = verdict(primary, many, lower_is_better=True)
    assert found.word == word
    assert f"{100 * primary.estimate:+.1f} points" in found.sentence
    assert "less is better" in found.sentence
    assert "less is better" not in verdict(primary, many).sentence
