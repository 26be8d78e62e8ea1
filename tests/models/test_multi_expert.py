"""Networks of several experts, the relation on each, and routing, against plain loops."""

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from setwise.build import build_task
from setwise.data import Batch
from setwise.errors import InvalidInput
from setwise.losses import ExpertAssignmentLoss, assignment_loss, assignment_target
from setwise.models import (
    CosineClassifier,
    ExpertAssignment,
    ExpertHead,
    MultiExpertCifarResNet,
    create_backbone,
    create_head,
    route,
    split_experts,
)
from setwise.nn import BatchFormer, ExpertBatchFormer, record_attention
from setwise.recipes import RECIPES
from setwise.tasks import Classification

E = 3
FEW = (8, 16, 24, 32)
TINY = {"depth": 1, "width": 4, "num_classes": 0}


def test_widths_are_those_of_the_official_code():
    model = MultiExpertCifarResNet(num_experts=E, num_classes=0)
    widths = [[stage[-1].bn2.num_features for stage in expert] for expert in model.experts]
    assert widths == [[24, 48]] * E
    assert model.head_hidden_size == E * 48


def test_experts_share_the_stem_and_nothing_else():
    model = MultiExpertCifarResNet(num_experts=E, **TINY).eval()
    x = torch.randn(2, 3, 16, 16)
    before = split_experts(model(x), num_experts=E)
    assert not torch.allclose(before[:, 0], before[:, 1])
    with torch.no_grad():
        model.experts[1][0][0].conv1.weight.mul_(2)
    after = split_experts(model(x), num_experts=E)
    assert torch.equal(after[:, 0], before[:, 0])
    assert not torch.equal(after[:, 1], before[:, 1])
    with torch.no_grad():
        model.conv1.weight.mul_(-1)
    assert not any(torch.equal(model(x).chunk(E, 1)[e], after[:, e]) for e in range(E))


@pytest.mark.parametrize(
    ("name", "width", "planes"),
    [("ride_resnet10", 384, 192), ("ride_resnet50", 1536, 192), ("ride_resnext50_32x4d", 1536, 384)],
)
def test_widths_at_224_pixels_are_those_of_the_official_code(name, width, planes):
    with torch.device("meta"):
        model = create_backbone(name)
        assert model(torch.zeros(2, 3, 224, 224)).shape == (2, E * width)
    assert [expert[0][0].conv1.out_channels for expert in model.experts] == [planes] * E
    assert model.stem[-1][0].conv1.out_channels in (128, 256)  # shared stages keep the width of the plain network


def test_one_expert_of_full_width_is_timms_resnet():
    plain = timm.create_model("resnet10t", num_classes=0, stem_type="", stem_width=64, avg_down=False, channels=FEW)
    single = create_backbone("ride_resnet10", options={"num_experts": 1, "channels": FEW})
    names = zip(plain.state_dict(), single.state_dict(), strict=True)
    single.load_state_dict({own: plain.state_dict()[name] for name, own in names})
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(single.eval()(x), plain.eval()(x))


def test_one_expert_of_the_same_widths_is_a_resnet():
    from setwise.models import CifarResNet

    plain = CifarResNet(depth=1, width=4, num_classes=0).eval()
    single = MultiExpertCifarResNet(num_experts=1, expert_widths=(8, 16), **TINY).eval()
    state = {
        n.replace("layer2", "experts.0.0").replace("layer3", "experts.0.1"): v for n, v in plain.state_dict().items()
    }
    single.load_state_dict(state)
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(single(x), plain(x))


def test_the_head_scores_each_expert_by_itself_and_ships_their_mean():
    head = create_head("cosine", E * 5, 4, scale=30.0, num_experts=E)
    assert isinstance(head, ExpertHead)
    assert {type(m) for m in head.classifiers} == {CosineClassifier}
    x = torch.randn(6, E * 5)
    expected = torch.stack([head.classifiers[e](x[:, 5 * e : 5 * e + 5]) for e in range(E)], 1)
    torch.testing.assert_close(head(x), expected)
    torch.testing.assert_close(head.eval()(x), expected.mean(1))


def relation_of(**options):
    torch.manual_seed(0)
    return ExpertBatchFormer(6, num_experts=E, **({"num_heads": 1, "dropout": 0.0} | options))


