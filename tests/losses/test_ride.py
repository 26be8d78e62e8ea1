"""RIDE's loss and its distillation against plain loops."""

import math

import numpy as np
import pytest
import torch

from setwise.errors import InvalidInput
from setwise.losses import LDAM, RIDE, CrossEntropy, class_weights, distillation

N, E, K = 6, 3, 4
COUNTS = torch.tensor([500, 60, 20, 3])
LOGITS = torch.randn(N, E, K, generator=torch.Generator().manual_seed(0)) * 4
TARGET = torch.tensor([0, 1, 2, 3, 0, 2])
WEIGHTS = class_weights("effective-number", COUNTS, list("abcd"))


def softmax(z):
    top = max(z)
    powers = [math.exp(v - top) for v in z]
    return [p / sum(powers) for p in powers]


def kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def mean_of(rows):
    return [sum(column) / len(rows) for column in zip(*rows, strict=True)]


def oracle(logits, target, *, weighted, diversity, factor, max_margin=0.5, scale=30.0):
    """Loops over samples, experts and classes; the mean over the samples of what the official code adds up."""
    n = COUNTS.tolist()
    widest = max(c**-0.25 for c in n)
    margins = [max_margin * c**-0.25 / widest for c in n]
    beta = 0.9999
    weights = [(1 - beta) / (1 - beta**c) for c in n]
    weights = [w * K / sum(weights) for w in weights] if weighted else [1.0] * K
    spread = [K * c / sum(n) * factor + 1 - factor for c in n]
    temperature = [w / max(spread) for w in spread] if weighted else [1.0] * K
    middle = sum(temperature) / K
    total = 0.0
    for e in range(E):
        margin_losses, divergence = 0.0, 0.0
        for i, y in enumerate(target.tolist()):
            z = logits[i, e].tolist()
            shifted = [v - scale * margins[y] * (j == y) for j, v in enumerate(z)]
            margin_losses += weights[y] * -math.log(softmax(shifted)[y])
            together = [v / t for v, t in zip(mean_of(logits[i].tolist()), temperature, strict=True)]
            alone = [v / t for v, t in zip(z, temperature, strict=True)]
            divergence += kl(softmax(together), softmax(alone))
        total += margin_losses / sum(weights[y] for y in target.tolist())
        total += -diversity * middle**2 * divergence / len(target)
    return total


@pytest.mark.parametrize("factor", [0.0, 0.02, 0.05, 0.5])
@pytest.mark.parametrize("diversity", [0.0, 0.2, 0.45])
@pytest.mark.parametrize("epoch", [0, 5])
def test_the_loss_equals_loops_written_from_the_official_form(factor, diversity, epoch):
    criterion = RIDE(
        counts=COUNTS, diversity=diversity, temperature_factor=factor, class_weights=WEIGHTS, reweight_epoch=5
    )
    criterion.set_epoch(epoch)
    expected = oracle(LOGITS, TARGET, weighted=epoch == 5, diversity=diversity, factor=factor)
    assert criterion(LOGITS, TARGET).mean().item() == pytest.approx(expected, rel=1e-4)


def test_experts_that_agree_have_the_ldam_loss_of_each():
    same = LOGITS[:, :1].expand(-1, E, -1)
    ldam = LDAM(counts=COUNTS)(LOGITS[:, 0], TARGET)
    torch.testing.assert_close(RIDE(counts=COUNTS)(same, TARGET), E * ldam)
    torch.testing.assert_close(RIDE(counts=COUNTS)(LOGITS[:, :1], TARGET), ldam)
    torch.testing.assert_close(RIDE(counts=COUNTS)(LOGITS[:, 0], TARGET), ldam)


def test_disagreement_is_rewarded():
    modest, bold = (RIDE(counts=COUNTS, diversity=d)(LOGITS, TARGET) for d in (0.1, 0.4))
    assert (bold < modest).all()


