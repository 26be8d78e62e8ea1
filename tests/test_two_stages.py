"""Decoupled training: a first run for the features, a second for the classifier on top of them."""

import json

import pytest
import torch
from safetensors.torch import load_file
from surviving import TINY, broken_off, fit, same_weights

from setwise.cli import main
from setwise.errors import InvalidInput
from setwise.recipes import RECIPES
from setwise.run import load_run
from setwise.run_folder import RunFolder

SECOND = TINY.override(
    {"backbone.frozen": True, "data.sampler": "class-balanced", "trainer.epochs": 4, "trainer.val_every": 2}
)


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    folder = RunFolder(tmp_path_factory.mktemp("stages") / "first")
    fit(TINY.override({"trainer.epochs": 2}), folder.path)
    return folder


def after(first, **changes):
    changes = {name.replace("__", "."): value for name, value in changes.items()}
    return SECOND.override({"backbone.weights": str(first.weights)} | changes)


@pytest.mark.parametrize("head", ["linear", "cosine", "lws"])
@pytest.mark.parametrize("relation", ["none", "batchformer"])
def test_a_second_stage_changes_nothing_of_the_backbone(first, tmp_path, head, relation):
    fit(after(first, head__name=head, relation__name=relation), tmp_path / "second")
    before, now = load_file(first.weights), load_file(RunFolder(tmp_path / "second").weights)
    backbone = [name for name in before if name.startswith("backbone.")]
    assert any("running_mean" in name for name in backbone)
    for name in backbone:
        assert torch.equal(before[name], now[name]), name
    kept = head == "lws"
    assert torch.equal(before["head.weight"], now["head.weight"]) == kept
    if kept:
        assert not torch.equal(now["head.scales"], torch.ones(10))


def test_a_second_stage_that_was_broken_off_ends_as_an_unbroken_one(first, tmp_path):
    recipe = after(first, head__name="lws")
    fit(recipe, tmp_path / "whole")
    broken = broken_off(recipe, tmp_path / "broken")
    fit(recipe, broken.path, resume=True)
    assert same_weights(tmp_path / "whole", broken.path)


def test_a_finished_second_stage_needs_its_first_no_more(first, tmp_path):
    fit(after(first, head__name="lws"), tmp_path / "second")
    gone = first.weights.with_name("moved.safetensors")
    first.weights.rename(gone)
    try:
        _, task, _ = load_run(tmp_path / "second")
    finally:
        gone.rename(first.weights)
    assert not task.training
    assert task(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


def test_two_stages_run_through_the_command_line(first, tmp_path):
    options = ["--backbone.options.width", "4", "--trainer.epochs", "2", "--trainer.logger", "csv"]
    options += ["--backbone.weights", str(first.weights), "--backbone.frozen", "--data.sampler", "class-balanced"]
    assert main(["train", "digits-lt", "--out", str(tmp_path / "second"), *options]) == 0
    assert json.loads((tmp_path / "second" / "results.jsonl").read_text())["recipe"] == "digits-lt"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone.frozen": True}, r"`backbone\.frozen` would keep random weights.*--backbone\.weights"),
        ({"head.name": "lws"}, r"lws scales the classifier of a first stage.*--backbone\.frozen"),
        ({"head.name": "lws", "backbone.weights": "x.pt"}, r"lws scales the classifier of a first stage"),
    ],
)
def test_a_second_stage_without_a_first_is_refused(tmp_path, changes, message):
    with pytest.raises(InvalidInput, match=message):
        fit(TINY.override(changes), tmp_path / "run")


@pytest.mark.parametrize("name", ["cifar100-lt-crt", "cifar100-lt-lws"])
def test_the_recipes_are_second_stages(name):
    recipe = RECIPES[name]
    assert recipe.backbone.frozen
    assert recipe.data.sampler == "class-balanced"
    assert recipe.backbone.weights is None  # the user's


def test_episodes_freeze_their_trunk_by_another_name(tmp_path):
    recipe = RECIPES["omniglot-ctx"].override({"backbone.frozen": True})
    from setwise.build import build_few_shot

    with pytest.raises(InvalidInput, match=r"freeze a few-shot trunk by --episodes\.freeze-trunk"):
        build_few_shot(recipe, in_chans=1, image_size=28)