def test_one_shared_layer_relates_expert_by_expert():
    relation, x = relation_of().train(), torch.randn(8, E * 6)
    single = BatchFormer(6, num_heads=1, dropout=0.0).train()
    single.load_state_dict(relation.state_dict())
    out = relation(x)
    assert torch.equal(out[:8], x)
    for e in range(E):
        part = slice(6 * e, 6 * e + 6)
        torch.testing.assert_close(out[:, part], single(x[:, part]))


def test_no_expert_sees_another_and_every_sample_sees_the_batch():
    relation, x = relation_of().train(), torch.randn(8, E * 6, requires_grad=True)
    gradient = torch.autograd.grad(relation(x)[8, :6].square().sum(), x)[0]
    assert gradient[:, :6].any(1).all()
    assert not gradient[:, 6:].any()


def test_the_order_of_the_samples_does_not_matter():
    relation, x, order = relation_of().train(), torch.randn(8, E * 6), torch.randperm(8)
    torch.testing.assert_close(relation(x[order])[8:], relation(x)[8:][order])


def test_in_evaluation_the_features_come_back_and_relating_is_by_expert():
    relation, x = relation_of().eval(), torch.randn(8, E * 6)
    assert relation(x) is x
    with record_attention(relation) as maps:
        relation(x)
    assert [m.shape for m in maps[""]] == [(1, 8, 8)] * E


def test_a_mask_holds_for_every_expert():
    relation, x = relation_of().train(), torch.randn(8, E * 6)
    itself = torch.eye(8, dtype=torch.bool)
    torch.testing.assert_close(relation(x, itself)[8:10], relation(x[:2], itself[:2, :2])[2:])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MultiExpertCifarResNet(num_experts=0), "`num_experts` must be at least 1"),
        (lambda: ExpertBatchFormer(6, num_experts=0), "`num_experts` must be at least 1"),
        (lambda: ExpertBatchFormer(6, num_experts=2, memory=9), r"`memory` \(9\) cannot hold"),
        (lambda: relation_of()(torch.randn(8, 12)), r"must be \[B, 3 \* 6\].*\[8, 12\]"),
        (lambda: split_experts(torch.randn(2, 7), num_experts=3), "width 7 cannot be those of 3 experts"),
        (lambda: ExpertAssignment(6, num_experts=1, num_classes=4), r"at least 2 `num_experts` \(1\)"),
        (lambda: ExpertAssignment(6, num_experts=3, num_classes=4, top_k=0), r"`top_k` of at least 1 \(0\)"),
        (lambda: route(torch.randn(2, 3, 4), torch.randn(2, 3)), r"must be \[B, E - 1\].*\[2, 3\]"),
        (lambda: route(torch.randn(0, 3, 4), torch.randn(0, 2)), "at least one image"),
    ],
)
def test_what_does_not_fit_is_refused(unchecked, make, message):
    with pytest.raises(InvalidInput, match=message):
        make()


def routed_oracle(logits, scores):
    """One image at a time: ask the next expert while the sigmoid of going on is above one half."""
    outcome = []
    for of_image, going_on in zip(logits.tolist(), scores.tolist(), strict=True):
        used = 1
        while used < len(of_image) and 1 / (1 + torch.tensor(-going_on[used - 1]).exp().item()) > 0.5:
            used += 1
        asked = of_image[:used]
        outcome.append((used, [sum(column) / used for column in zip(*asked, strict=True)]))
    return outcome


@given(st.integers(1, 5), st.integers(1, 6), st.integers(0, 999))
def test_routing_equals_a_loop_over_images(experts, images, seed):
    generator = torch.Generator().manual_seed(seed)
    logits, scores = (torch.randn(images, *shape, generator=generator) for shape in ((experts, 4), (experts - 1,)))
    routed, expected = route(logits, scores), routed_oracle(logits, scores)
    assert routed.used.tolist() == [used for used, _ in expected]
    torch.testing.assert_close(routed.logits, torch.tensor([mean for _, mean in expected]))
    assert routed.mean_used == pytest.approx(sum(used for used, _ in expected) / images)


def test_a_score_of_one_half_stops():
    assert route(torch.randn(1, 3, 4), torch.zeros(1, 2)).used.tolist() == [1]


