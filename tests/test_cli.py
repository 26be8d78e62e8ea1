"""The real command line, in this process: what it prints, returns and refuses."""

import json
import re
import shutil
import subprocess
import sys
import time

import every_fake
import numpy as np
import pytest

from setwise.cli import VERBS, main
from setwise.inference import evaluate_folder
from setwise.recipes import RECIPES, yaml_file
from setwise.run import evaluate

TINY = ["--trainer.epochs", "1", "--trainer.logger", "csv", "--backbone.options.width", "4"]


def test_help_starts_in_well_under_a_second_and_names_every_verb():
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "setwise", "--help"], capture_output=True, text=True, check=True)
    assert time.perf_counter() - start < 1
    assert all(f"  {verb}" in done.stdout for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb, capsys):
    assert main([verb, "--help"]) == 0
    assert f"setwise {verb}" in capsys.readouterr().out


@pytest.mark.parametrize("table", ["recipes", "datasets", "backbones", "criteria", "transforms", "tasks"])
def test_every_table_is_listed(table, capsys):
    assert main(["list", table]) == 0
    assert len(capsys.readouterr().out.splitlines()) > 1


def test_backbones_are_searched_by_pattern(capsys):
    assert main(["list", "backbones", "resnet5*"]) == 0
    assert "resnet50" in capsys.readouterr().out


def test_a_table_is_searched_by_pattern(capsys):
    assert main(["list", "recipes", "*-balms"]) == 0
    shown = capsys.readouterr().out
    assert "imagenet-lt-balms" in shown
    assert "digits-lt" not in shown
    assert main(["list", "criteria", "nothing*"]) == 2
    assert "No name among the criteria matches 'nothing*'" in capsys.readouterr().err


@pytest.mark.parametrize("recipe", RECIPES)
def test_data_says_where_a_data_set_comes_from(recipe, capsys, tmp_path):
    options = every_fake.write(RECIPES[recipe].data.name, tmp_path)
    given = [
        f"--data.{name.replace('_', '-')}={value}" for name, value in options.items() if value not in (None, False)
    ]
    clear = ["--data.imbalance-factor", "None"] if RECIPES[recipe].data.name != "digits-lt" else []
    assert main(["data", recipe, *clear, *given]) == 0
    out = capsys.readouterr().out
    assert "licence" in out
    assert ("first class" if RECIPES[recipe].task == "few-shot" else "training images") in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian", "digits-lt"], "did you mean 'train'"),
        (["train", "digits-tl"], "did you mean 'digits-lt'"),
        (["train"], "takes a recipe"),
        (["train", "digits-lt", "--relation.atend", "self"], "--relation.attend"),
        (["train", "digits-lt", "--trainer.max_epoch", "3"], "Unrecognized"),
        (["train", "digits-lt", "--relation.attend", "nobody"], "same-class"),
        (["train", "digits-lt", "--data.batch-size", "many"], "batch-size"),
        (["train", "missing/run"], "There is no run folder or recipe file missing/run"),
        (["train", "mine.yaml"], "There is no recipe file"),
        (["test", "missing"], "is no run folder"),
        (["predict", "missing", "a.png"], "is no run folder"),
        (["export", "missing"], "is no run folder"),
        (["predict", "missing", ".", "--top-k", "0"], "`top-k` (0) must be at least 1"),
        (["report", "missing"], "is no run folder"),
        (["compare", "digits-lt", "--resume"], "needs the folder"),
        (["compare", "digits-lt", "--seeds", "0"], "at least one seed"),
        (["compare", "digits-lt", "--workers", "-1"], "`workers` must be at least 1"),
        (["train", "digits-lt", "--trainer.epochs", "-1"], "`trainer.epochs` must be at least 1"),
        (["train", "digits-lt", "--optimizer.warmup-start", "2"], "`optimizer.warmup_start` is a share, from 0 to 1"),
        (["data", "imagefolder"], "did you mean 'image-folder'"),
        (["compare", "digits-lt", "--tune", "lr"], "takes group.field=value"),
        (["compare", "digits-lt", "--tune", "optimizer.lrr=1"], "did you mean 'lr'"),
        (["compare", "missing", "--resume"], "There is no recipe 'missing'"),
        (["train", "image-folder", "--data.root", "missing"], "missing"),
        (["train", "digits-lt", "--backbone.name", "resnet5O"], "Nearest"),
        (["train", "digits-lt", "--backbone.options.widht", "3"], "does not take"),
        (
            ["train", "digits-lt", "--backbone.options.width", "["],
            "--backbone.options.width: the value '[' cannot be read",
        ),
    ],
)
def test_a_wrong_command_is_one_sentence_and_a_status(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) in (1, 2)
    captured = capsys.readouterr()
    assert message in " ".join((captured.err + captured.out).replace("│", " ").split())
    assert "Traceback" not in captured.err


