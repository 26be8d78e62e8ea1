"""Runs elsewhere: in a folder that was moved, beside other processes, on another device, in another precision."""

import shutil
from contextlib import suppress
from functools import partial
from pathlib import Path

import fakes
import few_shot_fakes
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from safetensors.torch import load_file
from surviving import FULL, TINY, broken_off, fit, same_weights

from setwise import run
from setwise.build import build_data, build_loader, check_start
from setwise.build.parts import make_backbone
from setwise.checkpoints import OutOfReach, read_checkpoint
from setwise.errors import InvalidInput, RunError
from setwise.judge import judge
from setwise.models import read_state
from setwise.recipes import RECIPES
from setwise.report import write_run_report
from setwise.run_folder import RunFolder, claimed
from setwise.work import for_evaluation, make_work, on_accelerator


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "digits"
    return RunFolder(out), fit(TINY, out)


def test_a_finished_run_needs_nothing_that_it_started_from(finished, tmp_path):
    start = tmp_path / "start"
    shutil.copytree(finished[0].path, start)
    recipe = TINY.override(
        {
            "trainer.epochs": 1,
            "criterion.teacher": str(start),
            "criterion.teacher_temperature": 2.0,
            "backbone.weights": str(RunFolder(start).weights),
            "backbone.trained": ("trunk.6",),
        }
    )
    line = fit(recipe, tmp_path / "run")
    shutil.rmtree(start)
    assert run.evaluate(tmp_path / "run")[0] == line["metrics"]


def test_weights_of_another_precision_are_evaluated_and_kept_in_that_of_the_images(tmp_path):
    recipe = TINY.override({"trainer.precision": "bf16-true", "trainer.epochs": 1, "trainer.val_every": 1})
    line = fit(recipe, tmp_path / "run")
    metrics, _ = run.evaluate(tmp_path / "run")
    assert metrics == line["metrics"]
    saved = load_file(RunFolder(tmp_path / "run").weights)
    assert {tensor.dtype for tensor in saved.values() if tensor.is_floating_point()} == {torch.float32}


@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_an_average_of_weights_that_are_not_float32_is_refused_before_the_first_step(tmp_path, precision):
    with pytest.raises(InvalidInput, match=r"averages weights of float32, but --trainer\.precision is"):
        fit(TINY.override({"trainer.precision": precision, "trainer.ema": 0.9}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_trained_network_computes_where_training_would_and_comes_back(monkeypatch):
    class Network:
        at = "cpu"

        def to(self, device):
            self.at = device

        def cpu(self):
            self.at = "cpu"

    monkeypatch.setattr("torch.accelerator.current_accelerator", lambda check: "gpu")
    for asked, where in {"auto": "gpu", "gpu": "gpu", "cpu": "cpu"}.items():
        network = Network()
        with suppress(ValueError), on_accelerator(network, TINY.override({"trainer.accelerator": asked})):
            assert network.at == where
            raise ValueError
        assert network.at == "cpu"


def test_two_processes_do_not_train_in_one_folder(tmp_path):
    with (
        claimed(tmp_path),
        pytest.raises(RunError, match="Another process is training in"),
        claimed(tmp_path, patience=0),
    ):
        pass
    with claimed(tmp_path, patience=0):
        pass


def test_a_run_whose_folder_was_moved_keeps_its_best_weights(tmp_path):
    recipe = FULL.override({"trainer.select": "best"})
    fit(recipe, tmp_path / "unbroken")
    broken = broken_off(recipe, tmp_path / "broken", epoch=3)
    moved = RunFolder(broken.path.rename(tmp_path / "moved"))
    seen = []

    class Look(Callback):
        def on_train_start(self, trainer, module):
            seen.extend(c.best_model_path for c in trainer.checkpoint_callbacks if getattr(c, "monitor", None))

    fit(recipe, moved.path, resume=True, callbacks=(Look(),))
    assert seen == [str(moved.best)]
    assert same_weights(tmp_path / "unbroken", moved.path)


def test_a_run_that_another_process_trains_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "claimed", partial(claimed, patience=0))
    with claimed(tmp_path / "run"), pytest.raises(RunError, match="Another process is training in"):
        fit(TINY, tmp_path / "run")
    assert not list((tmp_path / "run").iterdir())


def test_evaluation_keeps_to_micro_batches_and_other_views_of_the_data_do_not():
    recipe = TINY.override({"data.batch_size": 32, "data.micro_batch": 8})
    work = make_work(recipe, lambda text: None)
    sizes = {part: len(next(iter(loader)).image) for part, loader in work.loaders.items()}
    assert sizes == {"train": 32, "val": 8, "test": 8}
    assert len(next(iter(build_loader(recipe, build_data(recipe), "test"))).image) == 32  # which show and audit take
    related = recipe.override({"relation.relate_at_test": True})
    assert for_evaluation(related) == related


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), RuntimeError("can't allocate memory")])
def test_a_checkpoint_that_cannot_be_read_now_is_not_called_damaged(finished, monkeypatch, error):
    def fail(*given, **how):
        raise error

    monkeypatch.setattr("setwise.checkpoints.torch.load", fail)
    with pytest.raises(OutOfReach, match="It may be whole: leave it where it is"):
        read_checkpoint(finished[0].last)


