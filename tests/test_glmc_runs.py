"""GLMC's runs: resumed bit for bit, plain and related, evaluated as any classifier's."""

import json

import pytest
import torch
from safetensors.torch import load_file
from surviving import TINY, broken_off, fit, same_weights
from torchvision.transforms import v2

from setwise.build import build_task
from setwise.errors import InvalidInput
from setwise.run import evaluate, load_run
from setwise.run_folder import RunFolder
from setwise.work import make_work

GLMC = TINY.override({"criterion.name": "glmc", "data.views": ("shift",), "trainer.epochs": 3})


def test_a_resumed_run_is_the_unbroken_one_bit_for_bit(tmp_path):
    fit(GLMC, tmp_path / "unbroken")
    broken = broken_off(GLMC, tmp_path / "broken", epoch=2)
    fit(GLMC, broken.path, resume=True)
    assert same_weights(tmp_path / "unbroken", broken.path)
    saved = load_file(RunFolder(broken.path).weights)
    assert {"beside.weight", "project.weight", "predict.weight"} <= saved.keys()
    metrics, _ = evaluate(broken.path)
    assert metrics == json.loads(RunFolder(broken.path).results.read_text())["metrics"]
    _, task, _ = load_run(broken.path)
    assert not [name for name, _ in task.plain().named_parameters() if "beside" in name]


def test_mixtures_are_drawn_where_half_precision_is_the_default(tmp_path):
    fit(GLMC.override({"trainer.precision": "bf16-true", "trainer.max_steps": 2}), tmp_path / "run")
    assert RunFolder(tmp_path / "run").complete


@pytest.fixture
def step(monkeypatch):
    """Loss and task of one training step in an epoch."""

    def take(recipe, epoch=0):
        work = make_work(recipe, lambda text: None)
        monkeypatch.setattr(type(work.task), "current_epoch", epoch)
        torch.manual_seed(0)
        return work.task.train().training_step(next(iter(work.loaders["train"])), 0), work.task

    return take


@pytest.mark.parametrize(("epoch", "learns"), [(0, False), (2, True)])
def test_the_kept_classifier_learns_as_training_goes_on(step, epoch, learns):
    loss, task = step(GLMC.as_variant("plain"), epoch)
    loss.backward()
    assert bool(task.head.weight.grad.abs().sum()) is learns
    assert task.beside.weight.grad.abs().sum() > 0
    assert task.predict.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("kind", ["plain", "related"])
def test_a_step_is_the_loss_of_both_mixtures_in_each_stream_and_their_likeness(monkeypatch, kind):
    work = make_work(GLMC.override({"relation.dropout": 0.0}).as_variant(kind), lambda text: None)
    task, batch = work.task.train(), next(iter(work.loaders["train"]))
    monkeypatch.setattr(type(task), "current_epoch", 1)  # of three
    torch.manual_seed(0)
    shares = torch.rand(2, len(batch.image), 10).softmax(2)
    mixed = [(batch.image.flip(0), shares[0]), (batch.views[0] / 2, shares[1])]
    assert [type(mix) for mix in task._mixes] == [v2.MixUp, v2.CutMix]
    assert [(mix.alpha, mix.num_classes) for mix in task._mixes] == [(1.0, 10)] * 2
    asked = []
    task._mixes = [lambda *given, found=found: asked.append(given) or found for found in mixed]
    got = task.training_step(batch, 0)
    assert all(given[0] is image for given, image in zip(asked, (batch.image, batch.views[0]), strict=True))
    assert all(given[1] is batch.target for given in asked)

    weights = task.counts.double() ** -1.2
    weights *= 10 / weights.sum()
    features = [task.backbone(image) for image, _ in mixed]
    projected = [task.project(z) for z in features]
    predicted = [task.predict(h) for h in projected]
    likeness = [torch.nn.functional.cosine_similarity(predicted[i], projected[1 - i]).mean() for i in (0, 1)]
    expected = -task.criterion.consistency * sum(likeness)
    for z, wanted in zip(features, shares, strict=True):
        for rows in [z] if kind == "plain" else [z, task.relation(z)[len(z) :]]:
            kept = -(wanted * weights * task.head(rows).log_softmax(1)).sum(1).mean()
            beside = -(wanted * task.beside(rows).log_softmax(1)).sum(1).mean()
            expected = expected + ((1 - 1 / 9) * beside + kept / 9) / (1 if kind == "plain" else 2)
    torch.testing.assert_close(got, expected.to(got.dtype), rtol=1e-5, atol=1e-5)


def test_plain_and_related_begin_alike_and_have_another_loss(step):
    (plain_loss, plain), (related_loss, related) = (step(GLMC.as_variant(kind)) for kind in ("plain", "related"))
    now = related.state_dict()
    for name, value in plain.state_dict().items():
        if "running" not in name and "tracked" not in name:
            assert torch.equal(value, now[name]), name
    assert plain_loss != related_loss


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.views": ()}, "takes one further view"),
        ({"data.mixup": 1.0}, "takes one further view"),
        ({"relation.attend": "same-class"}, "mixes images of two classes"),
        ({"criterion.class_weights": "auto"}, "weighs classes by itself"),
        ({"backbone.frozen": True, "backbone.weights": "x"}, "trains the backbone"),
    ],
)
def test_what_does_not_go_together_is_refused(changes, message):
    recipe = GLMC.override(changes)
    counts = torch.tensor([5, 3])
    with pytest.raises(InvalidInput, match=message):
        build_task(recipe, counts=counts, group_counts=counts, class_names=("a", "b"), in_chans=1, image_size=8)
