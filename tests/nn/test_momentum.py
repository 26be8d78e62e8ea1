"""The queue of keys against a list, and the momentum encoder against its formula."""

import copy
from collections import deque

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from setwise.errors import InvalidInput
from setwise.nn import KeyQueue, follow


@given(st.integers(1, 7), st.lists(st.integers(0, 9), max_size=6))
def test_the_queue_holds_the_last_keys_with_their_labels(size, batches):
    queue, expected, number = KeyQueue(size, 2), deque(maxlen=size), 0
    for batch in batches:
        rows = range(number, number + batch)
        number += batch
        queue.write(torch.tensor([[r, -r] for r in rows]).float().reshape(-1, 2), torch.tensor(list(rows)).long())
        expected.extend(rows)
        keys, target = queue.read()
        assert sorted(target.tolist()) == list(expected)
        assert keys.tolist() == [[t, -t] for t in target.tolist()]
        assert len(queue) == len(expected)


def test_what_was_read_does_not_change_when_more_is_written():
    queue = KeyQueue(2, 1)
    queue.write(torch.zeros(2, 1), torch.zeros(2).long())
    keys, target = queue.read()
    queue.write(torch.ones(2, 1), torch.ones(2).long())
    assert not keys.any()
    assert not target.any()


def test_a_batch_that_is_not_finite_is_left_out_with_its_labels():
    queue = KeyQueue(4, 1)
    queue.write(torch.tensor([[1.0], [float("nan")]]), torch.tensor([1, 2]))
    assert len(queue) == 0


def test_the_queue_keeps_no_graph_and_is_saved_with_the_model():
    queue, other = KeyQueue(3, 2), KeyQueue(3, 2)
    queue.write(torch.randn(4, 2, requires_grad=True), torch.arange(4))
    assert not queue.read()[0].requires_grad
    other.load_state_dict(queue.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(queue.read(), other.read(), strict=True))


@pytest.mark.parametrize("momentum", [0.0, 0.9, 0.999, 1.0])
def test_the_follower_moves_by_the_formula_and_keeps_its_own_statistics(momentum):
    leader = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    follower = copy.deepcopy(leader)
    leader(torch.randn(8, 3))  # moves the leader's running averages
    with torch.no_grad():
        for parameter in leader.parameters():
            parameter.add_(torch.randn_like(parameter))
    before = {name: value.clone() for name, value in follower.state_dict().items()}
    follow(follower, leader, momentum=momentum)
    theirs = dict(leader.named_parameters())
    for name, value in follower.state_dict().items():
        moved = momentum * before[name] + (1 - momentum) * theirs[name] if name in theirs else before[name]
        torch.testing.assert_close(value, moved.detach())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: KeyQueue(0, 3), r"`size` \(0\) and `dim` \(3\)"),
        (lambda: KeyQueue(3, 0), r"`dim` \(0\) of a queue must be at least 1"),
        (lambda: KeyQueue(3, 2).write(torch.zeros(4, 3), torch.zeros(4).long()), r"must be \[B, 2\].*\[4, 3\]"),
        (lambda: KeyQueue(3, 2).write(torch.zeros(4, 2), torch.zeros(3).long()), r"\[4, 2\] and \[3\]"),
        (lambda: follow(nn.Linear(2, 2), nn.Linear(2, 2), momentum=1.5), r"`momentum` \(1\.5\) must be in 0\.\.1"),
        (lambda: follow(nn.Linear(2, 2), nn.Linear(2, 3)), r"differ in theirs: start from copy\.deepcopy"),
    ],
)
def test_what_does_not_fit_is_refused(unchecked, make, message):
    with pytest.raises(InvalidInput, match=message):
        make()
