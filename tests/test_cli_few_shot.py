"""Few-shot runs through the command line: training, evaluation, what they attended to, and collapse."""

import csv
import json
import multiprocessing
import re
import shutil

import fakes
import few_shot_fakes
import numpy as np
import pytest
import torch
from PIL import Image

from setwise.build import build_data, build_episode_data, build_loader
from setwise.cli import main
from setwise.cli.options import find_recipe
from setwise.cli.rank import _measured
from setwise.collapse import embed, examine, gather_images
from setwise.data.few_shot import FEW_SHOT
from setwise.episodes import score_sets
from setwise.errors import DataError, InvalidInput
from setwise.recipes import RECIPES, yaml_file
from setwise.run import evaluate
from setwise.run_folder import RunFolder
from setwise.show.support import attend, support_figure
from setwise.work import load_few_shot, loaders_of


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    root = tmp_path_factory.mktemp("few-shot")
    options = few_shot_fakes.write("omniglot", root / "data")
    smoke = RECIPES["omniglot-ctx"].smoke
    arguments = [f"--{name}={value}" for name, value in smoke.items() if isinstance(value, int)]
    arguments += ["--trainer.logger", "csv", "--backbone.options.width", "4", "--backbone.options.depth", "1"]
    arguments += [f"--data.{name}={value}" for name, value in options.items()]
    assert main(["train", "omniglot-ctx", "--out", str(root / "run"), *arguments]) == 0
    return RunFolder(root / "run"), arguments


def test_results_hold_the_mean_over_test_episodes(finished):
    folder, _ = finished
    line = json.loads(folder.results.read_text())
    with np.load(folder.predictions) as saved:
        accuracies = saved["test/omniglot_episode_accuracy"]
    assert len(accuracies) == 3
    assert line["metrics"]["accuracy"] == pytest.approx(accuracies.mean())
    assert line["variant"] == "plain"
    assert (folder.path / "report.html").is_file()


def test_episodes_that_vary_train_and_are_tested(finished, tmp_path):
    _, arguments = finished
    free = ("n_way", "n_shot", "n_query")
    arguments = [a for a in arguments if not a.startswith(tuple(f"--episodes.{name}" for name in free))]
    arguments += [text for name in free for text in (f"--episodes.{name}", "None")]
    assert main(["train", "omniglot-ctx", "--out", str(tmp_path / "run"), *arguments]) == 0
    with np.load(tmp_path / "run" / "predictions.npz") as saved:
        ways = saved["test/omniglot_num_classes"]
    assert ((ways >= 5) & (ways <= 6)).all()  # characters of one alphabet


def test_evaluating_again_gives_the_same_numbers(finished):
    folder, _ = finished
    line = json.loads(folder.results.read_text())
    metrics, classes = evaluate(folder.path)
    assert metrics == pytest.approx(line["metrics"], abs=1e-6)
    assert classes == []


def test_another_set_is_normalised_as_the_network_was_trained(finished, tmp_path):
    folder, _ = finished
    options = few_shot_fakes.write("class-folders", tmp_path / "data")
    changes = {f"data.{name}": value for name, value in options.items()} | {"data.name": "class-folders"}
    recipe = yaml_file.read(folder.recipe).override(changes)
    _, model = load_few_shot(folder, recipe)
    (loader,) = loaders_of(recipe, build_episode_data(recipe), "test", model).values()
    assert (list(loader.dataset.mean), list(loader.dataset.std)) == (model.mean, model.std)
    metrics, _ = evaluate(folder.path, recipe=recipe)
    assert 0 <= metrics["accuracy"] <= 1


@pytest.mark.parametrize("name", FEW_SHOT)
def test_every_set_says_how_to_get_it_whether_a_recipe_takes_it_or_not(name, capsys):
    assert main(["data", name, "--data.root", "nowhere"]) == 2
    said = capsys.readouterr()
    assert FEW_SHOT[name].licence in said.out
    assert "nowhere" in said.err


