"""The classification task: what the paper's step is, and what happens at test."""

import copy
import warnings

import pytest
import torch
from torch import nn

from setwise.build import build_task
from setwise.data import Batch
from setwise.errors import InvalidInput
from setwise.losses import CrossEntropy
from setwise.nn import streams
from setwise.recipes import RECIPES
from setwise.tasks import Classification

NUM_CLASSES, SIZE = 10, 8
COUNTS = torch.tensor([100, 65, 42, 27, 18, 11, 7, 5, 3, 2])
TINY = {"backbone.options": {"width": 4}, "relation.dropout": 0.0}


def make(teacher=None, **overrides):
    recipe = RECIPES["digits-lt"].override(TINY | {name.replace("__", "."): v for name, v in overrides.items()})
    return build_task(
        recipe,
        counts=COUNTS,
        group_counts=COUNTS,
        class_names=tuple("abcdefghij"),
        in_chans=1,
        image_size=SIZE,
        teacher=teacher,
        say=lambda text: None,
    )


def make_batch(size=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(size, 1, SIZE, SIZE, generator=generator)
    return Batch(image, torch.arange(size) % NUM_CLASSES, torch.arange(size))


def predict(task, batch, number=None):
    return task(batch.image[:number])


def step(task, batch):
    """One training step outside a trainer."""
    return Classification.training_step(task, batch, 0)


@pytest.fixture(autouse=True)
def without_trainer(monkeypatch):
    monkeypatch.setattr(Classification, "current_epoch", 0)


def test_micro_batches_change_nothing_but_what_batch_norm_sees():
    whole, micro = make(), make(data__micro_batch=5)
    for task in (whole, micro):
        task.train()
        task.backbone.eval()  # BatchNorm by its running statistics
        step(task, make_batch()).backward()
    for (name, expected), parameter in zip(whole.named_parameters(), micro.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, expected.grad, rtol=1e-5, atol=1e-6, msg=name)


def test_predictions_do_not_change_when_the_relation_is_removed():
    task, batch = make().eval(), make_batch()
    assert torch.equal(task(batch.image), task.plain().eval()(batch.image))
    task.relation = None
    assert torch.equal(task(batch.image), task.plain()(batch.image))


def test_the_step_is_the_papers_formula():
    task, batch = make().train(), make_batch()
    got = step(copy.deepcopy(task), batch)
    z = task.backbone(batch.image)
    related = task.relation.layers[0](z)
    logits = task.head(torch.cat([z, related]))
    expected = nn.functional.cross_entropy(logits, torch.cat([batch.target, batch.target]))
    torch.testing.assert_close(got, expected)


def test_related_weight_weighs_the_two_streams():
    batch = make_batch()
    task = make().train()
    logits = task.head(task.relation(task.backbone(batch.image)))
    plain, related = streams.split(CrossEntropy()(logits, streams.tile(batch.target, like=logits)), like=batch.target)
    for weight in (0.0, 0.5, 2.0):
        got = step(make(relation__related_weight=weight).train(), batch)
        torch.testing.assert_close(got, (plain.mean() + weight * related.mean()) / (1 + weight))


def test_official_losses_are_what_the_official_code_adds_up():
    batch = make_batch()
    task = make().train()
    logits = task.head(task.relation(task.backbone(batch.image)))
    losses = CrossEntropy()(logits, streams.tile(batch.target, like=logits))
    plain, related = streams.split(losses, like=batch.target)
    expected = {
        "triple_loss": related.mean() + plain.mean() + losses.mean(),
        "small_related": 0.01 * (related.mean() + plain.mean()) + plain.mean(),
        "replace": related.mean(),
    }
    for name, value in expected.items():
        got = step(make(**{f"relation__official_{name}": True}).train(), batch)
        torch.testing.assert_close(got, value, msg=name)


def test_replaced_features_are_all_that_the_head_is_trained_on():
    task, batch = make(relation__official_replace=True), make_batch()
    rows = []
    task.head.register_forward_hook(lambda head, args, out: rows.append(len(out)))
    step(task.train(), batch).backward()
    assert rows == [len(batch.target)]
    assert set(task._curves) == {"train/related_loss", "train/related_accuracy"}
    assert all(p.grad is not None for p in task.parameters())
    alone = make(relation__official_replace=True, relation__name="none")
    torch.testing.assert_close(step(alone.train(), batch), step(make(relation__name="none").train(), batch))


@pytest.mark.parametrize("official", ["official_replace", "official_sum"])
@pytest.mark.parametrize("attend", ["all", "same-class"])
def test_replicas_relate_their_own_part_of_the_batch(official, attend):
    options = {"relation__dropout": 0.0, "relation__attend": attend, f"relation__{official}": True}
    task, batch = make(relation__official_replicas=3, **options).train(), make_batch(8)
    z = torch.randn(8, task.head.in_features)
    rows = task._related(z, batch.target, 0)
    parts = [[0, 1, 2], [3, 4, 5], [6, 7]]  # as torch.chunk, and with it DataParallel, cuts a batch
    whole = make(**options).train()
    related = [whole._related(z[part], batch.target[part], 0)[-len(part) :] for part in parts]
    torch.testing.assert_close(rows[-8:], torch.cat(related))
    assert len(rows) == (8 if official == "official_replace" else 16)
    for other in ({"relation__memory": 9}, {"relation__relate_at_test": True}, {"relation__gather": True}):
        with pytest.raises(InvalidInput, match=r"`relation\.official_replicas` \(2\) makes the set .* smaller"):
            make(relation__official_replicas=2, **other)


def test_the_official_sum_is_the_loss_of_the_related_stream_and_that_of_the_plain_one():
    batch = make_batch()
    task = make(relation__official_sum=True).train()
    logits = copy.deepcopy(task).head(copy.deepcopy(task)._related(task.backbone(batch.image), batch.target, 0))
    plain, related = (nn.functional.cross_entropy(part, batch.target) for part in (logits[:12], logits[12:]))
    torch.testing.assert_close(step(task, batch), related + plain)


def test_all_variants_of_a_seed_start_from_the_same_backbone_and_head():
    plain, related = make(relation__name="none"), make()
    control = make(relation__attend="self")
    for name, value in plain.state_dict().items():
        assert torch.equal(value, related.state_dict()[name])
        assert torch.equal(value, control.state_dict()[name])
    for name, value in control.state_dict().items():
        assert torch.equal(value, related.state_dict()[name])


def test_the_control_gives_query_and_key_no_gradient():
    task = make(relation__attend="self").train()
    step(task, make_batch()).backward()
    gradient = task.relation.layers[0].self_attn.in_proj_weight.grad
    dim = gradient.shape[1]
    assert not gradient[: 2 * dim].any()
    assert gradient[2 * dim :].any()


def test_a_related_sample_of_the_control_depends_on_itself_alone():
    batch = make_batch()
    changed = batch.image.clone()
    changed[1:] += 1
    task = make(relation__attend="self").train()
    task.backbone.eval()  # batch norm of the training mode would mix the samples
    mask = task._mask(batch.target, 0)
    rows = [task.relation(task.backbone(image), mask) for image in (batch.image, changed)]
    torch.testing.assert_close(rows[0][12], rows[1][12])
    assert not torch.allclose(rows[0][13], rows[1][13])


@pytest.mark.parametrize("rank", [0, 1])
def test_the_mask_of_a_gathered_set_has_the_rows_of_this_process(monkeypatch, rank):
    target = make_batch().target
    both = [target.flip(0), target] if rank else [target, target.flip(0)]
    monkeypatch.setattr("setwise.tasks.classification.gather_set", lambda mine: torch.cat(both))
    monkeypatch.setattr("setwise.tasks.classification.place", lambda: (rank, 2))

    def mask(attend):
        return make(relation__attend=attend, relation__gather=True)._mask(target, 0)

    assert torch.equal(mask("self"), torch.eye(24, dtype=torch.bool)[12 * rank : 12 * rank + 12])
    assert torch.equal(mask("same-class"), target[:, None] == torch.cat(both))


def test_dropout_is_keyed_by_seed_epoch_and_step(monkeypatch):
    batch, task = make_batch(), make(relation__dropout=0.5).train()

    def drawn(step=3, seed=0, epoch=0):
        torch.manual_seed(step * 17 + 1)  # whatever was drawn before
        task.seed = seed
        monkeypatch.setattr(Classification, "current_epoch", epoch)
        task.on_train_batch_start(batch, step)
        return task.relation(torch.ones(12, 16))

    assert torch.equal(drawn(), drawn())
    for other in ({"step": 4}, {"seed": 1}, {"epoch": 1}):
        assert not torch.equal(drawn(), drawn(**other)), other
    task.attend = "shuffled"
    masks = [task._mask(batch.target, step) for step in (3, 3, 4)]
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])


