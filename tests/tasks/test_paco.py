"""PaCo as it is trained: the step against loops, where the relation stands in it, and what is left at test."""

import copy
import math

import pytest
import test_classification
import torch
from test_classification import COUNTS

from setwise.data import BatchOfViews
from setwise.errors import InvalidInput
from setwise.losses import CrossEntropy
from setwise.tasks import Classification

TEMPERATURE, ALPHA, MOMENTUM, QUEUE, DIM = 0.3, 0.2, 0.6, 17, 5
PACO = {
    "criterion.name": "paco",
    "criterion.temperature": TEMPERATURE,
    "criterion.alpha": ALPHA,
    "contrast.dim": DIM,
    "contrast.queue": QUEUE,
    "contrast.momentum": MOMENTUM,
    "data.views": ("shift",),
}
SLOW = ("contrast.slow_encoder.", "contrast.slow_project.")
"""What follows the encoder and has no gradient."""


def make(**overrides):
    return test_classification.make(**PACO, **overrides).train()


def make_batch(seed=0, size=12):
    one, other = (test_classification.make_batch(size, seed=10 * seed + view) for view in range(2))
    return BatchOfViews(*one, (other.image,))


@pytest.fixture(autouse=True)
def without_trainer(monkeypatch):
    monkeypatch.setattr(Classification, "current_epoch", 0)


def step(task, batch):
    return task.training_step(batch, 0)


def move(task, batch, lr=0.5):
    """A step with its update."""
    task.zero_grad()
    step(task, batch).backward()
    with torch.no_grad():
        for parameter in task.parameters():
            if parameter.grad is not None:
                parameter -= lr * parameter.grad


def rows(tensor):
    return tensor.detach().double().tolist()


def projected(features, project):
    """Linear, ReLU, linear, then length 1, in loops."""
    first, _, second = project
    out = []
    for x in rows(features):
        for layer, rectify in ((first, True), (second, False)):
            w, b = rows(layer.weight), rows(layer.bias)
            x = [sum(a * v for a, v in zip(w[i], x, strict=True)) + b[i] for i in range(len(w))]
            x = [max(v, 0.0) for v in x] if rectify else x
        length = math.sqrt(sum(v * v for v in x))
        out.append([v / length for v in x])
    return out


def oracle(scores, query, others, target, others_target):
    """Mean over anchors; each against centres, the other queries, keys and past keys."""
    n, total = COUNTS.tolist(), 0.0
    features, labels = query + others, target + others_target
    for i, label in enumerate(target):
        centres = [z + math.log(n[k] / sum(n) + 1e-9) for k, z in enumerate(scores[i])]
        cosines = {
            j: sum(a * b for a, b in zip(query[i], feature, strict=True)) / TEMPERATURE
            for j, feature in enumerate(features)
            if j != i
        }
        denominator = math.log(sum(map(math.exp, [*centres, *cosines.values()])))
        loss, weight = centres[label] - denominator, 1.0
        for j, cosine in cosines.items():
            if labels[j] == label:
                loss, weight = loss + ALPHA * (cosine - denominator), weight + ALPHA
        total -= loss / weight
    return total / len(target)


@pytest.mark.parametrize("relation", ["batchformer", "none"])
def test_the_whole_step_equals_loops_over_streams_anchors_centres_and_features(relation):
    task, weight = make(relation__name=relation, relation__related_weight=0.7), 0.7
    move(task, make_batch(1))
    move(task, make_batch(2))  # of whose 12 keys the queue of 17 has all, and of the 12 before 5
    batch, before = make_batch(3), copy.deepcopy(task)
    got = step(task, batch)

    slow = before.contrast.slow_encoder
    for leader, follower in ((before.backbone, slow), (before.contrast.project, before.contrast.slow_project)):
        for theirs, mine in zip(leader.parameters(), follower.parameters(), strict=True):
            mine.data = MOMENTUM * mine.data + (1 - MOMENTUM) * theirs.data
    feature = before.backbone(batch.image)
    query, keys = (
        projected(feature, before.contrast.project),
        projected(slow(batch.views[0]), before.contrast.slow_project),
    )
    past, past_target = before.contrast.queue.read()
    assert sorted(past_target.tolist()) == sorted([*make_batch(1).target[-5:].tolist(), *make_batch(2).target.tolist()])
    target = batch.target.tolist()
    compared = (query, keys + rows(past), target, target + past_target.tolist())

    expected = oracle(rows(before.head(feature)), *compared)
    if relation == "batchformer":
        related = oracle(rows(before.head(before.relation.layers[0](feature))), *compared)
        expected = (expected + weight * related) / (1 + weight)
    assert got.item() == pytest.approx(expected, rel=1e-4)


def test_the_plain_arm_is_the_related_one_whose_related_stream_does_not_count():
    plain, weightless = make(relation__name="none"), make(relation__related_weight=0.0)
    for number in range(3):
        torch.testing.assert_close(step(plain, make_batch(number)), step(weightless, make_batch(number)))
        move(plain, make_batch(number))
        move(weightless, make_batch(number))
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(value, weightless.state_dict()[name], msg=name)


def test_plain_control_and_related_arm_compare_the_same_features_in_their_first_step():
    control = {"relation__attend": "self"}
    arms = [make(relation__name="none"), make(relation__dropout=0.5), make(relation__dropout=0.5, **control)]
    for task in arms:
        torch.manual_seed(7)
        step(task, make_batch())
    first, *others = (task.contrast.state_dict() for task in arms)
    for other in others:
        assert all(torch.equal(value, other[name]) for name, value in first.items())