def test_several_sets_are_reported_each_and_trained_on_as_named(finished, tmp_path, capsys):
    for name in ("birds", "signs"):
        (tmp_path / "records" / name).mkdir(parents=True)
        few_shot_fakes.write("meta-dataset", tmp_path / "records" / name)
    _, arguments = finished
    arguments = [*(a for a in arguments if not a.startswith("--data.root")), f"--data.root={tmp_path / 'records'}"]
    arguments += ["--backbone.name", "cifar_resnet32", "--data.image-size", "16"]
    assert main(["data", "meta-dataset", f"--data.root={tmp_path / 'records'}"]) == 0
    assert "birds" in capsys.readouterr().out
    assert main(["train", "omniglot-ctx", "--data.name", "meta-dataset", "--episodes.sources", "signs", "--out",
                 str(tmp_path / "run"), *arguments]) == 0  # fmt: skip
    metrics = json.loads((tmp_path / "run" / "results.jsonl").read_text())["metrics"]
    assert metrics["accuracy"] == pytest.approx((metrics["accuracy/birds"] + metrics["accuracy/signs"]) / 2)
    assert main(["train", "omniglot-ctx", "--data.name", "meta-dataset", "--episodes.sources", "sign", "--out",
                 str(tmp_path / "other"), *arguments]) == 2  # fmt: skip
    assert "did you mean 'signs'" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["predict", "export", "audit"])
def test_verbs_of_classifiers_say_what_is_missing(finished, verb, capsys):
    folder, _ = finished
    arguments = [str(folder.path)] if verb != "predict" else [str(folder.path), str(folder.path)]
    assert main([verb, *arguments]) == 2
    assert "few-shot" in capsys.readouterr().err


def test_new_classes_are_predicted_by_a_few_images_of_each(finished, tmp_path, capsys):
    folder, _ = finished
    fakes.write_classes(tmp_path / "known", {"owl": 2, "bee": 3})
    fakes.write_classes(tmp_path / "new", {"x": 3}, first=50)
    support, new = ["--support", str(tmp_path / "known")], str(tmp_path / "new")
    out = tmp_path / "predictions.csv"
    assert main(["predict", str(folder.path), new, *support, "--batch-size", "2", "--out", str(out)]) == 0
    with out.open() as file:
        rows = list(csv.DictReader(file))
    recipe = yaml_file.read(folder.recipe)
    task, model = load_few_shot(folder, recipe)

    def pixels(paths):
        size = (model.image_size, model.image_size)
        images = [np.asarray(Image.open(path).convert("RGB").resize(size, Image.Resampling.BILINEAR)) for path in paths]
        return torch.tensor((np.stack(images) / 255 - model.mean) / model.std).permute(0, 3, 1, 2).float()

    paths = sorted((tmp_path / "known" / "bee").iterdir()) + sorted((tmp_path / "known" / "owl").iterdir())
    queries = sorted((tmp_path / "new" / "x").iterdir())
    with torch.no_grad():
        expected = task(pixels(paths), torch.tensor([0, 0, 0, 1, 1]), pixels(queries)).softmax(1)
    assert [row["path"] for row in rows] == list(map(str, queries))
    for row, [bee, owl] in zip(rows, expected.tolist(), strict=True):
        assert row["class_1"] == ("bee" if bee > owl else "owl")
        assert float(row["probability_1"]) == pytest.approx(max(bee, owl), abs=2e-2)  # of a resize by other code
    assert main(["predict", str(folder.path), new, "--support", str(tmp_path / "nowhere")]) == 2
    assert "There is no folder" in capsys.readouterr().err


def test_a_comparison_with_a_control_is_refused(finished, capsys):
    _, arguments = finished
    assert main(["compare", "omniglot-ctx", *arguments]) != 0
    assert "needs a related recipe" in capsys.readouterr().err


def test_several_sets_take_no_option_that_one_does_not(tmp_path):
    for name in ("birds", "letters"):
        few_shot_fakes.write("meta-dataset", tmp_path / name, "flat")
    recipe = RECIPES["meta-dataset-ctx"].override({"data.root": str(tmp_path), "data.on_error": "skip"})
    with pytest.raises(InvalidInput, match=r"has no option `data\.on_error`"):
        build_episode_data(recipe)


