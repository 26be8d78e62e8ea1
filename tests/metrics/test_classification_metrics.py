"""Metrics against scikit-learn and plain loops."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as reference

from setwise.errors import InvalidInput
from setwise.metrics import classification_metrics, confusion_matrix, multilabel_metrics, per_class_accuracy

torch.set_num_threads(1)


def draw(n=200, k=6, *, seed=0, missing=None):
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(0, k, (n,), generator=generator)
    if missing is not None:
        target[target == missing] = (missing + 1) % k
    scores = 2 * torch.randn(n, k, generator=generator)
    scores[torch.arange(n), target] += 2
    return scores, target


def groups_of(k):
    index = torch.arange(k)
    return {"many": index < 2, "medium": (index >= 2) & (index < k - 2), "few": index >= k - 2}


@pytest.mark.parametrize("missing", [None, 0, 5])
@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
def test_accuracies_and_confusion_matrix_equal_those_of_scikit_learn(missing):
    scores, target = draw(missing=missing)
    predicted = scores.argmax(1).numpy()
    ours = classification_metrics(scores, target, groups=groups_of(6))
    assert ours["accuracy"] == pytest.approx(reference.accuracy_score(target, predicted), abs=1e-12)
    assert ours["balanced_accuracy"] == pytest.approx(reference.balanced_accuracy_score(target, predicted), abs=1e-12)
    expected = reference.confusion_matrix(target, predicted, labels=range(6))
    np.testing.assert_array_equal(confusion_matrix(scores, target).numpy(), expected)


@pytest.mark.parametrize("missing", [None, 0, 5])
def test_groups_equal_plain_loops_over_classes(missing):
    scores, target = draw(missing=missing)
    ours = classification_metrics(scores, target, groups=groups_of(6))
    accuracies = per_class_accuracy(scores, target)
    for name, group in groups_of(6).items():
        per_class = []
        for c in group.nonzero().flatten().tolist():
            rows = [i for i in range(len(target)) if target[i] == c]
            if rows:
                per_class.append(sum(int(scores[i].argmax()) == c for i in rows) / len(rows))
                assert accuracies[c].item() == pytest.approx(per_class[-1])
            else:
                assert math.isnan(accuracies[c].item())
        assert ours[name] == pytest.approx(sum(per_class) / len(per_class), abs=1e-12)


def test_group_without_images_is_absent():
    scores, target = torch.eye(3), torch.tensor([0, 1, 1])
    groups = {"many": torch.tensor([True, True, False]), "few": torch.tensor([False, False, True])}
    groups["medium"] = torch.zeros(3, dtype=torch.bool)
    ours = classification_metrics(scores, target, groups=groups)
    assert set(ours) == {"accuracy", "balanced_accuracy", "many", "ece"}


@pytest.mark.parametrize("seed", range(5))
def test_calibration_error_equals_a_plain_loop_over_bins(seed):
    scores, target = draw(seed=seed)
    probabilities = np.exp(scores.double().numpy())
    probabilities /= probabilities.sum(1, keepdims=True)
    error = 0.0
    for b in range(15):
        rows = [i for i in range(len(target)) if b / 15 <= probabilities[i].max() < (b + 1) / 15]
        if rows:
            confidence = sum(probabilities[i].max() for i in rows) / len(rows)
            accuracy = sum(int(probabilities[i].argmax()) == int(target[i]) for i in rows) / len(rows)
            error += len(rows) / len(target) * abs(accuracy - confidence)
    assert classification_metrics(scores, target, groups={})["ece"] == pytest.approx(error, abs=1e-6)


def test_sure_and_right_is_perfectly_calibrated_sure_and_wrong_not_at_all():
    scores = 1000 * torch.eye(4)
    assert classification_metrics(scores, torch.arange(4), groups={})["ece"] == pytest.approx(0, abs=1e-6)
    assert classification_metrics(scores, torch.arange(4).roll(1), groups={})["ece"] == pytest.approx(1)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10_000))
def test_order_of_images_and_a_shift_of_all_scores_do_not_matter(seed):
    scores, target = draw(n=40, seed=seed)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(seed))
    first = classification_metrics(scores, target, groups=groups_of(6))
    second = classification_metrics(scores[order] + 3, target[order], groups=groups_of(6))
    assert first == pytest.approx(second, abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_of_scores_are_taken(dtype):
    scores, target = draw()
    scores = scores.to(dtype)
    expected = classification_metrics(scores.float(), target, groups={})
    assert classification_metrics(scores, target, groups={}) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("factor", [1.0, 100.0])
def test_average_precision_equals_that_of_scikit_learn_also_for_large_scores_and_ties(factor):
    generator = torch.Generator().manual_seed(0)
    scores = (factor * torch.randn(100, 6, generator=generator)).round(decimals=1)
    target = torch.rand(100, 6, generator=generator) < 0.2
    target[:, 3] = False  # a class without positives is left out
    per_class = [reference.average_precision_score(target[:, c], scores[:, c]) for c in (0, 1, 2, 4, 5)]
    ours = multilabel_metrics(scores, target.float(), groups=groups_of(6))
    assert ours["mean_average_precision"] == pytest.approx(np.mean(per_class), abs=1e-6)
    assert ours["many"] == pytest.approx(np.mean(per_class[:2]), abs=1e-6)
    assert ours["medium"] == pytest.approx(per_class[2], abs=1e-6)
    assert ours["few"] == pytest.approx(np.mean(per_class[3:]), abs=1e-6)


def test_average_precision_equals_a_plain_loop_over_ranks():
    scores = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5])
    target = torch.tensor([1, 0, 1, 1, 0])
    hits, precisions = 0, []
    for rank, positive in enumerate(target.tolist(), start=1):
        hits += positive
        if positive:
            precisions.append(hits / rank)
    ours = multilabel_metrics(scores[:, None], target[:, None], groups={})
    assert ours["mean_average_precision"] == pytest.approx(sum(precisions) / len(precisions), abs=1e-6)


@pytest.mark.parametrize(
    ("scores", "target", "message"),
    [
        (torch.zeros(0, 3), torch.zeros(0, dtype=torch.long), "no rows"),
        (torch.tensor([[float("nan"), 0.0]]), torch.tensor([0]), r"NaN for 1 of 1 images.*diverged"),
        (torch.zeros(2, 3), torch.tensor([0, 3]), "label 3 is out of range: `scores` has 3 classes"),
        (torch.zeros(2, 3), torch.tensor([-1, 0]), "label -1 is out of range"),
    ],
)
def test_input_without_a_meaning_ends_in_a_sentence(scores, target, message):
    with pytest.raises(InvalidInput, match=message):
        classification_metrics(scores, target, groups={})


def test_multi_label_target_without_a_meaning_ends_in_a_sentence():
    with pytest.raises(InvalidInput, match="only 0 and 1"):
        multilabel_metrics(torch.zeros(2, 2), torch.full((2, 2), 0.5), groups={})
    with pytest.raises(InvalidInput, match="No class has a positive"):
        multilabel_metrics(torch.zeros(2, 2), torch.zeros(2, 2), groups={})
