"""The queue of keys against a list, and the momentum encoder against its formula."""

import copy
from collections import deque

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from setwise.errors import InvalidInput
from setwise.nn import KeyQueue, MomentumContrast, follow


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


def contrast_of(**options):
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    return encoder, MomentumContrast(encoder, 4, **{"dim": 2, "size": 7, "momentum": 0.9} | options)


def call(encoder, contrast, seed=0, labels=(0, 1, 2), **options):
    one, other = torch.randn(2, len(labels), 3, generator=torch.Generator().manual_seed(seed))
    return contrast(encoder, encoder(one), other, torch.tensor(labels), **options)


def test_each_step_moves_the_slow_copies_by_the_formula_and_nothing_else_does():
    encoder, contrast = contrast_of()
    slow = {"encoder": contrast.slow_encoder, "project": contrast.slow_project}
    for step in range(3):
        with torch.no_grad():
            for parameter in (*encoder.parameters(), *contrast.project.parameters()):
                parameter.add_(1 + step)
        before = {name: copy.deepcopy(module) for name, module in slow.items()}
        call(encoder, contrast)
        for name, leader in (("encoder", encoder), ("project", contrast.project)):
            for old, new, theirs in zip(*(m.parameters() for m in (before[name], slow[name], leader)), strict=True):
                torch.testing.assert_close(new, (0.9 * old + 0.1 * theirs).detach())


def test_others_are_the_keys_of_the_batch_then_past_keys_with_their_labels():
    encoder, contrast = contrast_of()
    batches = [(0, 1, 2), (3, 4, 5), (6, 7, 8), (9, 10, 11)]
    keys = {}
    for number, labels in enumerate(batches):
        compared = call(encoder, contrast, number, labels)
        now, past = compared.others_target[:3].tolist(), compared.others_target[3:].tolist()
        assert now == list(labels)
        assert sorted(past) == [label for batch in batches[:number] for label in batch][-7:]
        for label, key in zip(now, compared.others[:3], strict=True):
            keys[label] = key
        for label, key in zip(past, compared.others[3:], strict=True):
            assert torch.equal(key, keys[label])


def test_keys_are_the_projected_features_of_the_slow_copy_and_all_is_of_length_one():
    encoder, contrast = contrast_of(momentum=1.0)
    compared = call(encoder, contrast)
    one, other = torch.randn(2, 3, 3, generator=torch.Generator().manual_seed(0))
    first, _, second = contrast.project
    for got, view in ((compared.query, one), (compared.others, other)):
        hidden = (encoder(view) @ first.weight.T + first.bias).clamp_min(0)
        projected = hidden @ second.weight.T + second.bias
        torch.testing.assert_close(got, projected / projected.norm(dim=1, keepdim=True))


def test_queries_have_a_gradient_and_keys_have_none():
    encoder, contrast = contrast_of()
    compared = call(encoder, contrast)
    assert not compared.others.requires_grad
    compared.query.sum().backward()
    trained = [*encoder.parameters(), *contrast.project.parameters()]
    assert all(parameter.grad is not None for parameter in trained)
    assert not any(p.requires_grad for m in (contrast.slow_encoder, contrast.slow_project) for p in m.parameters())


def test_a_loaded_contrast_goes_on_bit_for_bit():
    encoder, contrast = contrast_of()
    for seed in range(3):
        call(encoder, contrast, seed)
    _, other = contrast_of()
    other.load_state_dict(contrast.state_dict())
    same = copy.deepcopy(encoder)  # batch norm moves its statistics
    for one, two in zip(call(encoder, contrast, 9), call(same, other, 9), strict=True):
        assert torch.equal(one, two)


def test_micro_batches_give_the_same_keys():
    encoder, contrast = contrast_of()
    encoder.eval(), contrast.eval()  # batch norm by its running statistics
    other = copy.deepcopy(contrast)
    whole, micro = call(encoder, contrast), call(encoder, other, micro_batch=2)
    torch.testing.assert_close(micro.others, whole.others)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: KeyQueue(0, 3), r"`size` \(0\) and `dim` \(3\)"),
        (lambda: KeyQueue(3, 0), r"`dim` \(0\) of a queue must be at least 1"),
        (lambda: KeyQueue(3, 2).write(torch.zeros(4, 3), torch.zeros(4).long()), r"must be \[B, 2\].*\[4, 3\]"),
        (lambda: KeyQueue(3, 2).write(torch.zeros(4, 2), torch.zeros(3).long()), r"\[4, 2\] and \[3\]"),
        (lambda: MomentumContrast(nn.Linear(2, 2), 2, momentum=-1.0), r"`momentum` \(-1\.0\) must be in 0\.\.1"),
        (lambda: MomentumContrast(nn.Linear(2, 2), 2, size=0), r"`size` \(0\)"),
        (lambda: follow(nn.Linear(2, 2), nn.Linear(2, 2), momentum=1.5), r"`momentum` \(1\.5\) must be in 0\.\.1"),
        (lambda: follow(nn.Linear(2, 2), nn.Linear(2, 3)), r"differ in theirs: start from copy\.deepcopy"),
        (
            lambda: follow(nn.Linear(2, 2).bfloat16(), nn.Linear(2, 2)),
            r"steps of 0\.001 .*bfloat16 rounds away \(weight",
        ),
    ],
)
def test_what_does_not_fit_is_refused(unchecked, make, message):
    with pytest.raises(InvalidInput, match=message):
        make()