def test_images_that_cannot_be_read_are_left_out_of_sets_trained_as_classes(tmp_path):
    options = few_shot_fakes.write("class-folders", tmp_path)
    broken = sorted(path for path in tmp_path.rglob("train-00/*") if path.is_file())[0]
    broken.write_bytes(b"broken")
    recipe = RECIPES["tinyimagenet-pretrain"].override({"data.name": "class-folders", "data.image_size": 16})
    recipe = recipe.override({f"data.{name}": value for name, value in options.items()})
    with pytest.raises(DataError, match=broken.name):
        build_data(recipe)
    recipe = recipe.override({"data.on_error": "skip", "data.batch_size": 8, "data.num_workers": 0})
    with pytest.raises(InvalidInput, match=r"which --data\.cache memory forbids"):
        build_data(recipe.override({"data.cache": "memory"}))
    splits = build_data(recipe)
    assert splits.notes[-1].startswith("Images stay in their files")
    loaders = [build_loader(recipe, splits, part) for part in ("train", "val", "test")]
    for loader in loaders:
        list(loader)
    assert [broken.name in skipped for loader in loaders for skipped in loader.skipped] == [True]


def test_readers_end_with_the_set_that_they_read(finished):
    folder, _ = finished
    recipe = yaml_file.read(folder.recipe).override({"data.cache": "files", "data.num_workers": 1})
    task, model = load_few_shot(folder, recipe)
    loaders = loaders_of(recipe, build_episode_data(recipe), "test", model)
    (loader,) = loaders.values()
    assert loader.num_workers == 1
    before = set(multiprocessing.active_children())
    next(iter(loader))
    assert len(set(multiprocessing.active_children()) - before) == 1
    score_sets(task, loaders)
    assert set(multiprocessing.active_children()) <= before


class TestRank:
    def test_runs_stand_side_by_side_with_their_intervals(self, finished, tmp_path, capsys):
        folder, _ = finished
        other = tmp_path / "other"
        shutil.copytree(folder.path, other)
        line = json.loads(folder.results.read_text())
        line["metrics"]["accuracy"] = 0.999
        (other / "results.jsonl").write_text(json.dumps(line) + "\n")
        assert main(["rank", str(folder.path), str(other)]) == 0
        out = capsys.readouterr().out
        assert "99.9 ±" in out
        assert "1.00" in out
        assert "2.00" in out

    def test_a_column_is_a_set_with_one_form_of_episodes(self, finished, tmp_path, capsys):
        folder, _ = finished
        recipe = yaml_file.read(folder.recipe)
        runs = [str(folder.path)]
        for name, changes in {
            "more shots": {"episodes.n_shot": 7},
            "mine": {"data.name": "class-folders", "data.root": str(tmp_path / "cats[small]")},
            "yours": {"data.name": "class-folders", "data.root": str(tmp_path / "dogs")},
            "records": {"data.name": "meta-dataset", "data.root": str(tmp_path / "aircraft")},
        }.items():
            runs.append(str(tmp_path / name))
            shutil.copytree(folder.path, runs[-1])
            (tmp_path / name / "recipe.yaml").unlink()
            yaml_file.write(recipe.override(changes), tmp_path / name / "recipe.yaml")
        assert main(["rank", runs[2]]) == 0
        assert "cats[small]" in "".join(capsys.readouterr().out.split())
        columns = [list(_measured(RunFolder(run))) for run in runs]
        assert columns == [
            ["omniglot 2-way 1-shot"],
            ["omniglot 2-way 7-shot"],
            ["cats[small] 2-way 1-shot"],
            ["dogs 2-way 1-shot"],
            ["aircraft 2-way 1-shot"],
        ]

    def test_bad_input_is_a_sentence(self, tmp_path, capsys):
        assert main(["rank"]) == 2
        assert "Name few-shot runs" in capsys.readouterr().err
        assert main(["rank", str(tmp_path)]) == 2
        assert "is no run folder" in capsys.readouterr().err


