"""What samples do to each other, against finite differences and plain loops; and what must not change."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from setwise.errors import InvalidInput
from setwise.losses import RIDE, BalancedSoftmax, CrossEntropy
from setwise.metrics import cross_gradients, influence
from setwise.models import create_head
from setwise.nn import BatchFormer, ExpertBatchFormer

C, K = 4, 4
STEP = 1e-5


def parts(**options):
    torch.manual_seed(0)
    relation = BatchFormer(C, num_heads=2, **options).double()
    return relation, nn.Linear(C, K).double()


def batches(*targets):
    draw = torch.Generator().manual_seed(1)
    return [
        (torch.randn(len(target), C, generator=draw, dtype=torch.float64), torch.tensor(target)) for target in targets
    ]


TWO = ([0, 0, 1, 2, 1], [1, 0, 2, 2])
"""Class 3 never comes, and no sample of class 1 meets another one in the second batch."""


def loss_of(relation, head, x, target, sample):
    """Cross-entropy of the related feature of one sample, in numpy."""
    scores = head(relation.relate(torch.tensor(x)))[sample].tolist()
    return math.log(sum(math.exp(score) for score in scores)) - scores[int(target[sample])]


@torch.no_grad()
def differences(relation, head, features, target):
    """Loss by loss and number by number: how much each loss changes when one number of one feature does."""
    relation, size = copy.deepcopy(relation).eval(), len(target)
    found = np.zeros((size, size))
    for i in range(size):
        for j in range(size):
            for c in range(C):
                ends = []
                for step in (STEP, -STEP):
                    x = features.numpy().copy()
                    x[j, c] += step
                    ends.append(loss_of(relation, head, x, target, i))
                found[i, j] += abs(ends[0] - ends[1]) / (2 * STEP) / C
    return found


def test_gradients_are_those_of_finite_differences_averaged_class_by_class_in_loops():
    relation, head = parts()
    per_class, between = [[] for _ in range(K)], {}
    for features, target in batches(*TWO):
        found = differences(relation, head, features, target)
        for i in range(len(target)):
            others = [found[i, j] for j in range(len(target)) if j != i]
            per_class[target[i]].append(sum(others) / len(others))
            for j in range(len(target)):
                if j != i:
                    between.setdefault((int(target[i]), int(target[j])), []).append(found[i, j])
    measured = influence(batches(*TWO), relation=relation, head=head, criterion=CrossEntropy(), num_classes=K)
    assert measured.samples.tolist() == [3, 3, 3, 0]
    for k in range(3):
        assert float(measured.gradient[k]) == pytest.approx(np.mean(per_class[k]), rel=1e-5)
    assert measured.gradient[3].isnan()
    for row in range(K):
        for column in range(K):
            cell = float(measured.gradient_between[row, column])
            if (row, column) in between:
                assert cell == pytest.approx(np.mean(between[row, column]), rel=1e-5)
            else:
                assert math.isnan(cell)


def attention_in_loops(relation, features):
    """Mean over the two heads of the softmax of query times key, sample by sample."""
    attention = relation.layers[0].self_attn
    weight, bias = attention.in_proj_weight.detach().numpy(), attention.in_proj_bias.detach().numpy()
    packed = features.numpy() @ weight.T + bias
    size, width = len(features), C // 2
    found = np.zeros((size, size))
    for head in range(2):
        for i in range(size):
            query = packed[i, head * width : (head + 1) * width]
            keys = [packed[j, C + head * width : C + (head + 1) * width] for j in range(size)]
            scores = [math.exp(query @ key / math.sqrt(width)) for key in keys]
            found[i] += np.array(scores) / sum(scores) / 2
    return found


def test_attention_is_the_sum_of_both_directions_over_twice_the_pairs():
    relation, head = parts()
    sums, pairs = np.zeros((K, K)), np.zeros((K, K))
    for features, target in batches(*TWO):
        weights = attention_in_loops(relation, features)
        for i in range(len(target)):
            for j in range(len(target)):
                sums[target[i], target[j]] += weights[i, j] + weights[j, i]
                pairs[target[i], target[j]] += 2
    measured = influence(batches(*TWO), relation=relation, head=head, criterion=CrossEntropy(), num_classes=K)
    with np.errstate(invalid="ignore"):
        np.testing.assert_allclose(measured.attention.numpy(), sums / pairs, rtol=1e-6)
    assert measured.uniform == pytest.approx((1 / 5 + 1 / 4) / 2)
    assert torch.equal(measured.attention[:3, :3], measured.attention[:3, :3].T)


def test_without_a_relation_no_loss_has_a_gradient_on_another_sample():
    head = nn.Linear(C, K).double()
    ((features, target),) = batches([0, 1, 2])
    found = cross_gradients(lambda x: CrossEntropy()(head(x), target), features)
    assert torch.equal(found, torch.diag(found.diagonal()))
    assert (found.diagonal() > 0).all()


def test_who_attends_to_himself_alone_reaches_nobody():
    relation, head = parts()
    alone = influence(
        batches(*TWO),
        relation=relation,
        head=head,
        criterion=CrossEntropy(),
        num_classes=K,
        mask=lambda target: torch.eye(len(target), dtype=torch.bool),
    )
    assert alone.gradient[:3].tolist() == [0, 0, 0]
    assert alone.attention[0, 1] == 0


def test_the_order_of_a_batch_means_nothing():
    relation, head = parts()
    ((features, target),) = batches(TWO[0])
    order = torch.tensor([3, 0, 4, 2, 1])
    options = {"relation": relation, "head": head, "criterion": CrossEntropy(), "num_classes": K}
    one = influence([(features, target)], **options)
    two = influence([(features[order], target[order])], **options)
    torch.testing.assert_close(one.gradient_between, two.gradient_between, equal_nan=True)
    torch.testing.assert_close(one.attention, two.attention, equal_nan=True)


@pytest.mark.parametrize("training", [False, True])
def test_nothing_is_changed_by_measuring_and_it_gives_the_same_again(training):
    relation, head = parts(memory=6)
    criterion = BalancedSoftmax(counts=torch.tensor([8, 4, 2, 1])).train(training)
    relation.train(training)
    relation.memory.write(torch.randn(3, C))
    before = copy.deepcopy(relation.state_dict())
    options = {"relation": relation, "head": head, "criterion": criterion, "num_classes": K}
    one, two = (influence(batches(*TWO), **options) for _ in range(2))
    assert torch.equal(one.gradient[:3], two.gradient[:3])
    assert (one.gradient[:3] > 0).all()
    assert one.uniform == pytest.approx((1 / 8 + 1 / 7) / 2)
    assert all(torch.equal(value, before[name]) for name, value in relation.state_dict().items())
    assert all(module.training == training for module in (*relation.modules(), criterion))
    assert all(parameter.grad is None for parameter in (*relation.parameters(), *head.parameters()))


def test_a_criterion_has_its_form_of_training_whatever_its_mode():
    relation, head = parts()
    values = [
        influence(
            batches(*TWO),
            relation=relation,
            head=head,
            criterion=BalancedSoftmax(counts=torch.tensor([800, 4, 2, 1])).train(training),
            num_classes=K,
        ).gradient[:3]
        for training in (True, False)
    ]
    assert torch.equal(*values)


def test_experts_and_learned_points_are_measured_too():
    torch.manual_seed(0)
    relation = ExpertBatchFormer(C, num_experts=2, num_heads=1).double()
    head = create_head("cosine", 2 * C, K, scale=30.0, num_experts=2).double()
    criterion = RIDE(counts=torch.tensor([8, 4, 2, 1]))
    data = [(torch.cat([x, -x.flip(0)], 1), target) for x, target in batches(*TWO)]
    found = influence(data, relation=relation, head=head, criterion=criterion, num_classes=K)
    assert (found.gradient[:3] > 0).all()
    assert found.attention[:3, :3].isfinite().all()
    relation, head = parts(num_inducing=3)
    found = influence(batches(*TWO), relation=relation, head=head, criterion=CrossEntropy(), num_classes=K)
    assert (found.gradient[:3] > 0).all()
    assert found.attention is None


@pytest.mark.parametrize(
    ("data", "relation", "message"),
    [
        ([], None, "There is no batch"),
        (batches([0]), None, "of two samples or more, but features have shape"),
        ([(torch.zeros(3, C).double(), torch.zeros(3, K))], None, r"one label a sample \[B\]"),
        (batches([0, 1, 4]), None, r"Labels must be in 0\.\.3"),
        (batches([0, -1, 2]), None, "from -1 to 2"),
        (batches([0, 1, 2]), nn.Identity(), "must return both streams, 6 rows, but it returned 3"),
    ],
)
def test_bad_input_is_a_sentence(unchecked, data, relation, message):
    made, head = parts()
    with pytest.raises(InvalidInput, match=message):
        influence(data, relation=relation or made, head=head, criterion=CrossEntropy(), num_classes=K)


def test_one_loss_for_all_samples_is_refused():
    with pytest.raises(InvalidInput, match="one loss for each of the 3 samples"):
        cross_gradients(lambda x: x.sum(), torch.zeros(3, C))