def test_the_order_of_the_experts_does_not_matter():
    criterion = RIDE(counts=COUNTS)
    torch.testing.assert_close(criterion(LOGITS.flip(1), TARGET), criterion(LOGITS, TARGET))


def test_no_gradient_goes_through_the_mean():
    logits = LOGITS.double().requires_grad_()
    with_reward = torch.autograd.grad(RIDE(counts=COUNTS, diversity=1.0).double()(logits, TARGET).sum(), logits)[0]
    without = torch.autograd.grad(RIDE(counts=COUNTS, diversity=0.0).double()(logits, TARGET).sum(), logits)[0]
    # the gradient of KL(p || softmax(z)) with p fixed is softmax(z) - p
    expected = -(logits.softmax(2) - logits.mean(1, keepdim=True).softmax(2))
    torch.testing.assert_close(with_reward - without, expected)


def test_evaluation_judges_the_mean_logits():
    criterion = RIDE(counts=COUNTS).eval()
    torch.testing.assert_close(criterion(LOGITS, TARGET), CrossEntropy()(LOGITS.mean(1), TARGET))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_extreme_logits_give_finite_losses_and_gradients(dtype):
    assert RIDE(counts=COUNTS)(LOGITS.to(dtype), TARGET).dtype == torch.float32
    logits = (LOGITS * 1e3).requires_grad_()
    losses = RIDE(counts=COUNTS)(logits, TARGET)
    losses.sum().backward()
    assert losses.isfinite().all()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RIDE(counts=COUNTS, diversity=-0.2), r"`diversity` \(-0\.2\) must be 0 or more"),
        (lambda: RIDE(counts=COUNTS, temperature_factor=1.5), r"`temperature_factor` \(1\.5\) must be in 0\.\.1"),
        (lambda: RIDE(counts=torch.tensor([3, 0])), "class 1 has 0 training images"),
        (lambda: RIDE(counts=COUNTS[:2])(LOGITS, TARGET % 2), "`counts` has 2 classes but `logits` has 4"),
        (
            lambda: RIDE(counts=COUNTS)(torch.cat([LOGITS, LOGITS]), TARGET),
            r"12 rows but `target` has 6.*streams",
        ),
        (lambda: RIDE(counts=COUNTS)(LOGITS[:, :0], TARGET), r"must be \[N, E, K\].*not \[6, 0, 4\]"),
        (lambda: RIDE(counts=COUNTS)(LOGITS[None], TARGET), r"must be \[N, E, K\]"),
        (lambda: RIDE(counts=COUNTS)(LOGITS, LOGITS[:, 0].softmax(1)), "soft targets"),
        (lambda: distillation(LOGITS, LOGITS[:, :, :2]), r"`student` is \[6, 4\] and `teacher` \[6, 2\]"),
        (lambda: distillation(LOGITS, LOGITS, temperature=0.0), r"`temperature` \(0\.0\) must be above 0"),
    ],
)
def test_what_has_no_meaning_is_refused(make, message):
    with pytest.raises(InvalidInput, match=message):
        make()


@pytest.mark.parametrize("temperature", [1.0, 1.5, 4.0])
def test_distillation_equals_plain_loops(temperature):
    teacher = torch.randn(N, 6, K, generator=torch.Generator().manual_seed(1))
    expected = []
    for i in range(N):
        mine, wanted = ([v / temperature for v in mean_of(z[i].tolist())] for z in (LOGITS, teacher))
        expected.append(temperature**2 * kl(softmax(wanted), softmax(mine)))
    got = distillation(LOGITS, teacher, temperature=temperature)
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-4)
    torch.testing.assert_close(got, distillation(LOGITS.mean(1), teacher.mean(1), temperature=temperature))


def test_a_teacher_gets_no_gradient():
    student, teacher = LOGITS.clone().requires_grad_(), (LOGITS + 1).flip(2).requires_grad_()
    distillation(student, teacher).sum().backward()
    assert student.grad.any()
    assert teacher.grad is None
