"""Contrastive losses against plain loops, and what they must not depend on."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from setwise.errors import InvalidInput
from setwise.losses import BalancedSoftmax, PaCo, nt_xent, parametric_contrastive

N, M, K, D = 5, 9, 3, 4
COUNTS = torch.tensor([50, 9, 3])
RANDOM = torch.Generator().manual_seed(0)
ONE, OTHER = torch.randn(N, D, generator=RANDOM), torch.randn(N, D, generator=RANDOM)
LOGITS = torch.randn(N, K, generator=RANDOM)
QUERY, OTHERS = F.normalize(ONE), F.normalize(torch.randn(M, D, generator=RANDOM))
TARGET, OTHERS_TARGET = torch.tensor([0, 1, 2, 0, 1]), torch.tensor([0, 1, 2, 0, 1, 2, 2, 0, 0])
OPTIONS = {"counts": COUNTS, "temperature": 0.2, "alpha": 0.05}


def dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


def nt_xent_oracle(one, other, temperature):
    views = one.tolist() + other.tolist()
    losses = []
    for i in range(len(views)):
        powers = {}
        for j in range(len(views)):
            if j != i:
                cosine = dot(views[i], views[j]) / math.sqrt(dot(views[i], views[i]) * dot(views[j], views[j]))
                powers[j] = math.exp(cosine / temperature)
        partner = (i + len(one)) % len(views)
        losses.append(-math.log(powers[partner] / sum(powers.values())))
    return losses


@pytest.mark.parametrize("temperature", [0.1, 0.5, 2.0])
def test_nt_xent_equals_loops_over_pairs(temperature):
    got = nt_xent(ONE, OTHER, temperature=temperature)
    assert got.tolist() == pytest.approx(nt_xent_oracle(ONE, OTHER, temperature), rel=1e-4)


@given(st.integers(1, 6), st.floats(0.1, 100), st.integers(0, 99))
def test_nt_xent_knows_neither_lengths_nor_order_nor_which_view_is_first(size, length, seed):
    generator = torch.Generator().manual_seed(seed)
    one, other = torch.randn(size, D, generator=generator), torch.randn(size, D, generator=generator)
    losses, order = nt_xent(one, other), torch.randperm(size, generator=generator)
    torch.testing.assert_close(nt_xent(length * one, other), losses, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(nt_xent(other, one), losses.roll(size))
    torch.testing.assert_close(nt_xent(one[order], other[order])[:size], losses[:size][order])


def test_one_sample_alone_has_nobody_to_be_taken_for():
    torch.testing.assert_close(nt_xent(ONE[:1], OTHER[:1]), torch.zeros(2))


def paco_oracle(alpha, beta, gamma, temperature, prior_temperature):
    """Loops over anchors, centres and features."""
    n, features = COUNTS.tolist(), QUERY.tolist() + OTHERS.tolist()
    labels = TARGET.tolist() + OTHERS_TARGET.tolist()
    losses = []
    for i in range(N):
        centre = [(LOGITS[i, k].item() + math.log(n[k] / sum(n) + 1e-9)) / prior_temperature for k in range(K)]
        contrast = {j: dot(QUERY[i].tolist(), features[j]) / temperature for j in range(len(features)) if j != i}
        denominator = sum(map(math.exp, centre)) + gamma * sum(map(math.exp, contrast.values()))
        total, weight = beta * (centre[TARGET[i]] - math.log(denominator)), beta
        for j, logit in contrast.items():
            if labels[j] == TARGET[i]:
                total += alpha * (logit - math.log(denominator))
                weight += alpha
        losses.append(-total / weight)
    return losses


@pytest.mark.parametrize("alpha", [0.0, 0.05, 1.0])
@pytest.mark.parametrize(("beta", "gamma", "prior_temperature"), [(1.0, 1.0, 1.0), (0.5, 0.3, 2.0), (1.0, 0.0, 1.0)])
def test_paco_equals_loops_written_from_the_official_form(alpha, beta, gamma, prior_temperature):
    options = {"alpha": alpha, "beta": beta, "gamma": gamma, "prior_temperature": prior_temperature}
    options["temperature"] = 0.2
    got = parametric_contrastive(LOGITS, QUERY, OTHERS, TARGET, OTHERS_TARGET, counts=COUNTS, **options)
    assert got.tolist() == pytest.approx(paco_oracle(**options), rel=1e-4)


def test_paco_without_features_is_balanced_softmax():
    got = parametric_contrastive(LOGITS, QUERY, OTHERS, TARGET, OTHERS_TARGET, **(OPTIONS | {"alpha": 0.0}), gamma=0.0)
    torch.testing.assert_close(got, BalancedSoftmax(counts=COUNTS)(LOGITS, TARGET))


def test_the_criterion_gives_each_stream_the_same_queries_and_keys():
    related = LOGITS.flip(0)
    features = {"query": QUERY, "others": OTHERS, "others_target": OTHERS_TARGET}
    criterion = PaCo(counts=COUNTS, temperature=OPTIONS["temperature"], alpha=OPTIONS["alpha"])
    got = criterion.contrast(torch.cat([LOGITS, related]), TARGET, **features)
    torch.testing.assert_close(got, torch.cat([paco(), paco(class_logits=related)]))
    torch.testing.assert_close(criterion.contrast(LOGITS, TARGET, **features), paco())


def test_class_weights_multiply_the_criterions_losses_over_both_streams():
    weights = torch.tensor([0.5, 1.0, 3.0])
    features = {"query": QUERY, "others": OTHERS, "others_target": OTHERS_TARGET}
    plain, weighted = PaCo(counts=COUNTS), PaCo(counts=COUNTS, class_weights=weights, reweight_epoch=1)
    both = torch.cat([LOGITS, LOGITS.flip(0)])
    losses = plain.contrast(both, TARGET, **features)
    torch.testing.assert_close(weighted.contrast(both, TARGET, **features), losses)
    weighted.set_epoch(1)
    of_rows = weights[torch.cat([TARGET, TARGET])]
    torch.testing.assert_close(weighted.contrast(both, TARGET, **features), losses * of_rows / of_rows.mean())


def test_the_criterion_on_scores_alone_is_balanced_softmax():
    torch.testing.assert_close(PaCo(counts=COUNTS)(LOGITS, TARGET), BalancedSoftmax(counts=COUNTS)(LOGITS, TARGET))


def test_autocast_does_not_reach_the_cosines():
    features = {"query": QUERY, "others": OTHERS, "others_target": OTHERS_TARGET}
    criterion = PaCo(counts=COUNTS, temperature=0.05)
    with torch.autocast("cpu", torch.bfloat16):
        got = criterion.contrast(LOGITS, TARGET, **features)
    assert torch.equal(got, criterion.contrast(LOGITS, TARGET, **features))
    one, other = torch.randn(2, 6, 8)
    with torch.autocast("cpu", torch.bfloat16):
        got = nt_xent(one, other, temperature=0.1)
    assert torch.equal(got, nt_xent(one, other, temperature=0.1))


def test_keys_get_no_gradient_and_everything_else_does():
    logits, query, others = (x.clone().requires_grad_() for x in (LOGITS, QUERY, OTHERS))
    parametric_contrastive(logits, query, others, TARGET, OTHERS_TARGET, **OPTIONS).sum().backward()
    assert others.grad is None
    assert logits.grad.any(1).all()
    assert query.grad.any(1).all()


@pytest.mark.parametrize("gamma", [0.0, 1.0])
def test_gradients_are_finite_differences(gamma):
    def loss(logits, query):
        return parametric_contrastive(logits, query, OTHERS.double(), TARGET, OTHERS_TARGET, **OPTIONS, gamma=gamma)

    inputs = (LOGITS.double().requires_grad_(), QUERY.double().requires_grad_())
    assert torch.autograd.gradcheck(loss, inputs)


def test_the_order_of_the_queue_does_not_matter_and_it_may_be_empty():
    order = torch.randperm(M)
    got = parametric_contrastive(LOGITS, QUERY, OTHERS, TARGET, OTHERS_TARGET, **OPTIONS)
    shuffled = parametric_contrastive(LOGITS, QUERY, OTHERS[order], TARGET, OTHERS_TARGET[order], **OPTIONS)
    torch.testing.assert_close(shuffled, got)
    empty = parametric_contrastive(LOGITS, QUERY, OTHERS[:0], TARGET, OTHERS_TARGET[:0], **OPTIONS)
    assert empty.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_gives_float32_losses(dtype):
    got = parametric_contrastive(LOGITS.to(dtype), QUERY.to(dtype), OTHERS.to(dtype), TARGET, OTHERS_TARGET, **OPTIONS)
    assert got.dtype == nt_xent(ONE.to(dtype), OTHER.to(dtype)).dtype == torch.float32
    assert got.isfinite().all()


def paco(**changes):
    arguments = {
        "class_logits": LOGITS,
        "query": QUERY,
        "others": OTHERS,
        "target": TARGET,
        "others_target": OTHERS_TARGET,
    }
    return parametric_contrastive(**(arguments | OPTIONS | changes))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nt_xent(ONE, OTHER[:3]), r"`one` is \[5, 4\] and `other` \[3, 4\]"),
        (lambda: nt_xent(ONE[:0], OTHER[:0]), "of at least one sample"),
        (lambda: nt_xent(ONE, OTHER, temperature=0.0), r"`temperature` \(0\.0\) must be above 0"),
        (lambda: paco(temperature=-1.0), r"`temperature` \(-1\.0\) must be above 0"),
        (lambda: paco(beta=0.0), r"`beta` \(0\.0\) must be above 0"),
        (lambda: paco(alpha=-0.1), r"`alpha` \(-0\.1\).* must be 0 or more"),
        (lambda: paco(counts=COUNTS[:2]), "`counts` has 2 classes but `class_logits` has 3"),
        (lambda: paco(counts=COUNTS * 0), "class 0 has 0 training images"),
        (lambda: paco(query=QUERY[:4]), r"`query` is \[4, 4\] with 5 labels"),
        (lambda: paco(others=OTHERS[:, :2]), r"`others` \[9, 2\] with 9"),
        (lambda: paco(others_target=OTHERS_TARGET[:2]), r"`others` \[9, 4\] with 2"),
        (lambda: paco(target=LOGITS.softmax(1)), "PaCo compares labels, and has none in soft targets"),
        (lambda: PaCo(counts=COUNTS, temperature=0.0), r"`temperature` \(0\.0\) must be above 0"),
        (lambda: PaCo(counts=COUNTS, alpha=-1.0), r"`alpha` \(-1\.0\) is a weight"),
        (lambda: paco(target=TARGET + 1), "label 3 is out of range"),
    ],
)
def test_what_does_not_fit_is_refused(unchecked, make, message):
    with pytest.raises(InvalidInput, match=message):
        make()
