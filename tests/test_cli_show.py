"""``setwise show``: what it writes for a run and for weights from elsewhere, and what it refuses."""

import csv
import re
import shutil
import sys
from pathlib import Path

import fakes
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from setwise.cli import main
from setwise.models import PatchConvNet
from setwise.nn import attention_pooling

sys.path.append(str(Path(__file__).parent / "report"))
from html_pages import Page, is_self_contained

TINY = ["--trainer.max-steps", "1", "--trainer.epochs", "1", "--trainer.logger", "csv", "--data.batch-size", "8"]
POOLING = ["--backbone.name", "patchconvnet_s60", "--backbone.options.embed-dim", "16", "--backbone.options.depth", "1"]
SMALL = {"embed_dim": 16, "depth": 1}
OPTIONS = ["--options", "embed_dim=16", "depth=1", "--image-size", "32"]


@pytest.fixture(scope="module")
def there(tmp_path_factory):
    """Two runs, weights of three networks, and a folder of three images, one of them wide."""
    folder = tmp_path_factory.mktemp("show")
    root = str(fakes.write("image-folder", folder / "data")["root"])
    data = ["--data.root", root, "--data.image-size", "32", *TINY]
    assert main(["train", "image-folder", "--out", str(folder / "run"), *data, *POOLING]) == 0
    many = ["--head.name", "per-class", "--relation.name", "none", *POOLING, "--backbone.options.per-class", "true"]
    assert main(["train", "image-folder", "--out", str(folder / "many"), *data, *many]) == 0
    plain = ["--backbone.name", "test_resnet"]
    assert main(["train", "image-folder", "--out", str(folder / "plain"), *data, *plain]) == 0
    (folder / "images").mkdir()
    for number, size in enumerate([(40, 40), (60, 40), (33, 50)]):
        picture = Image.fromarray(fakes.picture(number, 0, side=64)).resize(size)
        picture.save(folder / "images" / f"a {number} <b>$x$.png")
    torch.manual_seed(0)
    save_file(PatchConvNet(**SMALL, num_classes=4, per_class=True).state_dict(), folder / "multi.safetensors")
    torch.save({"model": PatchConvNet(**SMALL, num_classes=3).state_dict()}, folder / "one.pth")
    resnet = attention_pooling(timm.create_model("test_resnet", num_classes=4), example=torch.zeros(2, 3, 64, 64))
    save_file(timm.create_model("test_resnet", num_classes=4).state_dict(), folder / "plain.safetensors")
    torch.save({f"module.{name}": value for name, value in resnet.state_dict().items()}, folder / "resnet.pth")
    Image.new("RGB", (2, 40)).save(folder / "long.png")
    (folder / "names.txt").write_text("bee\ncat <i>\n$dog$_{\nowl\n")
    return folder


def page_of(folder):
    page = Page((folder / "patches.html").read_text())
    assert is_self_contained(page)
    return page


def test_a_run_that_pools_by_attention_is_shown_and_never_overwritten(there, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["show", str(there / "run"), str(there / "images"), "--out", str(out)]) == 0
    assert f"pictures  {out} (3)" in capsys.readouterr().out
    pictures = sorted(path.name for path in out.glob("*.png"))
    assert pictures == [f"{number + 1}-a {number} <b>$x$.png" for number in range(3)]
    assert all(Image.open(path).size[0] > 400 for path in out.glob("*.png"))
    page = page_of(out)
    assert sum(tag == "img" for tag, _ in page.addresses) == 3
    assert "One query pools the patches for all classes" in page.text
    assert page.headings == [str(there / "images" / name[2:]) for name in pictures]
    assert page.rows[1][0] in ("bee", "cat", "dog", "owl")
    before = (out / "patches.html").read_bytes()
    assert main(["show", str(there / "run"), str(there / "images"), "--out", str(out)]) == 1
    assert "nothing is overwritten" in capsys.readouterr().err
    assert (out / "patches.html").read_bytes() == before


