"""What goes wrong in a run ends in a sentence, loses nothing that was kept, and can be continued."""

import errno
import json
import os
import resource
import shutil
import signal

import fakes
import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import Callback
from safetensors.torch import load_file
from surviving import FULL, TINY, At, broken_off, fit, give_up, room, same_weights

from setwise import guards, run, work
from setwise.checkpoints import read_checkpoint
from setwise.cli import main
from setwise.data.loader import BatchedSplit
from setwise.errors import InvalidInput, RunError, Stopped
from setwise.explained import explained
from setwise.recipes import RECIPES, yaml_file
from setwise.report import write_run_report
from setwise.run_folder import RunFolder
from setwise.tasks import Classification


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    out = tmp_path_factory.mktemp("unbroken") / "run"
    fit(TINY, out)
    return out


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A run that was broken off in its last epoch."""
    return broken_off(TINY, tmp_path_factory.mktemp("broken") / "run").path


@pytest.fixture
def broken(template, tmp_path):
    """A copy of it: checkpoints know their folder by name, which no one but the selection asks for."""
    return RunFolder(shutil.copytree(template, tmp_path / "run"))


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    """One bit of one weight."""
    content = bytearray(path.read_bytes())
    place = content.index(b"data/0") + 1000
    content[place] ^= 16
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [cut, flip, lambda path: path.write_bytes(b"")], ids=["cut", "flip", "empty"])
def test_a_damaged_last_checkpoint_falls_back_to_the_one_before_and_says_so(unbroken, broken, damage):
    damage(broken.last)
    said = []
    fit(TINY, broken.path, resume=True, say=said.append)
    assert [s for s in said if "last.ckpt" in s and s.endswith("The one before is taken, of the end of epoch 1.")]
    assert same_weights(unbroken, broken.path)


def test_a_damaged_last_checkpoint_does_not_take_the_place_of_the_good_one_before(broken):
    cut(broken.last)
    good = broken.last_but_one.read_bytes()
    kept = []
    look = At(3, lambda trainer, module: kept.append((broken.last_but_one.read_bytes(), read_checkpoint(broken.last))))
    fit(TINY, broken.path, resume=True, callbacks=(look,))
    assert kept[0][0] == good
    assert kept[0][1]["epoch"] == 2


def test_two_damaged_checkpoints_are_a_sentence_with_the_way_out(broken):
    for path in (broken.last, broken.last_but_one):
        cut(path)
    with pytest.raises(RunError, match=r"No checkpoint can be read.*last\.ckpt.*last-1\.ckpt.*Delete .*checkpoints"):
        fit(TINY, broken.path, resume=True)
    shutil.rmtree(broken.checkpoints)
    fit(TINY, broken.path, resume=True)
    assert broken.complete


def test_a_lost_best_checkpoint_is_a_sentence(tmp_path):
    folder = broken_off(TINY.override({"trainer.select": "best", "trainer.val_every": 1}), tmp_path / "run")
    recipe = yaml_file.read(folder.recipe)
    damage = At(3, lambda trainer, module: None)
    damage.on_fit_end = lambda trainer, module: cut(folder.best)
    with pytest.raises(RunError, match=r"selected weights are lost.*best\.ckpt.*delete the file"):
        fit(recipe, folder.path, resume=True, callbacks=(damage,))


def test_resuming_where_nothing_is_starts_from_the_beginning(unbroken, tmp_path):
    fit(TINY, tmp_path / "new", resume=True)
    assert same_weights(unbroken, tmp_path / "new")
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "environment.json").write_text("{}")  # killed before its recipe was written
    fit(TINY, tmp_path / "begun", resume=True)
    assert same_weights(unbroken, tmp_path / "begun")


def test_a_full_disk_is_a_sentence_and_the_run_continues_when_there_is_room_again(unbroken, tmp_path):
    folder = RunFolder(tmp_path / "run")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    fill = At(2, lambda *args: resource.setrlimit(resource.RLIMIT_FSIZE, (8192, limits[1])))
    with room(limits[0]), pytest.raises(RunError, match=r"cannot be written: File too large.*--resume continues"):
        fit(TINY, folder.path, callbacks=(fill,))
    assert read_checkpoint(folder.last)["epoch"] == 1
    assert read_checkpoint(folder.last_but_one)["epoch"] == 0
    assert sorted(path.name for path in folder.checkpoints.iterdir()) == ["last-1.ckpt", "last.ckpt"]
    fit(TINY, folder.path, resume=True)
    assert same_weights(unbroken, folder.path)


def test_a_disk_that_fills_up_while_results_are_written_loses_no_training(unbroken, tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    fill = At(9, None)
    fill.on_fit_end = lambda *args: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    with room(limits[0]), pytest.raises(RunError, match="cannot be written: File too large"):
        fit(TINY, tmp_path / "run", callbacks=(fill,))
    assert not RunFolder(tmp_path / "run").weights.exists()
    fit(TINY, tmp_path / "run", resume=True)
    assert same_weights(unbroken, tmp_path / "run")


def test_a_disk_that_fills_up_while_the_report_is_written_keeps_the_old_one(unbroken, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(unbroken, folder)
    old = write_run_report(folder).read_bytes()
    with room(4096), pytest.raises(RunError, match=r"cannot be written: File too large.*setwise report"):
        write_run_report(folder)
    assert (folder / "report.html").read_bytes() == old
    assert not list(folder.glob("*.part"))


def test_a_disk_without_room_is_the_same_sentence(tmp_path):
    with (
        pytest.raises(RunError, match=r"cannot be written: No space left on device.*make room"),
        explained(TINY, tmp_path),
        open("/dev/full", "wb", buffering=0) as full,
    ):
        full.write(b"x")
    with pytest.raises(FileNotFoundError), explained(TINY, tmp_path):  # about something else
        raise FileNotFoundError(errno.ENOENT, "no such image")


def test_an_unwritable_folder_is_a_sentence(unbroken, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"run folder .*file/run cannot be written: Not a directory"):
        fit(TINY, tmp_path / "file" / "run")
    folder = RunFolder(tmp_path / "run")

    def block(*args):
        shutil.move(folder.checkpoints, tmp_path / "kept")
        folder.checkpoints.write_text("in the way")

    with pytest.raises(RunError, match=r"run folder .* cannot be written: (File exists|Not a directory)"):
        fit(TINY, folder.path, callbacks=(At(2, block),))
    folder.checkpoints.unlink()
    shutil.move(tmp_path / "kept", folder.checkpoints)
    fit(TINY, folder.path, resume=True)
    assert same_weights(unbroken, folder.path)


def test_a_reader_of_images_that_dies_is_a_sentence(tmp_path, monkeypatch):
    read = BatchedSplit.__getitem__

    def die(self, draw):
        if draw.epoch == 1 and torch.utils.data.get_worker_info() is not None:
            os._exit(3)
        return read(self, draw)

    monkeypatch.setattr(BatchedSplit, "__getitem__", die)
    image_by_image = {"data.augment": "crop-flip-rotate", "data.num_workers": 1}  # else there would be no worker
    recipe = TINY.override({**image_by_image, "trainer.val_every": 4})
    with pytest.raises(
        RunError,
        match=r"reads images died \(DataLoader worker .*fewer \(--data\.num-workers 1\).*continues with --resume",
    ):
        fit(recipe, tmp_path / "run")
    monkeypatch.undo()
    fit(recipe, tmp_path / "run", resume=True)
    assert RunFolder(tmp_path / "run").complete


def terminate(*args):
    os.kill(os.getpid(), signal.SIGTERM)


def test_sigterm_ends_a_short_epoch_with_a_checkpoint_and_the_run_continues_exactly(unbroken, tmp_path):
    recipe = TINY.override({"trainer.checkpoint_every": 50})
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped, match="Stopped by SIGTERM at the end of epoch 1; continue with --resume"):
        fit(recipe, tmp_path / "run", callbacks=(At(1, terminate),))
    assert signal.getsignal(signal.SIGTERM) is before
    assert read_checkpoint(RunFolder(tmp_path / "run").last)["epoch"] == 1
    fit(recipe, tmp_path / "run", resume=True)
    assert same_weights(unbroken, tmp_path / "run")


def test_sigterm_gives_up_a_long_epoch_at_once(unbroken, tmp_path, monkeypatch):
    monkeypatch.setattr(guards, "GRACE", 0.0)
    with pytest.raises(Stopped, match=r"Stopped by SIGTERM in epoch 2, .* from the last checkpoint"):
        fit(TINY, tmp_path / "run", callbacks=(At(2, terminate),))
    assert read_checkpoint(RunFolder(tmp_path / "run").last)["epoch"] == 1
    fit(TINY, tmp_path / "run", resume=True)
    assert same_weights(unbroken, tmp_path / "run")


def test_the_command_ends_with_the_status_of_a_terminated_one(tmp_path, monkeypatch, capsys):
    def fit_told_to_stop(*args, **options):
        raise Stopped("Stopped by SIGTERM at the end of epoch 3; continue with --resume.")

    monkeypatch.setattr(run, "fit", fit_told_to_stop)
    assert main(["train", "digits-lt", "--out", str(tmp_path / "run")]) == 143
    assert capsys.readouterr().err == "setwise: Stopped by SIGTERM at the end of epoch 3; continue with --resume.\n"


def test_the_command_ends_with_the_status_of_an_interrupted_one(tmp_path, monkeypatch):
    def interrupted(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "fit", interrupted)
    assert main(["train", "digits-lt", "--out", str(tmp_path / "run")]) == 130


def test_every_part_with_a_state_has_it_in_the_checkpoint(tmp_path):
    parts = {}

    class Look(Callback):
        def on_train_start(self, trainer, module):
            parts.update(module=module, trainer=trainer, callbacks=trainer.callbacks)

    fit(FULL.override({"trainer.on_nan": "skip"}), tmp_path / "run", callbacks=(Look(),))
    checkpoint = read_checkpoint(RunFolder(tmp_path / "run").last)
    module, trainer = parts["module"], parts["trainer"]
    assert checkpoint["state_dict"].keys() == checkpoint["current_model_state"].keys() == module.state_dict().keys()
    assert not torch.equal(checkpoint["state_dict"]["head.weight"], checkpoint["current_model_state"]["head.weight"])
    assert int(checkpoint["averaging_state"]["n_averaged"]) == trainer.global_step
    stateful = [c for c in parts["callbacks"] if c.state_dict()]
    kinds = {type(c).__name__ for c in stateful}
    assert kinds == {"NoNumber", "Averaged", "EarlyStop", "KeptCheckpoint", "Timer", "Unreadable"}
    assert checkpoint["callbacks"].keys() == {c.state_key for c in stateful}
    assert len(checkpoint["optimizer_states"][0]["state"]) == len(list(module.parameters()))
    assert all("momentum_buffer" in state for state in checkpoint["optimizer_states"][0]["state"].values())
    assert checkpoint["lr_schedulers"][0]["last_epoch"] == FULL.trainer.epochs
    assert checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"] == FULL.trainer.epochs
    # What else the task gathers between steps is empty at the end of an epoch, when a checkpoint is written.
    plain = {*vars(LightningModule()), "_hparams"}
    gathered = {n for n, v in vars(module).items() if n not in plain and isinstance(v, list | dict | torch.Tensor)}
    assert gathered == {"_curves", "_validation", "counts", "groups"}  # the last two are the training data's
    assert not module._curves
    assert not module._validation


@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_average_selection_and_early_stopping_continue_exactly(tmp_path, epoch):
    line = fit(FULL, tmp_path / "unbroken")
    broken = broken_off(FULL, tmp_path / "broken", epoch)
    assert fit(FULL, broken.path, resume=True)["metrics"] == line["metrics"]
    assert same_weights(tmp_path / "unbroken", broken.path)


def stopped_after_training(monkeypatch, recipe, out):
    with monkeypatch.context() as patch:
        patch.setattr(work, "scores_of", give_up)
        with pytest.raises(ConnectionError):
            fit(recipe, out)


@pytest.mark.parametrize(
    "override",
    [
        {"trainer.ema": 0.8},  # the average must be put in place again
        {"trainer.select": "early-stopping", "trainer.patience": 1, "trainer.val_every": 1, "trainer.epochs": 30},
    ],
    ids=["average", "early-stopping"],
)
def test_a_run_that_was_killed_after_training_is_only_evaluated(tmp_path, monkeypatch, override):
    recipe = TINY.override(override)
    fit(recipe, tmp_path / "unbroken")
    stopped_after_training(monkeypatch, recipe, tmp_path / "run")
    checkpoint = read_checkpoint(last := RunFolder(tmp_path / "run").last)
    epochs = checkpoint["epoch"]
    assert epochs < 29
    checkpoint["callbacks"]["Timer"]["time_elapsed"]["train"] += 1000
    torch.save(checkpoint, last)
    assert 1000 < fit(recipe, tmp_path / "run", resume=True)["seconds"] < 1100  # those before the resumption, too
    assert read_checkpoint(RunFolder(tmp_path / "run").last)["epoch"] == epochs
    assert same_weights(tmp_path / "unbroken", tmp_path / "run")


@pytest.mark.parametrize("val_every", [1, 2])
@pytest.mark.parametrize("select", ["last", "early-stopping"])
def test_a_training_of_so_many_steps_continues_exactly(tmp_path, monkeypatch, val_every, select):
    options = {"trainer.max_steps": 11, "trainer.val_every": val_every, "trainer.select": select}
    recipe = TINY.override(options | {"criterion.class_weights": "auto", "criterion.reweight_epoch": 2})
    steps = []
    monkeypatch.setattr(
        Classification, "on_before_optimizer_step", lambda self, optimizer: steps.append(self.global_step)
    )
    fit(recipe, tmp_path / "unbroken")
    assert len(steps) == 11
    broken = broken_off(recipe, tmp_path / "broken", epoch=1)
    again = broken_off_again(recipe, broken, epoch=2)
    fit(recipe, again.path, resume=True)
    assert same_weights(tmp_path / "unbroken", again.path)
    states = [read_checkpoint(RunFolder(folder).last)["state_dict"] for folder in (tmp_path / "unbroken", again.path)]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())  # select may keep others
    steps.clear()
    for name in ("results.jsonl", "weights.safetensors"):
        (again.path / name).unlink()
    fit(recipe, again.path, resume=True)
    assert steps == []
    assert same_weights(tmp_path / "unbroken", again.path)


def broken_off_again(recipe, folder, epoch):
    with pytest.raises(ConnectionError):
        fit(recipe, folder.path, resume=True, callbacks=(At(epoch, give_up),))
    return folder


def test_fewer_steps_than_an_epoch_has_are_no_error(tmp_path):
    options = {"trainer.max_steps": 3, "trainer.val_every": 1, "trainer.select": "early-stopping"}
    fit(TINY.override(options), tmp_path / "run")
    assert RunFolder(tmp_path / "run").complete


def test_the_average_is_that_of_the_weights_after_every_step(tmp_path):
    decay, steps = 0.8, []

    class Watch(Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            steps.append(module.head.weight.detach().clone())

    fit(TINY.override({"trainer.ema": decay}), tmp_path / "run", callbacks=(Watch(),))
    average = steps[0]
    for weight in steps[1:]:
        average = decay * average + (1 - decay) * weight
    kept = load_file(RunFolder(tmp_path / "run").weights)["head.weight"]
    torch.testing.assert_close(kept, average)
    assert not torch.allclose(kept, steps[-1])
    _, task, _ = run.load_run(tmp_path / "run")
    assert torch.equal(task.head.weight, kept)


def test_an_average_of_weights_keeps_the_memory_of_past_samples_as_it_is(tmp_path):
    memories = []

    class Watch(Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            memories.append({name: value.clone() for name, value in module.relation.memory.named_buffers()})

    recipe = TINY.override({"trainer.ema": 0.8, "relation.memory": 16})
    fit(recipe, tmp_path / "run", callbacks=(Watch(),))
    kept = load_file(RunFolder(tmp_path / "run").weights)
    for name, value in memories[-1].items():
        assert torch.equal(kept[f"relation.memory.{name}"], value), name


def test_a_decay_out_of_range_is_a_sentence(tmp_path):
    with pytest.raises(InvalidInput, match=r"`trainer\.ema` \(1\) must be at least 0 and below 1"):
        fit(TINY.override({"trainer.ema": 1.0}), tmp_path / "run")


def test_images_that_could_not_be_read_are_still_known_after_a_resumption(tmp_path, monkeypatch):
    options = fakes.write("image-folder", tmp_path / "data", "train-val-test")
    next((tmp_path / "data" / "train" / "bee").glob("*.png")).write_bytes(b"broken")
    recipe = RECIPES["image-folder"]
    recipe = recipe.override(recipe.smoke | {f"data.{name}": value for name, value in options.items()})
    lazy = {"data.cache": "files", "data.on_error": "skip", "data.num_workers": 0, "trainer.max_steps": None}
    recipe = recipe.override(lazy | {"data.augment": "none", "trainer.logger": ("csv",)})
    stopped_after_training(monkeypatch, recipe, tmp_path / "run")
    fit(recipe, tmp_path / "run", resume=True)
    notes = json.loads((tmp_path / "run" / "environment.json").read_text())["notes"]
    assert any(note.startswith("Unreadable images of train, skipped: 1") for note in notes)


def test_an_unreadable_image_whose_name_is_no_text_is_noted_in_text(tmp_path):
    options = fakes.write("image-folder", tmp_path / "data", "train-val-test")
    image = next((tmp_path / "data" / "train" / "bee").glob("*.png"))
    os.rename(image, os.path.join(os.fsencode(image.parent), b"caf\xe9.png"))
    with open(os.path.join(os.fsencode(image.parent), b"caf\xe9.png"), "wb") as file:
        file.write(b"broken")
    recipe = RECIPES["image-folder"]
    recipe = recipe.override(recipe.smoke | {f"data.{name}": value for name, value in options.items()})
    lazy = {"data.cache": "files", "data.on_error": "skip", "data.num_workers": 0, "trainer.max_steps": None}
    said = []
    fit(recipe.override(lazy | {"data.augment": "none"}), tmp_path / "run", say=said.append)
    (note,) = [text for text in said if "Unreadable" in text]
    assert r"caf\xe9.png" in note.encode("utf-8").decode()
    assert write_run_report(tmp_path / "run").is_file()


def test_the_home_folder_may_be_written_as_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    tiny = [f"--{name}={value}" for name, value in {"trainer.epochs": 3, "trainer.checkpoint-every": 1}.items()]
    assert main(["train", "digits-lt", "--out=~/run", "--backbone.options.width", "4", *tiny]) == 0
    assert RunFolder(tmp_path / "run").complete
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").is_file()
    assert main(["compare", "digits-lt", "--out=~/both", "--seeds=2", "--workers=1", "--trainer.epochs=1"]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["both", "run"]


def test_a_link_to_no_folder_is_a_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").symlink_to(tmp_path / "unmounted")
    assert main(["train", "digits-lt"]) == 1
    assert "runs is no folder, or a link to none" in " ".join(capsys.readouterr().err.split())


def test_a_comparison_is_not_trained_as_a_run(tmp_path):
    (tmp_path / "plan.json").write_text("{}")
    yaml_file.write(TINY, tmp_path / "recipe.yaml")
    with pytest.raises(RunError, match="is a comparison, which `setwise compare"):
        fit(TINY, tmp_path, resume=True)