def test_hyphen_and_underscore_are_the_same(tmp_path):
    for number, option in enumerate(("--data.batch-size", "--data.batch_size")):
        assert main(["train", "digits-lt", option, "32", "--out", str(tmp_path / str(number)), *TINY]) == 0
    recipes = [(tmp_path / name / "recipe.yaml").read_text() for name in "01"]
    assert recipes[0] == recipes[1]
    assert "batch_size: 32" in recipes[0]


def test_switches_take_a_value_too(tmp_path):
    option = "--relation.relate-at-test"
    for number, value in enumerate(([option, "true"], [option, "False"], [option], [f"{option}=true"])):
        assert main(["train", "digits-lt", "--out", str(tmp_path / str(number)), *TINY, *value]) == 0
    texts = [(tmp_path / name / "recipe.yaml").read_text() for name in "0123"]
    assert ["relate_at_test: true" in text for text in texts] == [True, False, True, True]


def test_runs_go_to_a_folder_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert main(["train", "digits-lt", *TINY, "--variant", "plain"]) == 0
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["digits-lt", "digits-lt-2"]
    assert json.loads((tmp_path / "runs" / "digits-lt" / "results.jsonl").read_text())["variant"] == "plain"


def test_a_run_folder_and_its_yaml_train_again_with_the_same_result(trained, tmp_path):
    assert main(["train", str(trained), "--out", str(tmp_path / "again")]) == 0
    assert main(["train", str(trained / "recipe.yaml"), "--out", str(tmp_path / "from-yaml")]) == 0
    lines = [json.loads((path / "results.jsonl").read_text()) for path in (trained, *tmp_path.iterdir())]
    assert all(line["metrics"] == lines[0]["metrics"] for line in lines)


def test_a_run_writes_a_report(trained):
    assert "<html" in (trained / "report.html").read_text()
    assert main(["report", str(trained)]) == 0


def test_resume_finds_the_latest_unfinished_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "digits-lt", "--resume", *TINY]) == 1
    assert "no unfinished run" in capsys.readouterr().err
    assert main(["train", "digits-lt", *TINY]) == 0
    (tmp_path / "runs" / "digits-lt" / "results.jsonl").unlink()
    other = tmp_path / "runs" / "digits-lt-of-somebody"
    other.mkdir()
    (other / "recipe.yaml").write_text("name: else\n")
    assert main(["train", "digits-lt", "--resume", *TINY]) == 0
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["digits-lt", "digits-lt-of-somebody"]


def test_test_prints_the_metrics_again(trained, capsys):
    line = json.loads((trained / "results.jsonl").read_text())
    assert main(["test", str(trained)]) == 0
    assert f"{100 * line['metrics']['accuracy']:.1f}" in capsys.readouterr().out
    assert main(["test", str(trained), "--part", "val"]) == 0
    with np.load(trained / "predictions.npz") as saved:
        assert f"{100 * float(saved['val_balanced_accuracy']):.1f}" in capsys.readouterr().out
    metrics, _ = evaluate(trained, part="val")
    with np.load(trained / "predictions.npz") as saved:
        for name, value in metrics.items():
            assert value == pytest.approx(float(saved[f"val_{name}"])), name


