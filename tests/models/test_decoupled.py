"""What decoupled training puts in place of a classifier, against plain loops."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from setwise.errors import InvalidInput, MissingFile
from setwise.models import (
    LearnableScale,
    TauNormalized,
    choose_exponent,
    create_head,
    limit_norm,
    norm_between,
    tau_normalize,
)

DIM, CLASSES = 5, 4


def linear(seed=0):
    head = nn.Linear(DIM, CLASSES).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        head.weight.copy_(torch.randn(CLASSES, DIM, generator=generator) * torch.tensor([[9.0], [3.0], [1.0], [0.2]]))
    return head


def normalised_oracle(weight, tau):
    rows = []
    for row in weight:
        length = math.sqrt(sum(v * v for v in row))
        rows.append([v / length**tau for v in row])
    return rows


@given(st.floats(0.1, 20.0), st.integers(0, 99))
def test_a_class_weight_that_is_too_long_is_shortened_and_no_other(max_norm, seed):
    head = linear(seed)
    before, bias = head.weight.tolist(), head.bias.detach().clone()
    limit_norm(head, max_norm)
    for row, now in zip(before, head.weight.tolist(), strict=True):
        length = math.sqrt(sum(v * v for v in row))
        np.testing.assert_allclose(now, [v * min(1.0, max_norm / length) for v in row], rtol=1e-12)
    assert torch.equal(head.bias, bias)


@given(st.floats(0.0, 1.0), st.integers(0, 99))
def test_a_limit_stands_between_the_shortest_and_the_longest_class_weight(share, seed):
    head = linear(seed)
    lengths = [math.sqrt(sum(v * v for v in row)) for row in head.weight.tolist()]
    assert norm_between(head, share) == pytest.approx((1 - share) * min(lengths) + share * max(lengths))


def test_a_weight_of_zero_stays_zero_under_a_longest_norm():
    head = linear()
    torch.nn.init.zeros_(head.weight)
    limit_norm(head, 1.0)
    assert not head.weight.any()


@pytest.mark.parametrize("tau", [0.0, 0.3, 1.0, 1.7])
def test_normalised_weights_equal_plain_loops(tau):
    head = linear()
    made = tau_normalize(head, tau)
    np.testing.assert_allclose(made.weight.detach().numpy(), normalised_oracle(head.weight.tolist(), tau), rtol=1e-12)
    assert made.bias is None


@given(st.floats(0, 3), st.integers(0, 99))
def test_normalising_keeps_directions_and_raises_lengths_to_one_minus_tau(tau, seed):
    head = linear(seed)
    made, old = tau_normalize(head, tau).weight, head.weight
    torch.testing.assert_close(nn.functional.normalize(made), nn.functional.normalize(old))
    torch.testing.assert_close(made.norm(dim=1), old.norm(dim=1) ** (1 - tau))


def test_normalising_leaves_the_head_as_it_was_and_a_zero_weight_zero():
    head = linear()
    with torch.no_grad():
        head.weight[2] = 0
    before = head.weight.clone()
    made = tau_normalize(head, 1.0)
    assert torch.equal(head.weight, before)
    assert made.weight.isfinite().all()
    assert not made.weight[2].any()


@pytest.mark.parametrize("tau", [-0.1, math.nan, math.inf])
def test_a_meaningless_exponent_is_refused(tau):
    with pytest.raises(InvalidInput, match="`tau` must be a finite number of 0 or more"):
        tau_normalize(linear(), tau)


def test_only_linear_layers_are_normalised(unchecked):
    with pytest.raises(InvalidInput, match=r"must be a linear layer, but it is CosineClassifier; a cosine"):
        tau_normalize(create_head("cosine", DIM, CLASSES, scale=30.0), 0.5)


def test_the_exponent_is_the_one_with_the_best_balanced_accuracy():
    head = linear()
    features = torch.randn(200, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    target = (features @ head.weight.T / head.weight.norm(dim=1) ** 0.7).argmax(1)  # what tau 0.7 gets right
    scores = {}
    for tau in (0.0, 0.35, 0.7, 1.0):
        predicted = [
            max(range(CLASSES), key=lambda k: sum(a * b for a, b in zip(row, weight[k], strict=True)))
            for weight in [normalised_oracle(head.weight.tolist(), tau)]
            for row in features.tolist()
        ]
        recalls = []
        for k in set(target.tolist()):
            of_class = [p == t for p, t in zip(predicted, target.tolist(), strict=True) if t == k]
            recalls.append(sum(of_class) / len(of_class))
        scores[tau] = sum(recalls) / len(recalls)
    assert max(scores, key=scores.get) == 0.7
    assert choose_exponent(head, features, target, exponents=tuple(scores)) == 0.7
    assert choose_exponent(head, features, target, exponents=(0.0, 1.0)) == max((0.0, 1.0), key=scores.get)


def test_rare_classes_count_as_much_as_large_ones_in_the_choice():
    head = nn.Linear(2, 2)
    head.weight.data = torch.tensor([[4.0, 0.0], [0.0, 1.0]])
    features, target = torch.tensor([[1.0, 0.0]] * 12 + [[1.0, 2.0]] * 7), torch.tensor([0] * 18 + [1])
    # as it is 18 of 19 are right and the one of the rare class is not; at equal lengths 13 of 19, it among them
    assert choose_exponent(head, features, target, exponents=(0.0, 1.0)) == 1.0


@pytest.mark.parametrize(
    ("rows", "targets", "exponents", "message"),
    [(3, 2, (0.0,), "has 3 rows and `target` 2"), (0, 0, (0.0,), "has 0 rows"), (2, 2, (), "`exponents` is empty")],
)
def test_nothing_to_choose_by_is_refused(unchecked, rows, targets, exponents, message):
    with pytest.raises(InvalidInput, match=message):
        choose_exponent(nn.Linear(DIM, 2), torch.zeros(rows, DIM), torch.zeros(targets).long(), exponents=exponents)


def test_a_normalised_head_chooses_as_the_function_does_and_scores_by_it():
    whole = linear()
    head = TauNormalized(DIM, CLASSES).double()
    head.weight.data.copy_(whole.weight)
    features = torch.randn(200, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    target = (features @ whole.weight.T / whole.weight.norm(dim=1) ** 0.7).argmax(1)
    for _ in range(2):  # whatever it had chosen before
        head.choose(head(features), target)
        assert float(head.tau) == pytest.approx(choose_exponent(whole, features, target))
    assert 0 < float(head.tau) < 1
    torch.testing.assert_close(head(features), tau_normalize(whole, float(head.tau))(features))


def test_learned_scales_multiply_the_scores_of_a_classifier_that_stays():
    head = LearnableScale(DIM, CLASSES).double()
    with torch.no_grad():
        head.scales.copy_(torch.tensor([1.0, 2.0, 0.5, 3.0]))
    x = torch.randn(6, DIM, dtype=torch.float64)
    scores = head(x)
    for i in range(6):
        for k in range(CLASSES):
            score = sum(float(head.weight[k, c] * x[i, c]) for c in range(DIM)) + float(head.bias[k])
            assert float(scores[i, k]) == pytest.approx(float(head.scales[k]) * score)
    scores.square().sum().backward()
    assert head.scales.grad.all()
    assert head.weight.grad is None
    assert head.bias.grad is None


def test_scales_start_at_the_first_stage(tmp_path):
    first = nn.Linear(DIM, CLASSES)
    save_file({f"head.{name}": value for name, value in first.state_dict().items()}, tmp_path / "first.safetensors")
    head = create_head("lws", DIM, CLASSES, scale=30.0)
    head.start_from(tmp_path / "first.safetensors")
    x = torch.randn(3, DIM)
    torch.testing.assert_close(head(x), first(x))


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"backbone.weight": torch.zeros(2)}, r"`head\.weight` must be \[4, 5\], but there is none in .*first"),
        ({"head.weight": torch.zeros(4, 5)}, r"`head\.bias` must be \[4\], but there is none"),
        ({"head.weight": torch.zeros(9, 5)}, r"must be \[4, 5\], but it is \[9, 5\].*--head\.name linear"),
        (
            {"head.weight": torch.zeros(4, 5), "head.bias": torch.zeros(4), "head.scales": torch.ones(4)},
            r"there is head\.scales beside it",
        ),
    ],
)
@pytest.mark.parametrize("kind", [LearnableScale, TauNormalized])
def test_weights_without_a_fitting_head_are_refused(tmp_path, kind, state, message):
    save_file(state, tmp_path / "first.safetensors")
    with pytest.raises(InvalidInput, match=message):
        kind(DIM, CLASSES).start_from(tmp_path / "first.safetensors")


def test_a_missing_first_stage_is_named():
    with pytest.raises(MissingFile, match=r"nowhere\.safetensors"):
        LearnableScale(DIM, CLASSES).start_from("nowhere.safetensors")
