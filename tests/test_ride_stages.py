"""RIDE's further stages: experts that learn from a teacher, and as many of them as an image needs."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from surviving import broken_off, fit, same_weights

from setwise.build import build_few_shot
from setwise.cli import main
from setwise.errors import InvalidInput
from setwise.export import export
from setwise.losses import distillation
from setwise.models import route
from setwise.recipes import RECIPES
from setwise.recipes.stages import stages
from setwise.report import write_run_report
from setwise.run import evaluate, load_run
from setwise.run_folder import RunFolder
from setwise.work import make_work

DIGITS = {
    "data": RECIPES["digits-lt"].data,
    "groups": RECIPES["digits-lt"].groups,
    "backbone.options": {"width": 4, "depth": 1},
    "trainer.epochs": 4,
    "trainer.val_every": 2,
    "trainer.logger": ("csv",),
    "trainer.accelerator": "cpu",
    "before.options": {"trainer.epochs": 2, "trainer.val_every": 2},
}
DISTILLED = RECIPES["cifar100-lt-ride-distilled"].override(DIGITS)
DISTILLED = DISTILLED.override({"before.options": DISTILLED.before.options | {"backbone.options.num_experts": 4}})
ROUTED = RECIPES["cifar100-lt-ride-routed"].override(DIGITS)


@pytest.fixture(scope="module", params=["distilled", "routed"])
def recipe(request):
    return {"distilled": DISTILLED, "routed": ROUTED}[request.param]


@pytest.fixture(scope="module")
def whole(recipe, tmp_path_factory):
    folder = RunFolder(tmp_path_factory.mktemp("ride") / "whole")
    fit(recipe, folder.path)
    return folder


def quiet(recipe):
    return make_work(recipe, lambda text: None)


@pytest.mark.parametrize("epoch", [1, 3], ids=["in the first", "in the second"])
def test_a_stage_that_was_broken_off_ends_as_an_unbroken_one(recipe, whole, tmp_path, epoch):
    broken = broken_off(recipe, tmp_path / "broken", epoch)
    assert RunFolder(broken.before).complete == (epoch == 3)
    fit(recipe, broken.path, resume=True)
    assert same_weights(whole.path, broken.path)


def test_a_network_of_every_stage_is_exported_for_any_number_of_images(whole, tmp_path):
    _, task, model = load_run(whole.path)
    images = torch.randn(5, 1, model.image_size, model.image_size)
    export(whole.path, tmp_path, ("torch",))
    with torch.inference_mode():
        torch.testing.assert_close(torch.export.load(tmp_path / "model.pt2").module()(images), task(images))


def test_the_teacher_has_its_own_network_and_everything_else_in_common():
    first, last = stages(RECIPES["cifar100-lt-ride-distilled"].override({"seed": 4}))
    assert (first.backbone.options, last.backbone.options) == ({"num_experts": 6}, {})
    assert (first.seed, first.data, first.relation) == (4, last.data, last.relation)
    assert (first.criterion.diversity, last.criterion.diversity) == (0.1, 0.2)
    assert first.optimizer == replace(last.optimizer, warmup_epochs=5)


def test_the_experts_keep_their_scale_when_they_are_asked():
    first, last = stages(RECIPES["cifar100-lt-ride-routed"].override({"head.scale": 12.0}))
    assert (first.head.scale, last.head.scale) == (12.0, 12.0)
    assert (first.head.name, last.head.name) == ("cosine", "routed")


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("cifar100-lt-ride", {"head.top_k": 5}, r"`head\.top_k` \(5\) is the routed head's"),
        ("cifar100-lt-ride", {"criterion.teacher_temperature": 2.0}, "needs a teacher"),
        (
            "cifar100-lt-ride",
            {"data.sampler": "meta", "backbone.frozen": True, "before.recipe": "cifar100-lt-ride"},
            "is of one classifier",
        ),
        (
            "cifar100-lt-ride-distilled",
            {"data.sampler": "meta", "backbone.frozen": True, "backbone.weights": "mine.pt"},
            "without mixup, cutmix or a teacher",
        ),
        ("digits-lt", {"head.top_k": 5}, "is the routed head's"),
    ],
)
def test_fields_that_would_do_nothing_are_a_sentence(name, changes, message):
    recipe = RECIPES[name].override(DIGITS if name != "digits-lt" else {})
    with pytest.raises(InvalidInput, match=message):
        quiet(recipe.override({"before.options": {}, "backbone.weights": None} | changes))


def test_episodes_have_no_teacher():
    recipe = RECIPES["omniglot-ctx"].override({"before.use": "teacher", "before.recipe": "digits-lt"})
    with pytest.raises(InvalidInput, match=r"A teacher .* is of classifiers"):
        build_few_shot(recipe, in_chans=1, image_size=28)


class TestDistilled:
    @pytest.fixture(scope="class")
    def folder(self, tmp_path_factory):
        folder = RunFolder(tmp_path_factory.mktemp("distilled") / "run")
        fit(DISTILLED, folder.path)
        return folder

    def test_the_step_adds_the_distance_to_the_teacher_for_both_streams(self, folder, monkeypatch):
        work = quiet(DISTILLED.override({"criterion.teacher": str(folder.before), "relation.dropout": 0.0}))
        task, batch = work.task.train(), next(iter(work.loaders["train"]))
        monkeypatch.setattr(type(task), "current_epoch", 0)
        teacher = load_run(folder.before)[1]
        logits = task.head(task.relation(task.backbone(batch.image)))
        wanted = teacher(batch.image).repeat(2, 1)
        expected = task.criterion(logits, batch.target.repeat(2)) + distillation(logits, wanted, temperature=1.5)
        loss = task.training_step(batch, 0)
        torch.testing.assert_close(loss, expected.mean(), rtol=1e-4, atol=1e-4)
        loss.backward()
        assert all(p.grad is None for p in task._teacher[0].parameters())
        assert not any("teacher" in name for name in task.state_dict())

    def test_the_student_needs_its_teacher_no_more(self, folder):
        gone = folder.before.with_name("moved")
        folder.before.rename(gone)
        try:
            _, task, _ = load_run(folder.path)
        finally:
            gone.rename(folder.before)
        assert len(task.head.classifiers) == 3

    def test_a_teacher_that_knows_the_validation_part_is_refused(self, folder):
        other = DISTILLED.override({"criterion.teacher": str(folder.before), "seed": 1})
        with pytest.raises(InvalidInput, match=r"has seed 0, this run 1: it has learned from images"):
            quiet(other)

    def test_a_teacher_of_other_images_is_refused(self, folder):
        other = DISTILLED.override({"criterion.teacher": str(folder.before), "data.image_size": 16})
        with pytest.raises(InvalidInput, match=r"teacher in .* does not see what this run sees: its image_size differ"):
            quiet(other)


class TestRouted:
    @pytest.fixture(scope="class")
    def folder(self, tmp_path_factory):
        folder = RunFolder(tmp_path_factory.mktemp("routed") / "run")
        fit(ROUTED, folder.path)
        return folder

    def test_experts_stay_and_the_deciding_network_learns(self, folder):
        before, now = load_file(RunFolder(folder.before).weights), load_file(folder.weights)
        for name, value in before.items():
            if name.startswith("backbone."):
                assert torch.equal(now[name], value), name
            elif name.startswith("head."):
                assert torch.equal(now[name.replace("head.", "head.experts.")], value), name
        untrained = quiet(ROUTED.override({"backbone.weights": str(RunFolder(folder.before).weights)})).task
        assert not torch.equal(untrained.head.assign.inward[0].weight, now["head.assign.inward.0.weight"])
        assert not any(name.startswith("relation.") for name in now)

    def test_a_prediction_is_the_mean_of_the_experts_that_were_asked(self, folder):
        _, task, _ = load_run(folder.path)
        image = torch.randn(9, 1, 8, 8)
        logits, scores = task.head.decide(task.backbone(image))
        expected = route(logits, scores)
        torch.testing.assert_close(task(image), expected.logits)
        assert torch.equal(task.per_image(image)["used"], expected.used)
        torch.testing.assert_close(task.plain().eval()(image), expected.logits)

    def test_the_step_asks_who_is_wrong_now_and_right_later(self, folder):
        weights = {"backbone.weights": str(RunFolder(folder.before).weights)}
        work = quiet(ROUTED.override(weights))
        task, batch = work.task.train(), next(iter(work.loaders["train"]))
        got = task.training_step(batch, 0)
        with torch.no_grad():
            logits, scores = task.head.decide(task.backbone(batch.image))
        expected, wanted = [], 0
        for of_image, going_on, label in zip(logits, scores.double().sigmoid(), batch.target, strict=True):
            right = [bool(of_image[: e + 1].mean(0).argmax() == label) for e in range(3)]
            for e, p in enumerate(going_on):
                onwards = not right[e] and any(right[e + 1 :])
                expected.append(float(-100 * p.log() if onwards else -(1 - p).log()))
                wanted += onwards
        assert 0 < wanted < len(expected)
        assert float(got) == pytest.approx(sum(expected) / len(expected), rel=1e-5)

    def test_the_mean_number_of_experts_is_reported(self, folder):
        line = json.loads(folder.results.read_text())
        _, task, _ = load_run(folder.path)
        test = quiet(ROUTED.override({"backbone.weights": str(RunFolder(folder.before).weights)})).loaders["test"]
        used = torch.cat([task.per_image(batch.image)["used"] for batch in test])
        assert line["metrics"]["experts_used"] == pytest.approx(float(used.double().mean()) / 3)
        page = write_run_report(folder.path).read_text(encoding="utf-8")
        assert f"Experts asked: {float(used.double().mean()):.2f} of 3 on average." in page

    def test_a_later_evaluation_reports_it_too_and_the_stage_before_is_what_there_is_to_show(self, folder, capsys):
        line = json.loads(folder.results.read_text())
        assert evaluate(folder.path)[0]["experts_used"] == pytest.approx(line["metrics"]["experts_used"])
        assert main(["show", str(folder.path)]) == 2
        assert "has no relation: show the stage before it" in " ".join(capsys.readouterr().err.split())

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"before.recipe": None}, "would keep random weights"),
            ({"before.recipe": None, "backbone.frozen": False}, "routed asks the experts of a first stage"),
            ({"criterion.name": "ride"}, "go together"),
            ({"data.mixup": 0.5}, "decides about one image of one class: leave out mixup"),
            ({"relation.relate_at_test": True}, "leave out mixup, cutmix and relation.relate_at_test"),
            ({"backbone.options": {"width": 4, "depth": 1, "num_experts": 2}}, "Head routed asks the classifiers"),
        ],
    )
    def test_experts_that_are_not_there_are_a_sentence(self, folder, changes, message):
        weights = {} if "before.recipe" in changes else {"backbone.weights": str(RunFolder(folder.before).weights)}
        with pytest.raises(InvalidInput, match=message):
            quiet(ROUTED.override(weights | changes))


def test_a_teacher_teaches_in_half_precision(tmp_path):
    precise = {"trainer.precision": "bf16-true", "trainer.epochs": 1, "trainer.val_every": 1}
    before = DISTILLED.before.options | {"trainer.epochs": 1, "trainer.val_every": 1}
    fit(DISTILLED.override(precise | {"before.options": before}), tmp_path / "run")
    assert RunFolder(tmp_path / "run").complete