def test_other_images_are_tested_by_the_names_or_numbers_of_their_folders(trained_on_images, tmp_path, capsys):
    run, data = trained_on_images / "run", trained_on_images / "data"
    line = json.loads((run / "results.jsonl").read_text())
    expected, table = evaluate_folder(run, data / "test")
    assert expected == pytest.approx(line["metrics"], abs=1e-6)
    for number, name in enumerate(sorted(path.name for path in (data / "test").iterdir())):
        shutil.copytree(data / "test" / name, tmp_path / "numbered" / str(number))
    assert evaluate_folder(run, tmp_path / "numbered") == (expected, table)
    shutil.rmtree(tmp_path / "numbered" / "0")
    fewer, _ = evaluate_folder(run, tmp_path / "numbered")
    assert fewer["balanced_accuracy"] == pytest.approx(sum(row["accuracy"] for row in table[1:]) / (len(table) - 1))
    assert main(["test", str(run), "--images", str(data / "test")]) == 0
    assert f"{100 * expected['accuracy']:.1f}" in capsys.readouterr().out


def test_a_relation_at_test_does_not_see_other_images_class_by_class(trained_on_images, tmp_path, monkeypatch):
    from setwise import inference

    seen = []
    whole = inference.make_loader
    monkeypatch.setattr(
        inference, "make_loader", lambda *args, **options: seen.append(options) or whole(*args, **options)
    )
    recipe = yaml_file.read(trained_on_images / "run" / "recipe.yaml")
    for relate in (False, True):
        told = recipe.override({"relation.relate_at_test": relate, "data.batch_size": 5})
        evaluate_folder(trained_on_images / "run", trained_on_images / "data" / "test", recipe=told)
    assert [(options["mixed"], options["batch_size"]) for options in seen] == [(False, 5), (True, 5)]
    copy = shutil.copytree(trained_on_images / "run", tmp_path / "run")
    yaml_file.write(recipe.override({"relation.relate_at_test": True}), copy / "recipe.yaml")
    inference.predict(copy, [trained_on_images / "data" / "test"])
    assert seen[-1]["mixed"]


def test_other_images_of_other_classes_are_a_sentence(trained_on_images, tmp_path, capsys):
    run = str(trained_on_images / "run")
    (tmp_path / "zebra").mkdir()
    assert main(["test", run, "--images", str(tmp_path)]) == 2
    said = "names of the run's 4 classes .* or their numbers from 0, but there is 'zebra'"
    assert re.search(said, " ".join(capsys.readouterr().err.split()))
    (tmp_path / "zebra").rename(tmp_path / "owl")
    assert main(["test", run, "--images", str(tmp_path)]) == 2
    assert "no image in the class folders" in " ".join(capsys.readouterr().err.split())
    assert main(["test", run, "--images", str(tmp_path / "nowhere")]) == 2
    assert "There is no folder" in capsys.readouterr().err
    assert main(["test", run, "--images", str(tmp_path), "--part", "val"]) == 2
    assert "leave out --part val" in " ".join(capsys.readouterr().err.split())


def test_compare_prints_the_verdict_and_where_the_report_is(tmp_path, capsys):
    out = tmp_path / "compare"
    assert main(["compare", "digits-lt", "--seeds", "2", "--workers", "1", "--out", str(out), *TINY]) == 0
    printed = capsys.readouterr().out
    assert "2 seeds" in printed
    assert str(out) in "".join(printed.split())
    assert (out / "report.html").is_file()
    assert (out / "comparison.png").is_file()
    assert main(["compare", "digits-lt", "--out", str(out), *TINY]) == 1  # never overwrites
    assert main(["compare", str(out), "--resume", "--seeds", "5"]) == 2  # the plan stands
    assert main(["compare", str(out), "--resume"]) == 0
    assert main(["report", str(out)]) == 0


def test_plain_learns_a_stated_accuracy_and_so_does_related(tmp_path):
    for variant in ("plain", "related"):
        out = tmp_path / variant
        assert main(["train", "digits-lt", "--variant", variant, "--out", str(out), "--trainer.logger", "csv"]) == 0
        metrics = json.loads((out / "results.jsonl").read_text())["metrics"]
        assert metrics["many"] > 0.9
        assert metrics["adjusted_balanced_accuracy"] > 0.75
