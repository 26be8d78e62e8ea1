"""Neighbours and what they are, against plain loops."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from setwise.errors import InvalidInput
from setwise.metrics import collapse, nearest
from setwise.metrics import neighbours as module

N, C = 40, 3


def embedded(seed):
    draw = torch.Generator().manual_seed(seed)
    features = torch.randn(N, C, generator=draw, dtype=torch.float64)
    target = torch.randint(0, 6, (N,), generator=draw)
    queries = torch.randperm(N, generator=draw)[:7]
    return features, target, target < 4, queries


def loops(features, target, trained, queries, k):
    """Query by query and neighbour by neighbour."""
    same = wrong = train = correct = chance = chance_train = 0.0
    for q in queries.tolist():
        order = sorted((i for i in range(N) if i != q), key=lambda i: float((features[i] - features[q]).norm()))[:k]
        labels = [int(target[i]) for i in order]
        own = int(target[q])
        same += labels.count(own) / k
        wrong += max([labels.count(c) for c in set(labels) - {own}], default=0) / k
        train += sum(bool(trained[i]) for i in order) / k
        correct += own in labels
        chance += sum(int(target[i]) == own for i in range(N) if i != q) / (N - 1)
        chance_train += sum(bool(trained[i]) for i in range(N) if i != q) / (N - 1)
    return [value / len(queries) for value in (same, wrong, train, correct, chance, chance_train)]


@given(st.integers(0, 1000), st.integers(1, 9))
def test_shares_equal_plain_loops(seed, k):
    features, target, trained, queries = embedded(seed)
    found = collapse(nearest(features, queries, num_neighbours=k), queries, target, trained)
    assert list(vars(found).values()) == pytest.approx(loops(features, target, trained, queries, k))


def test_the_order_of_the_images_means_nothing():
    features, target, trained, queries = embedded(0)
    order = torch.randperm(N, generator=torch.Generator().manual_seed(1))
    places = torch.argsort(order)[queries]
    one = collapse(nearest(features, queries), queries, target, trained)
    two = collapse(nearest(features[order], places), places, target[order], trained[order])
    assert list(vars(one).values()) == pytest.approx(list(vars(two).values()))


def test_parts_change_nothing(monkeypatch):
    features, _, _, queries = embedded(0)
    whole = nearest(features, queries)
    monkeypatch.setattr(module, "AT_ONCE", 2 * N)
    assert torch.equal(nearest(features, queries), whole)


@pytest.mark.parametrize("k", [0, N])
def test_more_neighbours_than_there_are_are_refused(k):
    features, _, _, queries = embedded(0)
    with pytest.raises(InvalidInput, match=rf"`num_neighbours` \({k}\) must be at least 1 and below"):
        nearest(features, queries, num_neighbours=k)