class TestShow:
    def test_the_support_images_a_query_looked_at_are_a_page(self, finished, tmp_path, capsys):
        folder, _ = finished
        out = tmp_path / "shown"
        assert main(["show", str(folder.path), "--query", "0", "1", "--places", "0,1", "2,3", "--out", str(out)]) == 0
        assert sorted(path.name for path in out.iterdir()) == ["1.png", "2.png", "support.html"]
        assert (out / "support.html").read_text().count("data:image/png") == 2

    def test_weights_are_of_the_querys_class_and_sum_to_one(self, finished):
        folder, _ = finished
        recipe = find_recipe(str(folder.path))
        look = attend(folder.path, recipe, places=[(0, 0), (1, 2)])
        assert look.weights.shape[0] == 2
        np.testing.assert_allclose(look.weights.sum((1, 2, 3)), 1, rtol=1e-5)
        assert look.support.shape[1:] == look.query.shape
        assert len(support_figure(look).axes) == 1 + len(look.support)

    def test_places_are_drawn_by_the_seed(self, finished):
        folder, _ = finished
        recipe = find_recipe(str(folder.path))
        one, two, other = (attend(folder.path, recipe, seed=seed).places for seed in (0, 0, 1))
        assert one == two != other
        assert len(set(one)) == 3

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--episode", "99"], r"`episode` must be from 0 to 2, but it is 99"),
            (["--query", "99"], r"`query` must be from 0 to .* but it is 99"),
            (["--places", "one"], "--places takes ROW,COLUMN"),
            (["--places", "99,0"], r"Position \(99, 0\) is outside"),
            (["picture.png"], "leave out the images"),
        ],
    )
    def test_bad_input_is_a_sentence(self, finished, arguments, message, capsys, tmp_path):
        folder, _ = finished
        assert main(["show", str(folder.path), *arguments, "--out", str(tmp_path / "shown")]) == 2
        assert re.search(message, capsys.readouterr().err)
        assert not (tmp_path / "shown").exists()


class TestCollapse:
    def test_two_runs_stand_side_by_side(self, finished, tmp_path, capsys):
        folder, _ = finished
        out = tmp_path / "shown"
        runs = [str(folder.path), str(folder.path)]
        assert main(["collapse", *runs, "--shown", "2", "--num-neighbours", "3", "--out", str(out)]) == 0
        assert sorted(path.name for path in out.iterdir()) == ["1.png", "2.png", "collapse.html", "collapse.json"]
        numbers = json.loads((out / "collapse.json").read_text())
        assert numbers[0]["test_classes"] == numbers[1]["test_classes"]
        assert 0 <= numbers[0]["training_classes"]["same_class"] <= 1
        assert "Trained on episodes of" in (out / "collapse.html").read_text()
        assert "test" in capsys.readouterr().out

    def test_test_classes_are_numbered_after_the_training_classes(self, finished):
        folder, _ = finished
        gallery = gather_images(folder.path, per_class=2)
        assert torch.bincount(gallery.target).tolist() == [2] * len(gallery.class_names)
        assert 0 < gallery.num_trained < len(gallery.class_names)
        assert len(set(gallery.class_names)) == len(gallery.class_names)

    @pytest.mark.parametrize("batch_moments", [False, True])
    def test_the_network_is_left_as_it_was_and_the_seed_decides(self, finished, batch_moments):
        folder, _ = finished
        gallery = gather_images(folder.path, per_class=3)
        task, _ = load_few_shot(folder, yaml_file.read(folder.recipe))
        before = {name: value.clone() for name, value in task.state_dict().items()}
        features = embed(task, gallery, batch_moments=batch_moments, seed=0)
        assert all(torch.equal(value, before[name]) for name, value in task.state_dict().items())
        assert not any(module.training for module in task.modules())
        assert torch.equal(features, embed(task, gallery, batch_moments=batch_moments, seed=0))
        one, two = (
            examine(folder.path, gallery, num_neighbours=2, shown=3, batch_moments=batch_moments) for _ in range(2)
        )
        assert torch.equal(one.neighbours, two.neighbours)
        assert one.of_test == two.of_test

    def test_a_network_that_sees_nothing_is_at_chance(self, finished, monkeypatch):
        folder, _ = finished
        noise = torch.Generator().manual_seed(0)
        monkeypatch.setattr(
            "setwise.collapse.embed", lambda task, gallery, **how: torch.randn(len(gallery.images), 8, generator=noise)
        )
        gallery = gather_images(folder.path, per_class=130)
        found = examine(folder.path, gallery, num_neighbours=5).of_test
        assert abs(found.from_train - found.chance_from_train) < 0.15

    def test_bad_input_is_a_sentence(self, finished, tmp_path, capsys):
        folder, _ = finished
        assert main(["collapse"]) == 2
        assert "Name at least one few-shot run" in capsys.readouterr().err
        assert main(["collapse", str(tmp_path)]) == 2
        assert "is no run folder" in capsys.readouterr().err
        with pytest.raises(InvalidInput, match=r"`num_neighbours` \(1000000\) must be"):
            examine(folder.path, gather_images(folder.path, per_class=2), num_neighbours=1_000_000)
