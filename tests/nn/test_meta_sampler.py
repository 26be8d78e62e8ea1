"""Learned class rates: draws, their weights, and the gradient through a step, against plain loops."""

import math

import pytest
import torch
from torch import nn

from setwise.errors import InvalidInput
from setwise.nn import MetaSampler
from setwise.nn.meta_sampler import meta_gradient

TARGET = torch.tensor([0, 0, 0, 1, 2, 2])
K, C = 4, 3


def sampler_of(log_rates=(0.3, -0.2, 0.5, 1.0)):
    sampler = MetaSampler(torch.tensor([8, 4, 2, 1])).double()
    sampler.log_rates.copy_(torch.tensor(log_rates, dtype=torch.float64))
    return sampler


def probabilities(log_rates, target):
    """Of each image: its class's rate among the classes that are there, shared by the images of the class."""
    rate = {j: math.exp(log_rates[j]) for j in set(target)}
    whole = sum(rate.values())
    return [rate[y] / whole / target.count(y) for y in target]


def test_rates_begin_between_images_as_they_occur_and_all_classes_alike():
    counts = torch.tensor([8, 4, 2, 1])
    for power in (0.0, 0.1, 1.0):
        weight = [n * n**-power for n in counts.tolist()]
        expected = torch.tensor([w / sum(weight) for w in weight])
        torch.testing.assert_close(MetaSampler(counts, power=power).rates, expected)


def test_images_are_drawn_as_often_as_a_loop_says():
    sampler, size = sampler_of(), 40_000
    drawn = sampler(TARGET, size, torch.Generator().manual_seed(0))
    share = drawn.place.bincount(minlength=len(TARGET)).double() / size
    expected = torch.tensor(probabilities(sampler.log_rates.tolist(), TARGET.tolist()), dtype=torch.float64)
    assert (share - expected).abs().max() < 4 * (0.25 / size) ** 0.5
    assert torch.equal(drawn.weight, torch.ones(size, dtype=torch.float64))


def test_a_draw_has_the_gradient_of_the_logarithm_of_its_probability():
    sampler = sampler_of()
    drawn = sampler(TARGET, 5, torch.Generator().manual_seed(1))
    p = probabilities(sampler.log_rates.tolist(), TARGET.tolist())
    for b, i in enumerate(drawn.place.tolist()):
        [got] = torch.autograd.grad(drawn.weight[b], drawn.log_rates, retain_graph=True)
        for k in range(K):
            of_class = sum(p[n] for n, y in enumerate(TARGET.tolist()) if y == k)
            assert got[k].item() == pytest.approx((TARGET[i].item() == k) - of_class, abs=1e-12)


def cross_entropy(weight, feature, label):
    scores = [sum(w * x for w, x in zip(row, feature, strict=True)) for row in weight]
    return math.log(sum(map(math.exp, scores))) - scores[label]


def gradient_of_weight(weight, feature, label):
    scores = [math.exp(sum(w * x for w, x in zip(row, feature, strict=True))) for row in weight]
    return [[(s / sum(scores) - (k == label)) * x for x in feature] for k, s in enumerate(scores)]


def looked_ahead(log_rates, start, drawn, weight, features, balanced, *, lr):
    """Loss on balanced images after a step on the draws, whose weights follow the rates from ``start`` on."""
    p, before = probabilities(log_rates, TARGET.tolist()), probabilities(start, TARGET.tolist())
    step = [[0.0] * C for _ in range(K)]
    for i in drawn:
        of_row = gradient_of_weight(weight, features[i], TARGET[i].item())
        for k in range(K):
            for c in range(C):
                step[k][c] += p[i] / before[i] * of_row[k][c] / len(drawn)
    moved = [[w - lr * g for w, g in zip(*rows, strict=True)] for rows in zip(weight, step, strict=True)]
    return sum(cross_entropy(moved, x, y) for x, y in balanced) / len(balanced)


