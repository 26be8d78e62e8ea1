"""Post-hoc logit adjustment against loops, and the choice of its strength."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from setwise.errors import InvalidInput
from setwise.metrics import TAUS, adjust, choose_tau, classification_metrics, logit_adjustment, predictions_over_taus

torch.set_num_threads(1)

COUNTS = torch.tensor([800, 150, 50])


def biased(n=600, *, seed=0, bias=1.0):
    """Scores that know the class a little and favour frequent classes by ``bias`` times the log prior."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(0, 3, (n,), generator=generator)
    scores = torch.randn(n, 3, generator=generator)
    scores[torch.arange(n), target] += 1.5
    return scores + bias * (COUNTS / COUNTS.sum()).log(), target


def oracle(logits, tau):
    prior = [n / sum(COUNTS.tolist()) for n in COUNTS.tolist()]
    return np.array([[z[j] - tau * math.log(prior[j]) for j in range(3)] for z in logits.double().tolist()])


def test_grid_runs_from_minus_a_half_to_two_and_a_half_with_zero_and_one_exactly_in_it():
    assert TAUS[0] == -0.5
    assert TAUS[-1] == 2.5
    assert len(TAUS) == 31
    assert {0.0, 0.3, 1.0} <= set(TAUS)


@pytest.mark.parametrize("tau", [-0.5, 0.0, 1.0, 2.5])
def test_adjusted_logits_equal_a_plain_loop(tau):
    logits, _ = biased(20)
    np.testing.assert_allclose(adjust(logits, COUNTS, tau).numpy(), oracle(logits, tau), rtol=1e-5, atol=1e-5)


def test_predictions_equal_a_plain_loop_over_strengths(monkeypatch):
    monkeypatch.setattr(logit_adjustment, "CHUNK", 21)  # several blocks of rows, the last one shorter
    logits, _ = biased(50)
    predictions = predictions_over_taus(logits, COUNTS)
    assert predictions.shape == (31, 50)
    for row, tau in zip(predictions, TAUS, strict=True):
        np.testing.assert_array_equal(row.numpy(), oracle(logits, tau).argmax(1))


@pytest.mark.parametrize("bias", [0.0, 1.0, 2.0])
def test_bias_of_known_strength_is_found_again(bias):
    logits, target = biased(5000, bias=bias)
    assert choose_tau(logits, target, COUNTS) == pytest.approx(bias, abs=0.35)


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 10_000), st.integers(2, 60))
def test_chosen_strength_equals_a_search_that_computes_every_metric(seed, n):
    logits, target = biased(n, seed=seed)

    def quality(tau):
        adjusted = torch.tensor(oracle(logits, tau))
        balanced = classification_metrics(adjusted, target, groups={})["balanced_accuracy"]
        losses = torch.nn.functional.cross_entropy(adjusted, target, reduction="none")
        likelihood = np.mean([losses[target == c].mean().item() for c in target.unique().tolist()])
        return -round(balanced, 9), likelihood

    expected = min(TAUS, key=quality)
    chosen = choose_tau(logits, target, COUNTS)
    assert quality(chosen) == pytest.approx(quality(expected), rel=1e-5)


def test_chosen_strength_never_has_a_lower_validation_accuracy_than_no_adjustment():
    logits, target = biased()
    chosen = adjust(logits, COUNTS, choose_tau(logits, target, COUNTS))
    before = classification_metrics(logits, target, groups={})["balanced_accuracy"]
    assert classification_metrics(chosen, target, groups={})["balanced_accuracy"] >= before


def test_balanced_counts_change_no_prediction():
    logits, _ = biased()
    predictions = predictions_over_taus(logits, torch.tensor([9, 9, 9]))
    assert (predictions == logits.argmax(1)).all()


def test_half_precision_logits_are_adjusted_in_float32():
    assert adjust(torch.zeros(1, 3, dtype=torch.float16), COUNTS, 1.0).dtype == torch.float32


def test_counts_that_have_no_prior_end_in_a_sentence():
    with pytest.raises(InvalidInput, match="class 1 has 0 training images"):
        adjust(torch.zeros(1, 2), torch.tensor([1, 0]), 1.0)
    with pytest.raises(InvalidInput, match="`counts` has 3 classes but `logits` has 2"):
        adjust(torch.zeros(1, 2), COUNTS, 1.0)


def test_choice_without_validation_images_ends_in_a_sentence():
    with pytest.raises(InvalidInput, match="at least one validation image"):
        choose_tau(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long), COUNTS)
