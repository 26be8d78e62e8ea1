"""Each criterion against plain loops written from its paper, and what all of them share."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from setwise.errors import InvalidInput
from setwise.losses import CRITERIA, LDAM, BalancedSoftmax, BinaryCrossEntropy, CrossEntropy, FocalLoss

torch.set_num_threads(1)

N, K = 7, 4
COUNTS = torch.tensor([500, 60, 20, 3])
WEIGHTS = torch.tensor([0.5, 1.0, 2.0, 4.0])
LOGITS = torch.randn(N, K, generator=torch.Generator().manual_seed(0)) * 3
TARGET = torch.tensor([0, 1, 2, 3, 0, 0, 2])
SOFT = torch.rand(N, K, generator=torch.Generator().manual_seed(1)).softmax(1)


def make(name, **options):
    if name in ("balanced-softmax", "ldam", "ride", "paco", "glmc"):
        options["counts"] = COUNTS
    return CRITERIA[name](**options)


def target_for(name):
    return SOFT.round() if name == "binary-cross-entropy" else TARGET


def oracle(logits, target, *, class_loss, weights=None):
    """Loops over rows and classes; ``class_loss(z, j)`` is the loss of one row if ``j`` were its class."""
    logits = logits.double().numpy()
    soft = F.one_hot(target, K).double().numpy() if target.dim() == 1 else target.double().numpy()
    weights = np.ones(K) if weights is None else weights.double().numpy()
    losses, row_weights = [], []
    for z, p in zip(logits, soft, strict=True):
        losses.append(sum(weights[j] * p[j] * class_loss(z, j) for j in range(K)))
        row_weights.append(sum(weights[j] * p[j] for j in range(K)))
    return np.array(losses) / np.mean(row_weights)


def minus_log_softmax(z, j):
    return -math.log(math.exp(z[j]) / sum(math.exp(v) for v in z))


def balanced(z, j):
    n = COUNTS.tolist()
    return -math.log(n[j] * math.exp(z[j]) / sum(n[i] * math.exp(z[i]) for i in range(K)))


def ldam(z, j, *, max_margin=0.5, scale=30.0):
    cosine = [v / scale for v in z]
    widest = max(n**-0.25 for n in COUNTS.tolist())
    margin = max_margin * COUNTS.tolist()[j] ** -0.25 / widest
    true = math.exp(scale * (cosine[j] - margin))
    return -math.log(true / (true + sum(math.exp(scale * cosine[i]) for i in range(K) if i != j)))


def focal(z, j, *, gamma=2.0):
    p = math.exp(z[j]) / sum(math.exp(v) for v in z)
    return -((1 - p) ** gamma) * math.log(p)


def softmax_binary(z, j):
    """Without weights; whether they are divided by their mean is another question."""
    p = [math.exp(v) / sum(math.exp(u) for u in z) for v in z]
    return -(math.log(p[j]) + sum(math.log(1 - p[i]) for i in range(K) if i != j)) / K


ORACLES = {"cross-entropy": minus_log_softmax, "balanced-softmax": balanced, "ldam": ldam, "focal": focal}


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["unweighted", "weighted"])
@pytest.mark.parametrize(
    ("name", "kind"),
    [(name, kind) for name in ORACLES for kind in ("labels", "soft") if (name, kind) != ("ldam", "soft")],
)
def test_criterion_equals_loops_written_from_the_paper(name, kind, weights):
    target = TARGET if kind == "labels" else SOFT
    losses = make(name, class_weights=weights)(LOGITS, target)
    assert losses.shape == (N,)
    expected = oracle(LOGITS, target, class_loss=ORACLES[name], weights=weights)
    np.testing.assert_allclose(losses.numpy(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("target", [TARGET, SOFT], ids=["labels", "soft"])
def test_binary_cross_entropy_of_a_softmax_equals_loops_and_that_of_torch(target, weights):
    losses = CRITERIA["softmax-binary"](class_weights=weights)(LOGITS, target)
    soft = F.one_hot(target, K).float() if target.dim() == 1 else target
    w = torch.ones(K) if weights is None else weights
    for z, p, loss in zip(LOGITS.double().tolist(), soft.tolist(), losses.tolist(), strict=True):
        assert loss == pytest.approx(sum(w[j].item() * p[j] * softmax_binary(z, j) for j in range(K)), rel=1e-4)
    if target.dim() == 1:
        of_torch = F.binary_cross_entropy(LOGITS.softmax(1), soft, weight=w[target][:, None].expand(N, K))
        torch.testing.assert_close(losses.mean(), of_torch)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_binary_cross_entropy_equals_loops_over_classes(weights):
    target = SOFT.round()
    losses = BinaryCrossEntropy(class_weights=weights)(LOGITS, target)
    w = [1.0] * K if weights is None else weights.tolist()
    for i in range(N):
        total = 0.0
        for j in range(K):
            p = 1 / (1 + math.exp(-LOGITS[i, j].item()))
            total -= w[j] * math.log(p if target[i, j] else 1 - p)
        assert losses[i].item() == pytest.approx(total / sum(w), rel=1e-4)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_mean_of_cross_entropy_is_the_loss_of_torch(weights, smoothing):
    ours = CrossEntropy(class_weights=weights, label_smoothing=smoothing)(LOGITS, TARGET).mean()
    torch.testing.assert_close(ours, F.cross_entropy(LOGITS, TARGET, weights, label_smoothing=smoothing))


def test_mean_of_binary_cross_entropy_is_the_loss_of_torch():
    ours = BinaryCrossEntropy()(LOGITS, SOFT).mean()
    torch.testing.assert_close(ours, F.binary_cross_entropy_with_logits(LOGITS, SOFT))


@pytest.mark.parametrize("name", ["cross-entropy", "balanced-softmax", "focal", "softmax-binary"])
def test_one_hot_target_and_its_label_have_one_loss(name):
    criterion = make(name, class_weights=WEIGHTS)
    one_hot = F.one_hot(TARGET, K).float()
    torch.testing.assert_close(criterion(LOGITS, one_hot), criterion(LOGITS, TARGET))


@pytest.mark.parametrize("name", CRITERIA)
def test_doubled_batch_has_the_mean_loss_of_the_single_one(name):
    criterion, target = make(name, class_weights=WEIGHTS), target_for(name)
    twice = criterion(torch.cat([LOGITS, LOGITS]), torch.cat([target, target]))
    torch.testing.assert_close(twice[:N], twice[N:])
    torch.testing.assert_close(twice.mean(), criterion(LOGITS, target).mean())


@pytest.mark.parametrize("name", CRITERIA)
def test_class_weights_count_from_the_deferred_epoch_on(name):
    criterion, plain = make(name, class_weights=WEIGHTS, reweight_epoch=3), make(name)
    weighted, target = make(name, class_weights=WEIGHTS), target_for(name)
    for epoch in range(3):
        criterion.set_epoch(epoch)
        torch.testing.assert_close(criterion(LOGITS, target), plain(LOGITS, target))
    criterion.set_epoch(3)
    torch.testing.assert_close(criterion(LOGITS, target), weighted(LOGITS, target))
    assert not torch.allclose(weighted(LOGITS, target), plain(LOGITS, target))


@pytest.mark.parametrize("name", CRITERIA)
def test_nothing_of_a_criterion_is_saved_with_the_model(name):
    assert make(name, class_weights=WEIGHTS).state_dict() == {}


@pytest.mark.parametrize("name", CRITERIA)
def test_gradient_equals_finite_differences(name):
    logits = (LOGITS / 10).double().requires_grad_()
    criterion = make(name, class_weights=WEIGHTS)
    # the counts are float32 buffers, hence float64 copies of them
    assert torch.autograd.gradcheck(lambda z: criterion.double()(z, target_for(name)), logits)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", CRITERIA)
def test_half_precision_logits_give_float32_losses(name, dtype):
    losses = make(name, class_weights=WEIGHTS)(LOGITS.to(dtype), target_for(name))
    assert losses.dtype == torch.float32
    assert losses.isfinite().all()


@pytest.mark.parametrize("name", CRITERIA)
def test_extreme_logits_give_finite_losses_and_gradients(name):
    logits = torch.tensor([[1e3, -1e3, 0.0, 0.0], [-1e3, 1e3, 0.0, 0.0]], requires_grad=True)
    target = torch.tensor([0, 0])
    target = F.one_hot(target, K).float() if name == "binary-cross-entropy" else target
    losses = make(name)(logits, target)
    losses.sum().backward()
    assert losses.isfinite().all()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_gradient_is_finite_where_the_true_class_has_probability_one(gamma):
    logits = torch.tensor([[200.0, 0.0]], requires_grad=True)
    FocalLoss(gamma=gamma)(logits, torch.tensor([0])).sum().backward()
    assert logits.grad.isfinite().all()


def test_focal_loss_with_gamma_zero_is_cross_entropy():
    torch.testing.assert_close(FocalLoss(gamma=0.0)(LOGITS, TARGET), CrossEntropy()(LOGITS, TARGET))


@pytest.mark.parametrize("name", ["balanced-softmax", "ldam"])
def test_evaluation_judges_the_logits_without_prior_or_margin(name):
    criterion = make(name).eval()
    torch.testing.assert_close(criterion(LOGITS, TARGET), CrossEntropy()(LOGITS, TARGET))


@pytest.mark.parametrize("scale", [1.0, 16.0, 30.0])
def test_ldam_margin_is_a_distance_between_cosines_whatever_the_scale_of_the_head(scale):
    criterion = LDAM(counts=COUNTS, scale=scale)
    cosine = F.normalize(LOGITS)
    shifted = cosine - F.one_hot(TARGET, K) * criterion.margins
    torch.testing.assert_close(criterion(scale * cosine, TARGET), CrossEntropy()(scale * shifted, TARGET))


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(1, 10_000), min_size=2, max_size=8))
def test_rarer_classes_have_wider_margins_and_the_widest_is_max_margin(counts):
    margins = LDAM(counts=torch.tensor(counts), max_margin=0.7).margins
    assert margins.max().item() == pytest.approx(0.7)
    order = torch.tensor(counts).argsort()
    assert (margins[order].diff() <= 0).all()


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 50), st.integers(2, 6), st.integers(0, 10_000))
def test_equal_counts_make_balanced_softmax_cross_entropy(count, num_classes, seed):
    logits = torch.randn(5, num_classes, generator=torch.Generator().manual_seed(seed))
    target = torch.arange(5) % num_classes
    balanced_loss = BalancedSoftmax(counts=torch.full((num_classes,), count))(logits, target)
    torch.testing.assert_close(balanced_loss, CrossEntropy()(logits, target))


@pytest.mark.parametrize("name", CRITERIA)
def test_undoubled_target_is_named_with_both_numbers_and_the_way_out(name):
    with pytest.raises(InvalidInput, match=r"14 rows but `target` has 7.*streams\.tile\(target, like=logits\)"):
        make(name)(torch.cat([LOGITS, LOGITS]), target_for(name))


@pytest.mark.parametrize("name", CRITERIA)
def test_other_row_numbers_are_named_without_guessing(name):
    with pytest.raises(InvalidInput, match="7 rows but `target` has 5; every row needs one target"):
        make(name)(LOGITS, target_for(name)[:5])


@pytest.mark.parametrize("name", CRITERIA)
def test_empty_batch_is_refused(name):
    with pytest.raises(InvalidInput, match="no rows"):
        make(name)(LOGITS[:0], target_for(name)[:0])


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (TARGET.int(), r"dtype torch\.int32; labels are torch\.int64"),
        (TARGET + 2, r"label 5 is out of range: `logits` has 4 classes"),
        (TARGET - 1, r"label -1 is out of range"),
        (TARGET[:, None], r"shape \[N\], not \[7, 1\]"),
        (SOFT[:, :3], r"\[7, 4\] as `logits`, not \[7, 3\]"),
        (TARGET.float(), r"\[7, 4\] as `logits`, not \[7\]"),
    ],
)
def test_wrong_target_ends_in_a_sentence(target, message):
    with pytest.raises(InvalidInput, match=message):
        CrossEntropy()(LOGITS, target)


def test_ldam_refuses_soft_targets_and_says_what_to_do():
    with pytest.raises(InvalidInput, match="soft targets: switch mixup and cutmix off"):
        make("ldam")(LOGITS, SOFT)


def test_binary_cross_entropy_refuses_labels():
    with pytest.raises(InvalidInput, match=r"multi-hot, \[N, K\].*cross-entropy"):
        BinaryCrossEntropy()(LOGITS, TARGET)
    with pytest.raises(InvalidInput, match=r"not \[7, 3\]"):
        BinaryCrossEntropy()(LOGITS, SOFT[:, :3])


@pytest.mark.parametrize("criterion", [BalancedSoftmax, LDAM])
def test_class_without_training_images_is_refused(criterion):
    with pytest.raises(InvalidInput, match=r"class 1 has 0 training images"):
        criterion(counts=torch.tensor([3, 0]))


def test_numbers_for_another_number_of_classes_are_refused():
    with pytest.raises(InvalidInput, match="`class_weights` has 3 classes but `logits` has 4"):
        CrossEntropy(class_weights=torch.ones(3))(LOGITS, TARGET)
    for criterion in (BalancedSoftmax, LDAM):
        with pytest.raises(InvalidInput, match="`counts` has 2 classes but `logits` has 4"):
            criterion(counts=torch.tensor([3, 1]))(LOGITS, TARGET)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: CrossEntropy(label_smoothing=1.5), r"label_smoothing` \(1\.5\)"),
        (lambda: FocalLoss(gamma=-1.0), r"gamma` \(-1\.0\)"),
        (lambda: LDAM(counts=COUNTS, scale=0.0), r"scale` \(0\.0\)"),
        (lambda: CrossEntropy(reweight_epoch=3), r"reweight_epoch` \(3\) has no effect without class weights"),
        (lambda: CrossEntropy(class_weights=torch.tensor([1.0, 0.0])), r"class_weights` must be positive"),
    ],
)
def test_meaningless_options_are_refused(build, message):
    with pytest.raises(InvalidInput, match=message):
        build()
