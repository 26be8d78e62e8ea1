"""GLMC's losses against plain loops."""

import math

import numpy as np
import pytest
import torch

from setwise.errors import InvalidInput
from setwise.losses import GLMC, mixture_consistency, rare_class_weights

COUNTS = torch.tensor([50, 20, 4, 1])


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def softmax_loss(scores, shares):
    largest = max(scores)
    log_sum = largest + math.log(sum(math.exp(s - largest) for s in scores))
    return -sum(share * (score - log_sum) for share, score in zip(shares, scores, strict=True))


@pytest.mark.parametrize("progress", [0.0, 0.3, 1.0])
def test_the_blend_equals_plain_loops(progress):
    criterion = GLMC(counts=COUNTS, label_power=1.2).double()
    logits, beside, target = draw(6, 4), draw(6, 4, seed=1), draw(6, 4, seed=2).softmax(1)
    raw = [count**-1.2 for count in COUNTS.tolist()]
    weights = [len(raw) * value / sum(raw) for value in raw]
    expected = []
    for own, other, shares in zip(logits.tolist(), beside.tolist(), target.tolist(), strict=True):
        weighted = [share * weight for share, weight in zip(shares, weights, strict=True)]
        kept = 1 - progress**2
        expected.append(kept * softmax_loss(other, shares) + (1 - kept) * softmax_loss(own, weighted))
    got = criterion.mixed(logits, beside, target, progress=progress)
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-6)


def test_consistency_equals_plain_loops_and_only_the_prediction_learns():
    prediction, projection = draw(5, 3).requires_grad_(), draw(5, 3, seed=1).requires_grad_()
    got = mixture_consistency(prediction, projection)
    for row, u, h in zip(got.tolist(), prediction.tolist(), projection.tolist(), strict=True):
        lengths = math.sqrt(sum(a * a for a in u)) * math.sqrt(sum(b * b for b in h))
        assert row == pytest.approx(-sum(a * b for a, b in zip(u, h, strict=True)) / lengths)
    got.sum().backward()
    assert prediction.grad.abs().sum() > 0
    assert projection.grad is None


def test_rare_classes_weigh_more_and_the_weights_sum_to_the_classes():
    weights = rare_class_weights(COUNTS)
    assert weights.tolist() == sorted(weights.tolist())
    assert float(weights.sum()) == pytest.approx(len(COUNTS))


@pytest.mark.parametrize(("name", "value"), [("consistency", -1.0), ("label_power", -0.1), ("mixture", 0.0)])
def test_values_out_of_range_are_refused(name, value):
    with pytest.raises(InvalidInput, match=f"`{name}`"):
        GLMC(counts=COUNTS, **{name: value})


def test_shapes_that_do_not_fit_are_refused(unchecked):
    with pytest.raises(InvalidInput, match="`projection`"):
        mixture_consistency(draw(2, 3), draw(2, 4))