def test_a_test_part_is_not_gathered_from_several_processes():
    recipe = TINY.override({"relation.gather": True, "relation.relate_at_test": True})
    with pytest.raises(InvalidInput, match=r"relation\.gather needs batches of one size"):
        check_start(recipe)
    check_start(recipe.override({"relation.memory": 16}))


def test_a_pool_that_the_stage_before_trains_may_be_frozen():
    stage = {"before.recipe": "image-folder", "backbone.pool": "attention", "backbone.trained": ("layer4",)}
    recipe = RECIPES["image-folder"].override(stage)
    size = {"in_chans": 3, "image_size": 32, "say": lambda text: None}
    assert make_backbone(recipe, **size).global_pool is not None
    with pytest.raises(InvalidInput, match="name global_pool, too"):
        make_backbone(recipe.override({"before.recipe": None}), **size)


def test_parts_that_are_too_small_for_the_processes_are_refused():
    with pytest.raises(InvalidInput, match=r"The train part has \d+ images, too few for 5000 processes"):
        make_work(TINY.override({"trainer.devices": 5000}), lambda text: None)  # which starts none of them
    splits = build_data(TINY)
    with pytest.raises(InvalidInput, match=r"The val part has 240 images, too few for 241 processes"):
        make_work(TINY.override({"trainer.devices": len(splits.val) + 1}), lambda text: None)


def test_fewer_episodes_than_processes_are_refused(tmp_path):
    data = {f"data.{name}": value for name, value in few_shot_fakes.write("omniglot", tmp_path).items()}
    recipe = RECIPES["omniglot-ctx"].override(RECIPES["omniglot-ctx"].smoke | data)
    with pytest.raises(InvalidInput, match=r"The test part has 1 episodes, too few for 2 processes"):
        make_work(recipe.override({"trainer.devices": 2, "episodes.test": 1}), lambda text: None)


def test_shares_that_may_become_unequal_are_not_gathered(tmp_path):
    options = fakes.write("image-folder", tmp_path, "train-val-test")
    recipe = RECIPES["image-folder"]
    recipe = recipe.override(recipe.smoke | {f"data.{name}": value for name, value in options.items()})
    recipe = recipe.override({"relation.gather": True, "data.on_error": "skip", "trainer.devices": 2})
    in_files = recipe.override({"data.cache": "files"})
    with pytest.raises(InvalidInput, match=r"`relation\.gather` needs as many images on every process"):
        make_work(in_files, lambda text: None)
    for harmless in (recipe, in_files.as_variant("plain"), in_files.override({"trainer.devices": 1})):
        make_work(harmless, lambda text: None)


def test_the_home_folder_is_known_to_whatever_reads_a_run(finished, tmp_path, monkeypatch):
    folder, _ = finished
    monkeypatch.setenv("HOME", str(folder.path.parent))
    name = f"~/{folder.path.name}"
    assert write_run_report(Path(name)) == folder.path / "report.html"
    assert read_state(f"{name}/weights.safetensors").keys() == load_file(folder.weights).keys()
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(RunError, match=str(tmp_path)):
        judge("~/comparison")
