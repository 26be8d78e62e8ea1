"""Class weights against loops, scikit-learn, and their errors."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.utils.class_weight import compute_class_weight

from setwise.errors import InvalidInput, UnknownName
from setwise.losses import class_weights

COUNTS = torch.tensor([500, 60, 3])
NAMES = ["cat", "dog", "emu"]


def test_none_gives_no_weights():
    assert class_weights("none", COUNTS, NAMES) is None


def test_auto_equals_balanced_of_scikit_learn():
    labels = np.repeat(np.arange(3), COUNTS.numpy())
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    np.testing.assert_allclose(class_weights("auto", COUNTS, NAMES).numpy(), expected, rtol=1e-6)


def test_effective_number_equals_the_paper_in_plain_loops():
    raw = [(1 - 0.9999) / (1 - 0.9999**n) for n in COUNTS.tolist()]
    expected = [3 * w / sum(raw) for w in raw]
    np.testing.assert_allclose(class_weights("effective-number", COUNTS, NAMES).numpy(), expected, rtol=1e-5)


@settings(deadline=None)
@given(st.lists(st.integers(1, 10**7), min_size=1, max_size=20))
def test_effective_numbers_sum_to_the_number_of_classes_and_fall_with_the_count(counts):
    weights = class_weights("effective-number", torch.tensor(counts), [str(i) for i in range(len(counts))])
    assert weights.sum().item() == pytest.approx(len(counts), rel=1e-4)
    assert (weights[torch.tensor(counts).argsort()].diff() <= 0).all()


def test_named_classes_get_their_weight_and_others_one():
    weights = class_weights("emu=2, cat=0.5", COUNTS, NAMES)
    assert weights.tolist() == [0.5, 1.0, 2.0]


def test_class_name_may_hold_an_equals_sign():
    assert class_weights("a=b=3", torch.tensor([1, 1]), ["a", "a=b"]).tolist() == [1.0, 3.0]


def test_class_without_images_may_be_weighted_by_name_but_not_by_its_count():
    counts = torch.tensor([5, 0, 1])
    assert class_weights("cat=2", counts, NAMES).tolist() == [2.0, 1.0, 1.0]
    for spec in ("auto", "effective-number"):
        with pytest.raises(InvalidInput, match=r"class 1 \('dog'\) has 0 training images"):
            class_weights(spec, counts, NAMES)


def test_unknown_class_suggests_the_nearest():
    with pytest.raises(UnknownName, match="did you mean 'dog'"):
        class_weights("dogg=2", COUNTS, NAMES)


def test_unknown_specification_lists_the_choices():
    with pytest.raises(UnknownName, match=r"did you mean 'auto'.*NAME=WEIGHT"):
        class_weights("autoo", COUNTS, NAMES)


@pytest.mark.parametrize("number", ["x", "", "-1", "0", "nan", "inf"])
def test_weight_that_is_no_positive_number_ends_in_a_sentence(number):
    with pytest.raises(InvalidInput, match="weight of class 'cat' must be a positive number"):
        class_weights(f"cat={number}", COUNTS, NAMES)


def test_class_named_twice_ends_in_a_sentence():
    with pytest.raises(InvalidInput, match="'cat' twice"):
        class_weights("cat=1,cat=2", COUNTS, NAMES)


def test_names_and_counts_of_different_length_end_in_a_sentence():
    with pytest.raises(InvalidInput, match="2 names but `counts` has 3"):
        class_weights("none", COUNTS, NAMES[:2])