def test_without_out_the_pictures_get_a_folder_of_their_own_each_time(there, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    image = str(next((there / "images").iterdir()))
    for _ in range(2):
        assert main(["show", str(there / "run"), image]) == 0
    assert sorted(path.name for path in (tmp_path / "shown").iterdir()) == ["run", "run-2"]


def test_a_run_with_a_query_a_class_has_a_map_a_class(there, tmp_path):
    out = tmp_path / "out"
    assert main(["show", str(there / "many"), str(there / "images"), "--out", str(out)]) == 0
    page = page_of(out)
    assert "Each class has a query of its own" in page.text
    assert {row[0] for row in page.rows} <= {"class", "bee", "cat", "dog", "owl"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--backbone.options.per-class", "true"], "each of which --head.name per-class scores"),
        (["--head.name", "per-class"], "per-class has a feature for each class and image"),
        (["--head.name", "per-class", "--relation.name", "none"], "needs a backbone with a query for each class"),
    ],
)
def test_queries_and_head_of_a_run_fit_each_other_or_it_does_not_start(there, tmp_path, capsys, options, message):
    command = ["train", "image-folder", "--data.root", str(there / "data"), "--data.image-size", "32", *POOLING]
    assert main([*command, "--out", str(tmp_path / "run"), *options]) == 2
    assert message in capsys.readouterr().err


def test_one_query_a_class_gives_a_panel_and_a_colour_a_class(there, tmp_path, capsys):
    out, weights = tmp_path / "out", str(there / "multi.safetensors")
    command = ["show", "--model", "patchconvnet_s60_multi", "--weights", weights, *OPTIONS, "--whole"]
    command += ["--classes", str(there / "names.txt"), "--limit", "2", "--out", str(out), str(there / "images")]
    assert main(command) == 0
    assert "1 further images are left out (--limit)." in capsys.readouterr().out
    page = page_of(out)
    assert "Each class has a query of its own" in page.text
    assert sum(tag == "img" for tag, _ in page.addresses) == 2
    names, values = zip(*(row for row in page.rows if len(row) == 2 and row[0] != "class"), strict=True)
    assert set(names) <= {"bee", "cat <i>", "$dog$_{", "owl"}
    assert len(names) == 6
    assert all(re.fullmatch(r"\d+\.\d", value) for value in values)


def test_other_weights_find_their_model_their_classes_and_the_pool_that_was_put_in(there, tmp_path):
    image = str(next((there / "images").iterdir()))
    for number, command in enumerate(
        (
            ["--model", "patchconvnet_s60", "--weights", str(there / "one.pth"), *OPTIONS],
            ["--model", "test_resnet", "--weights", str(there / "resnet.pth")],
        )
    ):
        out = tmp_path / str(number)
        assert main(["show", image, *command, "--out", str(out), "--top-k", "9"]) == 0
        rows = page_of(out).rows
        assert len(rows) == 1 + (3, 4)[number]
        assert sum(float(row[1]) for row in rows[1:]) == pytest.approx(100, abs=0.3)