def test_every_parameter_but_the_slow_ones_gets_a_gradient():
    task = make()
    move(task, make_batch())
    task.zero_grad()
    loss = step(task, make_batch(1))
    loss.backward()
    assert torch.isfinite(loss)
    without = [n for n, p in task.named_parameters() if p.grad is None or not p.grad.any()]
    assert without
    assert without == [n for n, _ in task.named_parameters() if n.startswith(SLOW)]


def test_the_optimizer_leaves_the_slow_parts_alone():
    task = make(contrast__momentum=1.0, optimizer__weight_decay=0.1)
    before = {n: p.clone() for n, p in task.named_parameters()}
    optimizer, _ = task.make_optimizer(task, task.relation)
    for seed in range(2):
        optimizer.zero_grad()
        step(task, make_batch(seed)).backward()
        optimizer.step()
    for name, parameter in task.named_parameters():
        assert torch.equal(parameter, before[name]) == name.startswith(SLOW), name


def test_what_ships_has_neither_relation_nor_contrast_and_predicts_the_same():
    task, image = make(), make_batch().image
    move(task, make_batch())
    task.eval()
    scores = task(image)
    assert torch.equal(scores, task.plain().eval()(image))
    torch.testing.assert_close(task(image[:3]), scores[:3])
    task.relation = task.contrast = None
    assert torch.equal(task(image), scores)
    assert {name.split(".")[0] for name in task.plain().state_dict()} == {"backbone", "head"}


def test_a_loaded_task_goes_on_bit_for_bit():
    task, other = make(), make(seed=1)
    for seed in range(3):
        move(task, make_batch(seed))
    other.load_state_dict(task.state_dict())
    assert torch.equal(step(task, make_batch(9)), step(other, make_batch(9)))


def test_micro_batches_and_bfloat16_train():
    for task in (make(data__micro_batch=5), make()):
        with torch.autocast("cpu", torch.bfloat16):
            loss = step(task, make_batch())
        loss.backward()
        assert loss.isfinite()
        assert loss.dtype == torch.float32


def test_only_the_named_parts_and_norms_of_a_backbone_train():
    task = make(backbone__trained=("trunk.6",))
    trained = {name for name, parameter in task.backbone.named_parameters() if parameter.requires_grad}
    norms = {f"trunk.{place}.{kind}" for place in (1, 4, 7) for kind in ("weight", "bias")}
    assert trained == {"trunk.6.weight", *norms}
    step(task, make_batch()).backward()
    assert all(
        (parameter.grad is not None) == (name in trained) for name, parameter in task.backbone.named_parameters()
    )
    assert not any(parameter.requires_grad for parameter in task.contrast.slow_encoder.parameters())


def test_a_batch_of_one_view_is_a_sentence():
    with pytest.raises(InvalidInput, match=r"second view of each image: make_loader\(\.\.\., views=\[\.\.\.\]\)"):
        step(make(), test_classification.make_batch())


def test_the_criterion_and_what_it_compares_go_together():
    task = make()
    arguments = {"optimizer": task.make_optimizer, "counts": COUNTS, "groups": {}}
    for criterion, contrast in ((CrossEntropy(), task.contrast), (task.criterion, None)):
        with pytest.raises(InvalidInput, match="PaCo and `contrast` go together, but the criterion is"):
            Classification(task.backbone, task.head, criterion, contrast=contrast, **arguments)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"data.views": ()}, r"takes one further view .*--data\.views simclr.*`data\.views` are \[\]"),
        ({"data.views": ("shift", "shift")}, r"one further view"),
        ({"data.mixup": 0.8}, r"not mixed.*--data\.mixup 0.*mixup 0\.8"),
        (
            {"criterion.name": "focal", "criterion.temperature": 0.2, "criterion.alpha": 0.05},
            r"`data\.views` are of --criterion\.name paco and glmc.*`contrast` of paco",
        ),
        ({"criterion.name": "focal"}, "`data.views` are of --criterion.name paco"),
        ({"backbone.frozen": True}, "paco trains the backbone, .* not linear on a frozen one"),
        ({"criterion.gamma": 1.0}, r"'paco' has no option `criterion\.gamma`"),
        ({"criterion.alpha": -1.0}, r"`alpha` \(-1\.0\)"),
        ({"contrast.momentum": 2.0}, r"`momentum` \(2\.0\) must be in 0\.\.1"),
        ({"contrast.queue": 0}, r"`size` \(0\)"),
        (
            {"backbone.trained": ("layer4",)},
            r"No weight of this DigitsCNN begins with 'layer4' \(--backbone\.trained\)",
        ),
        ({"backbone.trained": ("trunk",), "backbone.frozen": True, "criterion.name": "focal"}, "`data.views` are"),
    ],
)
def test_what_does_not_go_with_paco_is_a_sentence(overrides, message):
    with pytest.raises(InvalidInput, match=message):
        test_classification.make(**{**PACO, **overrides})


def test_a_backbone_is_not_frozen_and_trained():
    with pytest.raises(InvalidInput, match=r"`backbone\.trained` names parts that train, but --backbone\.frozen"):
        test_classification.make(**{"backbone.trained": ("trunk.6",), "backbone.frozen": True})
