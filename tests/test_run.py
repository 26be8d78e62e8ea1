"""One run: what it leaves, that it never overwrites, and that a broken one ends as an unbroken one."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import fakes
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from PIL import Image
from safetensors.torch import load_file

from setwise import run
from setwise.build import build_data, build_loader
from setwise.errors import DataError, InvalidInput, MissingFile, RunError
from setwise.metrics import TAUS, classification_metrics
from setwise.recipes import RECIPES
from setwise.report import write_run_report
from setwise.run_folder import RunFolder, fresh_folder, read_classes
from setwise.scoring import scores_of

TINY = RECIPES["digits-lt"].override(
    {"trainer.epochs": 4, "trainer.checkpoint_every": 1, "trainer.val_every": 2, "backbone.options": {"width": 4}}
)


def fit(recipe, out, **options):
    return run.fit(recipe, out, progress=False, say=lambda text: None, **options)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "digits"
    return RunFolder(out), fit(TINY, out)


class StopAt(Callback):
    def __init__(self, epoch):
        self.epoch = epoch

    def on_train_epoch_start(self, trainer, module):
        if trainer.current_epoch == self.epoch:
            raise ConnectionError("the power went off")


def test_a_run_leaves_what_the_folder_says(finished):
    folder, line = finished
    for path in (folder.recipe, folder.environment, folder.model, folder.weights, folder.predictions, folder.last):
        assert path.is_file(), path
    assert json.loads(folder.results.read_text()) == line
    assert set(line) == {"recipe", "variant", "seed", "metrics", "primary", "seconds", "versions", "commit"}
    curves = next((folder.logs / "csv").glob("version_*/metrics.csv")).read_text().splitlines()[0].split(",")
    for stream in ("plain", "related"):
        assert {f"train/{stream}_loss", f"train/{stream}_accuracy"} <= set(curves)
    assert f"val/{TINY.primary}" in curves
    assert list((folder.logs / "tensorboard").glob("version_*/events*"))
    assert len(read_classes(folder.path)) == 10


def test_saved_predictions_give_the_metrics_back(finished):
    folder, line = finished
    with np.load(folder.predictions) as saved:
        right = saved["predicted"] == saved["target"]
        place = np.abs(saved["taus"] - saved["tau"]).argmin()
        assert len(saved["taus"]) == len(TAUS)
        assert right[list(TAUS).index(0.0)].mean() == pytest.approx(line["metrics"]["accuracy"])
        assert right[place].mean() == pytest.approx(line["metrics"]["adjusted_accuracy"])


def test_testing_a_run_again_gives_its_metrics(finished):
    folder, line = finished
    metrics, classes = run.evaluate(folder.path)
    assert metrics == line["metrics"]
    assert classes == read_classes(folder.path)


def test_a_loaded_run_scores_as_its_plain_network(finished):
    folder, line = finished
    recipe, task, _ = run.load_run(folder.path)
    splits = build_data(recipe)
    scores = scores_of(task, build_loader(recipe, splits, "test"))
    plain = task.plain().eval()
    with torch.inference_mode():
        batches = [plain(batch.image) for batch in build_loader(recipe, splits, "test")]
    assert torch.equal(torch.cat(batches), scores["scores"])
    metrics = classification_metrics(scores["scores"], scores["target"], groups=task.groups)
    assert metrics["accuracy"] == line["metrics"]["accuracy"]


def test_the_same_seed_gives_the_same_weights(finished, tmp_path):
    folder, _ = finished
    torch.manual_seed(7)  # whatever else was drawn in the process
    fit(TINY, tmp_path / "again")
    again = load_file(tmp_path / "again" / "weights.safetensors")
    assert all(torch.equal(value, again[name]) for name, value in load_file(folder.weights).items())


def test_channels_last_in_memory_is_the_same_training(tmp_path):
    class Watch(Callback):
        def on_train_start(self, trainer, module):
            conv = next(part for part in module.modules() if isinstance(part, torch.nn.Conv2d))
            conv.register_forward_hook(lambda part, given, made: maps.append(made))

    maps: list[torch.Tensor] = []
    short = TINY.override({"trainer.max_steps": 3})
    fit(short.override({"trainer.channels_last": True}), tmp_path / "last", callbacks=(Watch(),))
    assert len(maps) > 3
    assert all(made.is_contiguous(memory_format=torch.channels_last) for made in maps)
    fit(short, tmp_path / "first")
    last, first = (load_file(RunFolder(tmp_path / name).weights) for name in ("last", "first"))
    for name, value in first.items():
        torch.testing.assert_close(last[name], value, rtol=1e-3, atol=1e-4)


def test_a_run_never_overwrites(finished):
    folder, _ = finished
    before = folder.results.read_text()
    with pytest.raises(RunError, match="is not empty, and a run never overwrites"):
        fit(TINY, folder.path)
    assert folder.results.read_text() == before


def test_a_complete_run_is_not_run_again(finished):
    folder, line = finished
    assert fit(TINY, folder.path, resume=True) == line
    elsewhere = {"data.root": "elsewhere", "data.num_workers": 1, "summary": "in other words"}
    assert fit(TINY.override(elsewhere), folder.path, resume=True) == line


def test_another_recipe_does_not_resume_a_run(finished):
    folder, _ = finished
    with pytest.raises(RunError, match="started with another recipe"):
        fit(TINY.override({"optimizer.lr": 0.2}), folder.path, resume=True)


@pytest.mark.parametrize("epoch", [0, 1, 3])
def test_a_broken_run_ends_with_the_weights_of_an_unbroken_one(finished, tmp_path, epoch):
    folder, line = finished
    with pytest.raises(ConnectionError):
        fit(TINY, tmp_path / "broken", callbacks=(StopAt(epoch),))
    resumed = fit(TINY, tmp_path / "broken", resume=True)
    weights = load_file(tmp_path / "broken" / "weights.safetensors")
    assert all(torch.equal(value, weights[name]) for name, value in load_file(folder.weights).items())
    assert resumed["metrics"] == line["metrics"]


def test_a_killed_run_continues_to_the_weights_of_an_unbroken_one(tmp_path):
    recipe = {"trainer.epochs": 150, "trainer.checkpoint_every": 5, "trainer.val_every": 150}
    arguments = [f"--{name}={value}" for name, value in recipe.items()] + ["--trainer.logger", "csv"]
    out = tmp_path / "killed"
    command = [sys.executable, "-m", "setwise", "train", "digits-lt", *arguments, "--out", str(out)]
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}  # as here: sums are rounded differently over more threads
    process = subprocess.Popen(command, env=one_thread, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (out / "checkpoints" / "last.ckpt").is_file() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (out / "weights.safetensors").exists()
    whole = RECIPES["digits-lt"].override({**recipe, "trainer.logger": ("csv",)})
    fit(whole, out, resume=True)
    fit(whole, tmp_path / "unbroken")
    expected, got = (load_file(path / "weights.safetensors") for path in (tmp_path / "unbroken", out))
    assert all(torch.equal(value, got[name]) for name, value in expected.items())


@pytest.mark.parametrize("select", ["best", "early-stopping"])
def test_selection_keeps_the_weights_that_validation_prefers(tmp_path, select):
    recipe = TINY.override({"trainer.select": select, "trainer.val_every": 1, "trainer.patience": 2})
    fit(recipe, tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    best = torch.load(folder.best, weights_only=True)["state_dict"]
    kept = load_file(folder.weights)
    assert all(torch.equal(value, kept[name]) for name, value in best.items())
    rows = next((folder.logs / "csv").glob("version_*/metrics.csv")).read_text().splitlines()
    column = rows[0].split(",").index(f"val/{recipe.primary}")
    scores = [float(row.split(",")[column]) for row in rows[1:] if row.split(",")[column]]
    with np.load(folder.predictions) as saved:
        assert float(saved[f"val_{recipe.primary}"]) == pytest.approx(max(scores))


@pytest.mark.parametrize(("primary", "mode"), [("ece", "min"), ("accuracy", "max")])
def test_less_is_better_where_the_primary_metric_is_an_error(tmp_path, primary, mode):
    recipe = TINY.override({"primary": primary, "trainer.select": "early-stopping", "trainer.gradient_clip": 0.5})
    made = run.make_trainer(recipe, RunFolder(tmp_path), progress=False)
    assert made.gradient_clip_val == 0.5
    assert [callback.mode for callback in made.callbacks if getattr(callback, "monitor", None)] == [mode, mode]


def test_weights_that_test_selects_are_the_best_ones_on_test_and_the_report_warns(tmp_path):
    recipe = TINY.override({"trainer.select": "best", "select_on": "test", "trainer.val_every": 1})
    line = fit(recipe, tmp_path / "run")
    rows = next((tmp_path / "run" / "logs" / "csv").glob("version_*/metrics.csv")).read_text().splitlines()
    column = rows[0].split(",").index(f"val/{recipe.primary}")
    scores = [float(row.split(",")[column]) for row in rows[1:] if row.split(",")[column]]
    assert line["metrics"][recipe.primary] == pytest.approx(max(scores))
    page = write_run_report(tmp_path / "run").read_text(encoding="utf-8")
    assert "selected on the test part" in page
    assert "validation is the test part" in page


@pytest.mark.parametrize(("name", "layout"), [("image-folder", "train-test"), ("cifar10-lt", "official")])
def test_where_test_selects_all_training_images_are_trained_on(tmp_path, name, layout):
    options = {f"data.{key}": value for key, value in fakes.write(name, tmp_path, layout).items()}
    recipe = RECIPES["image-folder"].override({"data.name": name, **options})
    kept = build_data(recipe)
    whole = build_data(recipe.override({"select_on": "test"}))
    assert kept.val_from_train
    assert len(whole.train) == len(kept.train) + len(kept.val)
    assert whole.val is whole.test
    assert whole.test.names == kept.test.names
    assert torch.equal(whole.group_counts, kept.group_counts)
    assert torch.equal(whole.train_counts, whole.group_counts)
    assert any("nothing is held out" in note for note in whole.notes)
    assert not any(note.startswith("Validation is 0%") for note in whole.notes)


def test_a_run_that_ends_before_its_first_validation_keeps_its_last_weights(tmp_path):
    said = []
    recipe = TINY.override({"trainer.select": "best", "trainer.max_steps": 2})
    run.fit(recipe, tmp_path / "run", progress=False, say=said.append)
    assert "No weights have been selected by a validation, so the last ones are kept." in said


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ({"trainer.precision": "fp99"}, "Lightning cannot be set up"),
        ({"trainer.logger": ("CometLogger",)}, "Lightning cannot be set up"),
        ({"trainer.logger": ("LitLogger",)}, "Lightning cannot be set up"),
        ({"trainer.logger": ("Logger",)}, "There is no logger 'Logger'|no logger 'Logger'"),
        ({"trainer.accelerator": "gpu"}, "Lightning cannot be set up"),
        ({"criterion.name": "crossentropy"}, "did you mean 'cross-entropy'"),
    ],
)
def test_a_refused_run_leaves_no_folder(tmp_path, override, message):
    if "gpu" in override.values() and torch.cuda.is_available():
        pytest.skip("there is a GPU, so it is not refused")
    with pytest.raises(ValueError, match=message):
        fit(TINY.override(override), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_images_that_are_no_squares_need_a_size(tmp_path):
    for label in "ab":
        (tmp_path / "data" / label).mkdir(parents=True)
        for number in range(12):
            Image.new("RGB", (24, 16), (number * 9, 40, 90)).save(tmp_path / "data" / label / f"{number}.png")
    recipe = RECIPES["image-folder"]
    recipe = recipe.override(recipe.smoke | {"data.root": str(tmp_path / "data"), "data.image_size": None})
    with pytest.raises(DataError, match=r"24 x 16 pixels: name a square with --data\.image-size"):
        fit(recipe, tmp_path / "run")


def test_a_group_without_a_test_image_is_no_primary_metric(tmp_path):
    fakes.write("image-folder", tmp_path / "data", "train-val-test")
    options = {"data.root": str(tmp_path / "data"), "data.image_size": 8, "groups.by": "rank", "groups.many": 1}
    recipe = RECIPES["image-folder"].override(options | {"groups.few": 1, "primary": "adjusted_many"})
    recipe = recipe.override({"backbone.name": "digits_cnn", "backbone.options": {"width": 4}})
    run.rehearse(recipe, say=lambda text: None)
    counts = {path: len(list(path.iterdir())) for path in (tmp_path / "data" / "train").iterdir()}
    shutil.rmtree(tmp_path / "data" / "test" / max(counts, key=counts.get).name)
    with pytest.raises(InvalidInput, match=r"`primary` \(adjusted_many\) is of classes of which the test part has no"):
        run.rehearse(recipe, say=lambda text: None)


def test_a_part_without_images_is_noticed_before_training(tmp_path):
    for label in "ab":
        (tmp_path / "data" / label).mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(tmp_path / "data" / label / "only.png")
    recipe = RECIPES["image-folder"]
    recipe = recipe.override(recipe.smoke | {"data.root": str(tmp_path / "data")})
    with pytest.raises(DataError, match="No image is left for the val part"):
        fit(recipe, tmp_path / "run")


def test_unreadable_images_of_every_part_are_counted(tmp_path):
    options = fakes.write("image-folder", tmp_path / "data", "train-val-test")
    for part in ("train", "test"):
        next((tmp_path / "data" / part / "bee").glob("*.png")).write_bytes(b"broken")
    recipe = RECIPES["image-folder"]
    recipe = recipe.override(recipe.smoke | {f"data.{name}": value for name, value in options.items()})
    lazy = {"data.cache": "files", "data.on_error": "skip", "data.num_workers": 0, "trainer.max_steps": None}
    said = []
    run.fit(recipe.override(lazy | {"data.augment": "none"}), tmp_path / "run", progress=False, say=said.append)
    assert [s.split(",")[0] for s in said if "skipped: 1" in s] == [
        "Unreadable images of train",
        "Unreadable images of test",
    ]
    assert json.loads((tmp_path / "run" / "environment.json").read_text())["notes"][-1] == said[-1]


def test_a_transductive_evaluation_mixes_its_batches_and_keeps_the_order_of_its_results(tmp_path):
    def order(**changes):
        recipe = TINY.override({f"relation.{name}": value for name, value in changes.items()})
        return torch.cat([batch.index for batch in build_loader(recipe, build_data(recipe), "test")]).tolist()

    assert order() == sorted(order()) == order(relate_at_test=True, memory=16)
    mixed = order(relate_at_test=True)
    assert mixed == order(relate_at_test=True) != sorted(mixed) == order()
    line = fit(TINY.override({"relation.relate_at_test": True, "trainer.epochs": 1}), tmp_path / "run")
    with np.load(tmp_path / "run" / "predictions.npz") as saved:
        assert (saved["index"] == np.arange(len(saved["index"]))).all()
    assert run.evaluate(tmp_path / "run")[0] == line["metrics"]


def test_weights_of_ones_own_start_a_run(finished, tmp_path, capsys):
    folder, _ = finished
    recipe = TINY.override({"backbone.weights": str(folder.weights), "trainer.epochs": 1, "optimizer.lr": 0.0})
    said = []
    run.fit(recipe, tmp_path / "run", progress=False, say=said.append)
    assert any("loaded" in sentence and "digits_cnn" in sentence for sentence in said)
    before, after = load_file(folder.weights), load_file(tmp_path / "run" / "weights.safetensors")
    name = "backbone.trunk.0.weight"
    assert torch.equal(before[name], after[name])


def test_diverging_training_is_a_sentence(tmp_path):
    with pytest.raises(RunError, match=r"loss.*not a finite number.*optimizer\.lr"):
        fit(TINY.override({"optimizer.lr": 1e30, "trainer.val_every": 4}), tmp_path / "run")


def test_an_out_of_memory_error_names_what_to_change(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(run.Classification, "training_step", full)
    with pytest.raises(RunError, match=r"batch of 64.*--data\.micro-batch 16.*bf16-mixed.*--data\.batch-size"):
        fit(TINY, tmp_path / "run")


def test_a_folder_that_is_no_run_is_a_sentence(tmp_path):
    with pytest.raises(MissingFile, match="is no run folder"):
        run.load_run(tmp_path)


def test_unknown_names_in_a_recipe_suggest_the_nearest(tmp_path):
    for override, message in (
        ({"criterion.name": "balanced-softmaks"}, "did you mean 'balanced-softmax'"),
        ({"trainer.logger": ("tensorbord",)}, "did you mean 'tensorboard'"),
        ({"data.augment": "crop-flop"}, "did you mean 'crop-flip'"),
        ({"primary": "adjusted_acuracy"}, "did you mean 'adjusted_accuracy'"),
        ({"data.root": "/nowhere"}, r"has no option `data\.root`"),
    ):
        with pytest.raises(ValueError, match=message):
            fit(TINY.override({**override, "trainer.epochs": 1}), fresh_folder(tmp_path, "run"))


def test_a_fresh_folder_is_never_an_old_one(tmp_path):
    assert [fresh_folder(tmp_path, "x").name for _ in range(3)] == ["x", "x-2", "x-3"]