def test_without_images_a_run_with_a_relation_shows_what_its_samples_do_to_each_other(there, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["show", str(there / "run"), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "mean absolute gradient of a sample's loss on the other samples' features, by its class: " in said
    written = {path.name for path in out.iterdir()}
    assert written == {"gradient.png", "attention.png", "gradient-between.png", "influence.csv", "influence.html"}
    page = Page((out / "influence.html").read_text())
    assert is_self_contained(page)
    assert sum(tag == "img" for tag, _ in page.addresses) == 3
    table = list(csv.DictReader((out / "influence.csv").open()))
    assert {row["class"] for row in table} == {"bee", "cat", "dog", "owl"}
    counts = [int(row["train_images"]) for row in table]
    assert counts == sorted(counts, reverse=True)
    assert [float(row["gradient"]) > 0 for row in table if row["gradient"]] == [True] * 4
    again = tmp_path / "again"
    assert main(["show", str(there / "run"), "--out", str(again), "--batches", "1000"]) == 0
    assert (again / "influence.csv").read_bytes() == (out / "influence.csv").read_bytes()
    assert main(["show", str(there / "run"), "--out", str(tmp_path / "one"), "--batches", "1"]) == 0
    few = list(csv.DictReader((tmp_path / "one" / "influence.csv").open()))
    assert 0 < sum(int(row["images"]) for row in few) < sum(int(row["images"]) for row in table)
    assert main(["show", str(there / "run"), "--out", str(tmp_path / "train"), "--part", "train"]) == 0
    assert "training part, augmented as in training" in (tmp_path / "train" / "influence.html").read_text()


def test_a_control_reaches_nobody_and_other_classes_are_refused(there, tmp_path, capsys):
    shutil.copytree(there / "run", tmp_path / "control")
    recipe = tmp_path / "control" / "recipe.yaml"
    recipe.write_text(re.sub(r"attend: all", "attend: self", recipe.read_text()))
    out = tmp_path / "out"
    assert main(["show", str(tmp_path / "control"), "--out", str(out)]) == 0
    assert "the control" in (out / "influence.html").read_text()
    table = list(csv.DictReader((out / "influence.csv").open()))
    assert all(float(row["gradient"]) == 0 for row in table if row["gradient"])
    fakes.write_classes(tmp_path / "other", {"ant": 20, "cat": 20}, side=32)
    capsys.readouterr()
    assert main(["show", str(there / "run"), "--root", str(tmp_path / "other"), "--out", str(tmp_path / "no")]) == 2
    assert "was trained on 4 classes (bee, cat, dog ...), but the data has 2" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()


ONE = "--model patchconvnet_s60 --weights {there}/one.pth"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "Name a run folder and images"),
        ("{there}/many", "has no relation (relation.name none)"),
        ("{there}/run --batches 0", "`batches` must be at least 1"),
        ("{there}/run --root nowhere", "nowhere"),
        ("{there}/run --part tests", "invalid choice"),
        ("{there}/plain {there}/images", "test_resnet, does not pool by attention"),
        ("nowhere {there}/images", "There is no run folder nowhere"),
        ("image-folder {there}/images", "is a recipe, and only what is trained"),
        ("{there}/images {there}/images", "is no run folder"),
        ("{there}/run {there}/nothing.png", "There is no image or folder"),
        ("{there}/run {there}/names.txt", "names.txt cannot be read as an image"),
        ("{there}/run {there}/long.png --whole", "is 40 x 2 pixels, too long to be shown whole"),
        ("{there}/run {there}/images --top-k 0", "`top-k` must be at least 1"),
        ("{there}/run {there}/images --pool other", "There is no AttentionPool 'other'"),
        ("{there}/run {there}/images --grid 3x3", "--grid takes HEIGHT,WIDTH"),
        ("{there}/run {there}/images --grid 9,9", "what is pooled is a map of"),
        ("{there}/run {there}/images --pool-heads 2", "--pool-heads belong to --model"),
        (f"{{there}}/images {ONE} --pool-heads 2", "of patchconvnet_s60 it is --options num_heads=2"),
        ("{there}/run {there}/images --layer 3", "`layer` must be one of the 1 layers"),
        ("{there}/run {there}/images --classes x", "--classes belong to --model"),
        ("{there}/images --model patchconvnet_s60", "--model needs its weights"),
        ("{there}/images --model patchconvnet_s6O --weights {there}/one.pth", "Nearest: patchconvnet_s60"),
        ("{there}/images --model patchconvnet_s60 --weights {there}/no.pth", "There is no weights file"),
        ("{there}/images --model patchconvnet_s60 --weights {there}/names.txt", "cannot be read as weights"),
        ("{there}/images --model test_resnet --weights {there}/one.pth", "is not of test_resnet"),
        ("{there}/images --model test_resnet --weights {there}/plain.safetensors", "does not pool by attention"),
        (f"{{there}}/images {ONE} --options x", "NAME=VALUE"),
        (f"{{there}}/images {ONE} --options depth=1", "is not of patchconvnet_s60"),
        (f"{{there}}/images {ONE} {' '.join(OPTIONS)} --classes {{there}}/names.txt", "4 classes, but patchconvnet"),
        (f"{{there}}/images {ONE} {' '.join(OPTIONS)} --classes {{there}}/none.txt", "There is no file of class names"),
    ],
)
def test_what_cannot_be_shown_is_one_sentence_and_leaves_nothing(
    there, tmp_path, monkeypatch, capsys, arguments, message
):
    monkeypatch.chdir(tmp_path)
    assert main(["show", *arguments.format(there=there).split()]) == 2
    captured = capsys.readouterr()
    assert message in " ".join((captured.err + captured.out).replace("│", " ").split())
    assert not list(tmp_path.iterdir())