@given(st.integers(2, 5), st.integers(0, 999))
def test_an_image_should_go_on_where_it_is_wrong_and_will_be_right(experts, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(6, experts, 3, generator=generator)
    target = torch.randint(3, (6,), generator=generator)
    got = assignment_target(logits, target)
    for i in range(6):
        right = [int(logits[i, : e + 1].mean(0).argmax()) == int(target[i]) for e in range(experts)]
        for step in range(experts - 1):
            assert bool(got[i, step]) == (not right[step] and any(right[step + 1 :]))


def test_the_loss_of_going_on_weighs_those_who_should_a_hundredfold():
    generator = torch.Generator().manual_seed(3)
    logits, target = torch.randn(6, E, 3, generator=generator), torch.arange(6) % 3
    scores = torch.randn(6, E - 1, generator=generator)
    wanted = assignment_target(logits, target)
    assert wanted.any()
    rare = torch.tensor([1.0, 1.0, 4.0])
    weighted = ExpertAssignmentLoss(class_weights=rare).decided(scores, logits, target)
    share = rare[target] / rare[target].mean()
    torch.testing.assert_close(weighted, assignment_loss(scores, logits, target) * share)
    for i, loss in enumerate(assignment_loss(scores, logits, target)):
        total = 0.0
        for step in range(E - 1):
            p = scores[i, step].sigmoid().item()
            p = p if wanted[i, step] else 1 - p
            total -= (100 if wanted[i, step] else 1) * torch.tensor(p).log().item()
        assert loss.item() == pytest.approx(total / (E - 1), rel=1e-4)


def test_the_routing_network_sees_the_experts_so_far_and_no_later_one():
    stop = ExpertAssignment(6, num_experts=E, num_classes=4, top_k=2)
    features, logits = torch.randn(5, E, 6), torch.randn(5, E, 4)
    scores = stop(features, logits)
    for step in range(E - 1):
        feature = features[:, step] / features[:, step].norm(dim=1, keepdim=True)
        hidden = torch.relu(feature @ stop.inward[step].weight.T + stop.inward[step].bias)
        best = logits[:, : step + 1].mean(1).sort(1, descending=True).values[:, :2]
        expected = torch.cat([hidden, best], 1) @ stop.outward.weight.T + stop.outward.bias
        torch.testing.assert_close(scores[:, step : step + 1], expected)


def task_of(**overrides):
    tiny = {"backbone.options": {"depth": 1, "width": 4}, "relation.dropout": 0.0}
    recipe = RECIPES["cifar100-lt-ride"].override(tiny | {n.replace("__", "."): v for n, v in overrides.items()})
    counts = torch.tensor([100, 40, 10, 4])
    names = tuple("abcd")
    return build_task(recipe, counts=counts, group_counts=counts, class_names=names, in_chans=3, image_size=8)


def batch_of(size=12):
    image = torch.randn(size, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return Batch(image, torch.arange(size) % 4, torch.arange(size))


def test_the_step_of_experts_is_the_loss_of_both_streams(monkeypatch):
    monkeypatch.setattr(Classification, "current_epoch", 0)
    task, batch = task_of().train(), batch_of()
    z = task.backbone(batch.image)
    logits = task.head(task.relation(z))
    assert logits.shape == (24, E, 4)
    expected = task.criterion(logits, batch.target.repeat(2)).mean()
    loss = task.training_step(batch, 0)
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-4)
    loss.backward()
    assert [n for n, p in task.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_predictions_of_experts_do_not_need_the_relation():
    task, batch = task_of().eval(), batch_of()
    scores = task(batch.image)
    assert scores.shape == (12, 4)
    assert torch.equal(scores, task.plain().eval()(batch.image))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"criterion__name": "cross-entropy", "criterion__diversity": 0.2}, r"go together, but the criterion is cross"),
        ({"backbone__name": "cifar_resnet32"}, r"go together.*cifar_resnet32 has 1"),
        ({"head__name": "lws"}, "Experts take --head.name linear, cosine or routed, not lws"),
        ({"head__name": "routed"}, "routed and --criterion.name expert-assignment go together.*routed and ride"),
        ({"relation__memory": 20}, r"`memory` \(20\) cannot hold"),
    ],
)
def test_recipes_of_experts_that_make_no_sense_are_refused(overrides, message):
    with pytest.raises(InvalidInput, match=message):
        task_of(**overrides)


def test_linear_experts_train_too():
    assert isinstance(task_of(head__name="linear").head.classifiers[0], nn.Linear)