def test_transductive_prediction_relates_the_test_batch():
    batch = make_batch()
    task = make(relation__relate_at_test=True).eval()
    plain = make().eval()
    assert not torch.allclose(task(batch.image), plain(batch.image))
    assert not torch.allclose(task(batch.image)[:3], task(batch.image[:3]))


def test_a_transductive_control_still_sees_itself_alone():
    batch = make_batch()
    control = make(relation__relate_at_test=True, relation__attend="self").eval()
    torch.testing.assert_close(control(batch.image)[:3], control(batch.image[:3]))


def test_with_a_memory_a_prediction_at_test_does_not_depend_on_the_other_images():
    task, batch = make(relation__relate_at_test=True, relation__memory=30), make_batch()
    plain = make().eval()
    for seed in (1, 2):
        step(task.train(), make_batch(seed=seed))
    task.backbone.load_state_dict(plain.backbone.state_dict())  # the steps above moved BatchNorm's statistics
    task.eval()
    assert not torch.allclose(task(batch.image), plain(batch.image))
    torch.testing.assert_close(task(batch.image)[:3], task(batch.image[:3]))


@pytest.mark.parametrize("attend", ["self", "same-class", "shuffled"])
def test_a_memory_does_not_go_with_a_choice_of_neighbours(attend):
    with pytest.raises(InvalidInput, match=r"which nothing says of a memory: leave out relation\.memory"):
        make(relation__memory=30, relation__attend=attend)


