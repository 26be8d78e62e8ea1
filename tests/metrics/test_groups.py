"""Groups of classes by count and by rank."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from setwise.data.long_tail import exponential_counts
from setwise.errors import InvalidInput
from setwise.metrics import by_count, by_rank

COUNTS = st.lists(st.integers(0, 300), min_size=1, max_size=30)


@given(COUNTS)
def test_every_class_is_in_exactly_one_group(counts):
    tensor = torch.tensor(counts)
    third = len(counts) // 3
    for groups in (by_count(tensor), by_rank(tensor, many=third, few=third)):
        assert list(groups) == ["many", "medium", "few"]
        assert (sum(group.int() for group in groups.values()) == 1).all()


@given(COUNTS)
def test_thresholds_themselves_are_medium(counts):
    groups = by_count(torch.tensor(counts), many=100, few=20)
    for i, count in enumerate(counts):
        name = "many" if count > 100 else "few" if count < 20 else "medium"
        assert groups[name][i]


@given(COUNTS, st.data())
def test_ranks_equal_a_sort_by_count_with_ties_by_class_index(counts, data):
    many = data.draw(st.integers(0, len(counts)))
    few = data.draw(st.integers(0, len(counts) - many))
    order = sorted(range(len(counts)), key=lambda i: (-counts[i], i))
    groups = by_rank(torch.tensor(counts), many=many, few=few)
    assert set(groups["many"].nonzero().flatten().tolist()) == set(order[:many])
    assert set(groups["few"].nonzero().flatten().tolist()) == set(order[len(order) - few :])


@pytest.mark.parametrize(("imbalance", "sizes"), [(100, [35, 35, 30]), (200, [30, 31, 39])])
def test_cifar100_lt_has_the_published_group_sizes(imbalance, sizes):
    counts = exponential_counts(500, num_classes=100, imbalance_factor=imbalance)  # Balanced Softmax and RIDE
    assert [int(group.sum()) for group in by_count(torch.tensor(counts)).values()] == sizes


def test_overlapping_groups_are_refused():
    with pytest.raises(InvalidInput, match=r"`few` \(20\) must be at most `many` \+ 1 \(11\)"):
        by_count(torch.tensor([15]), many=10, few=20)
    with pytest.raises(InvalidInput, match=r"`many` \(3\) and `few` \(3\).*5 classes"):
        by_rank(torch.arange(5))