def test_the_gradient_through_a_step_is_what_moving_a_rate_changes():
    generator = torch.Generator().manual_seed(2)
    features, others = (torch.randn(6, C, generator=generator, dtype=torch.float64) for _ in range(2))
    labels = torch.tensor([0, 1, 2, 3, 0, 3])
    head = nn.Linear(C, K, bias=False).double()
    sampler = sampler_of()
    drawn = sampler(TARGET, 5, generator)
    got = meta_gradient(
        drawn,
        head,
        lambda logits: nn.functional.cross_entropy(logits, TARGET[drawn.place], reduction="none"),
        features[drawn.place],
        lr=0.7,
        balanced=(others, labels),
    )
    start = sampler.log_rates.tolist()
    fixed = (drawn.place.tolist(), head.weight.tolist(), features.tolist())
    balanced = list(zip(others.tolist(), labels.tolist(), strict=True))
    for k in range(K):
        ends = []
        for sign in (1, -1):
            moved = [rate + sign * 1e-5 * (j == k) for j, rate in enumerate(start)]
            ends.append(looked_ahead(moved, start, *fixed, balanced, lr=0.7))
        assert got[k].item() == pytest.approx((ends[0] - ends[1]) / 2e-5, abs=1e-8)
    assert got.abs().max() > 1e-3
    assert all(p.grad is None for p in head.parameters())


def test_weighted_draws_have_on_average_the_gradient_of_their_expectation():
    sampler, worth = sampler_of(), [3.0, -1.0, 0.5, 2.0, -2.0, 4.0]
    generator = torch.Generator().manual_seed(3)
    drawn = sampler(TARGET, 400_000, generator)
    assert torch.equal(drawn.weight, torch.ones_like(drawn.weight))
    value = (drawn.weight * torch.tensor(worth, dtype=drawn.weight.dtype)[drawn.place]).mean()
    got = torch.autograd.grad(value, drawn.log_rates)[0]
    start = sampler.log_rates.double().tolist()
    for k in range(K):
        ends = []
        for sign in (1, -1):
            p = probabilities([rate + sign * 1e-5 * (j == k) for j, rate in enumerate(start)], TARGET.tolist())
            ends.append(sum(q * w for q, w in zip(p, worth, strict=True)))
        assert got[k].item() == pytest.approx((ends[0] - ends[1]) / 2e-5, abs=0.02)
    assert got.abs().max() > 0.15


def test_a_gradient_that_is_no_number_spoils_nothing():
    sampler, other = sampler_of(), sampler_of()
    for each, gradient in ((sampler, [float("nan"), 1.0, float("inf"), -1.0]), (other, [0.0, 1.0, 0.0, -1.0])):
        each.descend(torch.tensor(gradient, dtype=each.log_rates.dtype), lr=0.1)
    assert torch.equal(sampler.log_rates, other.log_rates)


def test_rates_of_what_the_balanced_set_needs_grow():
    torch.manual_seed(0)
    sampler, head = MetaSampler(torch.tensor([50, 50])), nn.Linear(2, 2, bias=False)
    nn.init.zeros_(head.weight)
    head.weight.data[0, 0] = 4.0  # knows class 0 already
    feature, target = torch.eye(2).repeat(20, 1), torch.tensor([0, 1]).repeat(20)
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        drawn = sampler(target, 10, generator)
        labels = target[drawn.place]
        gradient = meta_gradient(
            drawn,
            head,
            lambda logits, labels=labels: nn.functional.cross_entropy(logits, labels, reduction="none"),
            feature[drawn.place],
            lr=1.0,
            balanced=(feature, target),
        )
        sampler.descend(gradient, lr=0.02)
    assert sampler.rates[1] > 0.6


def test_rates_move_by_adams_steps_however_small_the_gradient():
    sampler = sampler_of()
    other = nn.Parameter(sampler.log_rates.clone())
    adam = torch.optim.Adam([other], lr=1e-3)
    for step in range(5):
        gradient = 4e-6 * torch.randn(K, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        sampler.descend(gradient, lr=1e-3)
        other.grad = gradient
        adam.step()
    torch.testing.assert_close(sampler.log_rates, other.detach(), rtol=0, atol=1e-12)
    assert (sampler.log_rates - sampler_of().log_rates).abs().min() > 1e-4


@pytest.mark.parametrize(
    ("do", "message"),
    [
        (lambda: MetaSampler(torch.tensor([3, 0])), "`counts` must be positive"),
        (lambda: sampler_of()(TARGET[:0], 3, torch.Generator()), r"an image to choose from \(0\)"),
        (lambda: sampler_of()(TARGET, 0, torch.Generator()), r"a draw to make \(0\)"),
    ],
)
def test_bad_input_is_a_sentence(do, message):
    with pytest.raises(InvalidInput, match=message):
        do()
