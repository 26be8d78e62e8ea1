"""A NaN in training ends the run with a sentence, or costs one step."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from safetensors.torch import load_file
from surviving import TINY, broken_off, fit, same_weights
from torch import nn

from setwise import guards
from setwise.checkpoints import read_checkpoint
from setwise.data import TRANSFORMS
from setwise.data.loader import BatchedSplit
from setwise.errors import RunError
from setwise.guards import NoNumber
from setwise.recipes import yaml_file
from setwise.run_folder import RunFolder


@pytest.fixture
def nan_batches(monkeypatch):
    """Training batches that hold a NaN: (epoch, step)."""
    where, read, seen = {(1, 2)}, BatchedSplit.__getitem__, {}

    def with_nan(self, draw):
        fetched = read(self, draw)
        if self.transform is not TRANSFORMS["none"] and (draw.epoch, draw.step) in where:
            fetched.batch.image[3, 0, 0, 0] = float("nan")
            seen[draw.epoch, draw.step] = draw.indices.tolist()
        return fetched

    monkeypatch.setattr(BatchedSplit, "__getitem__", with_nan)
    return where, seen


def test_a_nan_in_a_batch_stops_the_run_and_leaves_its_images(tmp_path, nan_batches):
    folder = RunFolder(tmp_path / "run")
    with pytest.raises(RunError, match=r"loss of epoch 1, step 2 is not a finite number.*nan_batch\.json.*on-nan skip"):
        fit(TINY, folder.path)
    found = json.loads(folder.nan_batch.read_text())
    assert found == {"epoch": 1, "step": 2, "part": "train", "index": nan_batches[1][1, 2]}
    assert len(found["index"]) == 64
    assert read_checkpoint(folder.last)["epoch"] == 0
    fit(TINY.override({"trainer.on_nan": "skip"}), folder.path, resume=True)
    assert yaml_file.read(folder.recipe).trainer.on_nan == "skip"
    assert all(torch.isfinite(value).all() for value in load_file(folder.weights).values())


def test_a_nan_in_the_last_of_so_many_steps_is_said_before_anything_is_validated(tmp_path, nan_batches):
    recipe = TINY.override({"trainer.max_steps": 7, "trainer.val_every": 1, "trainer.select": "best"})
    with pytest.raises(RunError, match="loss of epoch 1, step 2 is not a finite number"):
        fit(recipe, tmp_path / "run")


@pytest.mark.parametrize("val_every", [1, 4])
def test_a_nan_before_another_callback_ends_an_epoch_is_not_saved(tmp_path, nan_batches, val_every):
    class Enough(Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            if (trainer.current_epoch, batch_idx) == (1, 2):
                trainer.should_stop = True

    with pytest.raises(RunError, match="loss of epoch 1, step 2 is not a finite number"):
        fit(TINY.override({"trainer.val_every": val_every}), tmp_path / "run", callbacks=(Enough(),))
    assert read_checkpoint(RunFolder(tmp_path / "run").last)["epoch"] == 0


def test_every_process_names_the_file_of_the_first():
    guard = NoNumber("stop", Path("runs/.told/nan_batch.json"))
    first = SimpleNamespace(broadcast=lambda mine: Path("runs/mine/nan_batch.json"))
    guard.setup(SimpleNamespace(strategy=first), None, "fit")
    assert guard.file == Path("runs/mine/nan_batch.json")


def test_a_skipped_step_leaves_the_network_as_it_was_and_is_counted(tmp_path, nan_batches):
    nan_batches[0].add((1, 3))
    recipe = TINY.override({"trainer.on_nan": "skip"})
    states = {}

    class Watch(Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            state = {name: value.clone() for name, value in module.state_dict().items()}
            moments = [s["momentum_buffer"].clone() for s in trainer.optimizers[0].state.values()]
            states[trainer.current_epoch, batch_idx] = (state, moments)

    said = []
    fit(recipe, tmp_path / "run", callbacks=(Watch(),), say=said.append)
    for step, changed in (((1, 1), True), ((1, 2), False), ((1, 3), False), ((2, 0), True)):
        before = states[step[0], step[1] - 1] if step[1] else states[1, 3]
        same = all(torch.equal(value, states[step][0][name]) for name, value in before[0].items())
        same &= all(torch.equal(a, b) for a, b in zip(before[1], states[step][1], strict=True))
        assert same is not changed, step
    sentence = "Training steps left out because their gradient was not a finite number: 2; the first: epoch 1, step 2."
    assert sentence in said
    assert sentence in json.loads((tmp_path / "run" / "environment.json").read_text())["notes"]
    broken = broken_off(recipe, tmp_path / "broken")
    fit(recipe, broken.path, resume=True)  # the count survives, too
    assert sentence in json.loads(broken.environment.read_text())["notes"]
    assert same_weights(tmp_path / "run", broken.path)


@pytest.mark.parametrize("loss", [float("nan"), 1.0])
def test_with_a_gradient_scaler_a_step_without_a_number_is_counted_and_taken_back_from_the_buffers(tmp_path, loss):
    guard, module = NoNumber("skip", tmp_path / "nan.json"), nn.BatchNorm1d(4)
    plugin, loop = SimpleNamespace(scaler=object()), SimpleNamespace(batch_idx=7)
    trainer = SimpleNamespace(precision_plugin=plugin, current_epoch=3, fit_loop=loop)
    guard.on_train_batch_start(trainer, module, None, 7)
    module(torch.full((3, 4), loss))
    guard.on_train_batch_end(trainer, module, {"loss": torch.tensor(loss)}, None, 7)
    assert bool(module.running_mean.isfinite().all())
    assert guard.skipped == ([] if loss == 1.0 else [[3, 7]])


def test_without_a_nan_skipping_changes_nothing(tmp_path):
    fit(TINY, tmp_path / "unbroken")
    fit(TINY.override({"trainer.on_nan": "skip"}), tmp_path / "run")
    assert same_weights(tmp_path / "unbroken", tmp_path / "run")


def test_skipping_every_step_is_a_divergence(tmp_path, nan_batches):
    nan_batches[0].update((1, step) for step in range(4))
    with pytest.raises(RunError, match=r"No loss of epoch 1 is a finite number.*optimizer\.lr"):
        fit(TINY.override({"trainer.on_nan": "skip"}), tmp_path / "run")


def test_the_losses_are_looked_at_once_an_epoch_of_up_to_fifty_steps(tmp_path, monkeypatch):
    looks, look = [], guards.NoNumber._look
    monkeypatch.setattr(guards.NoNumber, "_look", lambda self, t: looks.append(len(self._kept)) or look(self, t))
    fit(TINY, tmp_path / "run")
    assert looks == [4, 4, 0, 4, 4, 0]  # every second epoch is validated, and nothing is left at its end
    assert guards.CHECK_EVERY == 50