def test_the_control_has_no_memory_of_others():
    recipe = RECIPES["digits-lt"].override({"relation.memory": 30, "relation.num_inducing": 8})
    control = recipe.as_variant("control").relation
    assert (control.memory, control.num_inducing, control.attend) == (0, 8, "self")


@pytest.mark.parametrize("attend", ["same-class", "other-class", "shuffled"])
def test_labels_cannot_choose_neighbours_at_test(attend):
    with pytest.raises(InvalidInput, match="chooses neighbours by their labels, which a test has not"):
        make(relation__relate_at_test=True, relation__attend=attend)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"criterion__gamma": 5.0}, r"has no option `criterion\.gamma` \(5\.0\)"),
        ({"criterion__class_weights": "auto", "criterion__name": "nonsense"}, "There is no criterion 'nonsense'"),
        ({"head__scale": 16.0}, "is the cosine head's"),
        ({"data__multi_label": True}, "need --criterion.name binary-cross-entropy and --primary"),
        ({"trainer__epochs": 0}, r"`trainer\.epochs` must be at least 1, but it is 0"),
        ({"trainer__val_every": 0}, r"`trainer\.val_every` must be at least 1"),
        ({"relation__official_replace": True, "relation__related_weight": 2.0}, "are ways to weigh the streams"),
        ({"relation__official_triple_loss": True, "relation__official_replace": True}, "are ways to weigh"),
        ({"optimizer__official_squared_lr": True, "optimizer__schedule": "constant"}, "are of cosine schedules"),
        ({"head__max_norm": 0.0}, r"`head\.max_norm` \(0\) is the longest class weight.*above 0"),
        ({"head__max_norm_share": 0.1}, r"`head\.max_norm_share` \(0\.1\) is a place.*add --head\.from-weights"),
        ({"head__max_norm_share": 0.1, "head__max_norm": 1.0, "head__from_weights": True}, "take one"),
        ({"head__max_norm": 1.0, "head__name": "cosine"}, r"the longest class weight of --head\.name linear"),
        ({"relation__related_weight": -1.0}, r"`relation\.related_weight` must be at least 0"),
        ({"optimizer__schedule": "multistep"}, r"--optimizer\.schedule multistep needs `optimizer\.milestones`"),
        (
            {"optimizer__lr": -0.1, "optimizer__official_squared_lr": True},
            r"`optimizer\.lr` must be at least 0, but it is -0\.1",
        ),
        ({"criterion__teacher_temperature": 0.0, "criterion__teacher": "x"}, r"must be above 0, but it is 0"),
        ({"data__sampler": "class-aware", "data__mixup": 1.0}, "four images of a class in a row"),
        ({"head__dim_key": 3}, r"are of --head\.name cross-transformer"),
        ({"trainer__select": "best", "trainer__epochs": 3}, "needs validation, but there is none in 3 epochs"),
    ],
)
def test_settings_without_effect_or_sense_are_refused(overrides, message):
    with pytest.raises(ValueError, match=message):
        make(**overrides)


def test_soft_targets_are_tiled_like_labels():
    batch = make_batch()
    soft = nn.functional.one_hot(batch.target, NUM_CLASSES).float()
    torch.testing.assert_close(step(make().train(), batch), step(make().train(), batch._replace(target=soft)))


def test_several_labels_a_sample_train_and_evaluate():
    target = torch.zeros(12, NUM_CLASSES)
    target[torch.arange(12), torch.arange(12) % NUM_CLASSES] = 1
    target[::3, 0] = 1
    task = make(criterion__name="binary-cross-entropy", data__multi_label=True).train()
    batch = make_batch()._replace(target=target)
    assert torch.isfinite(step(task, batch))
    metrics = task.eval().metrics(task(batch.image).detach(), target, tau=0.0)
    assert 0 <= metrics["mean_average_precision"] <= 1


def test_a_batch_of_one_class_is_warned_about_once():
    task, batch = make().train(), make_batch()
    one_class = batch._replace(target=torch.zeros(12, dtype=torch.long))
    with pytest.warns(UserWarning, match="All 12 samples of the first batch are of class 0"):
        step(task, one_class)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step(task, one_class)


def test_an_undoubled_target_is_a_sentence_and_not_a_wrong_loss():
    task, batch = make().train(), make_batch()
    logits = task.head(task.relation(task.backbone(batch.image)))
    with pytest.raises(InvalidInput, match=r"24.*12.*streams\.tile|12.*24.*streams\.tile"):
        task.criterion(logits, batch.target)


@pytest.mark.parametrize("attend", ["all", "same-class", "other-class", "shuffled", "uniform"])
def test_every_kind_of_neighbour_trains(attend):
    task = make(relation__attend=attend).train()
    loss = step(task, make_batch())
    loss.backward()
    assert torch.isfinite(loss)
