"""``setwise data imagenet-lt`` and its like: what it says, what it checks, and the lists that it makes."""

import json
import shlex
from dataclasses import dataclass, replace
from pathlib import Path

import fakes
import pytest

from setwise.cli import main
from setwise.cli.options import parse_with_recipe
from setwise.data.known_sets import KNOWN_SETS
from setwise.recipes import RECIPES


@dataclass
class _Own:
    """Train."""


@pytest.fixture
def small(tmp_path, monkeypatch):
    """ImageNet-LT of 4 classes and 41 images, as published; its lists lie below its images."""
    options = fakes.write("image-list", tmp_path)
    for part in ("train", "val", "test"):
        Path(options[f"{part}_list"]).rename(tmp_path / "images" / f"ImageNet_LT_{part}.txt")
    sizes = {"train": 21, "val": 8, "test": 12}
    known = replace(KNOWN_SETS["imagenet-lt"], sizes=sizes, num_classes=4, largest=9, smallest=2, groups=(0, 0, 4))
    monkeypatch.setitem(KNOWN_SETS, "imagenet-lt", known)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "images"


def add_line(root, part, line):
    with (root / f"ImageNet_LT_{part}.txt").open("a") as file:
        file.write(f"{line}\n")


@pytest.mark.parametrize("name", KNOWN_SETS)
def test_without_a_folder_it_says_where_everything_is_from(name, capsys):
    assert main(["data", name]) == 0
    said = capsys.readouterr().out
    known = KNOWN_SETS[name]
    for fact in (known.images, known.lists, known.licence, known.source, f"train {known.sizes['train']:,}"):
        assert fact in said
    assert "to check yours: --root DIR" in said
    assert main(["list", "datasets"]) == 0
    assert name in capsys.readouterr().out


def test_what_is_as_published_is_counted_and_the_command_that_trains_it_named(small, capsys):
    assert main(["data", "imagenet-lt", "--root", str(small)]) == 0
    said, known = " ".join(capsys.readouterr().out.split()), KNOWN_SETS["imagenet-lt"]
    assert known.recipe in RECIPES
    assert "21 21 2 to 9 21" in said
    assert "imbalance of train: 4.5 (largest over smallest class); classes: 0 many, 0 medium, 4 few" in said
    assert f"lists and images are as published; to train: setwise train {known.recipe} --data.root {small}" in said
    assert f"--data.val-list {small / 'ImageNet_LT_val.txt'}" in said
    assert main(["data", "imagenet-lt", "--lists", str(small)]) == 0  # lists alone
    assert "21 21 2 to 9 -" in " ".join(capsys.readouterr().out.split())


def test_missing_images_are_counted_and_the_first_are_named(small, capsys):
    for path in sorted((small / "train" / "bee").iterdir()):
        path.unlink()
    assert main(["data", "imagenet-lt", "--root", str(small)]) == 2
    captured = capsys.readouterr()
    assert "21 21 2 to 9 12" in " ".join(captured.out.split())
    assert f"9 of 21 images of ImageNet_LT_train.txt are not below {small} (train/bee/0000.png, " in captured.err
    assert "train/bee/0004.png and 4 more)" in captured.err


def test_another_root_is_told_from_a_few_missing_images(small, capsys):
    assert main(["data", "imagenet-lt", "--root", str(small / "train"), "--lists", str(small)]) == 2
    said = capsys.readouterr().err
    assert f"no image of ImageNet_LT_train.txt lies below {small / 'train'}: the root must be the folder that" in said


@pytest.mark.parametrize(
    ("part", "line", "message"),
    [
        ("train", "train/bee/0000.png 4", "line 22 has label 4, but the 4 classes are 0 to 3"),
        ("val", "val/bee/0100.png 99999999999999999999", "line 9 has label 99999999999999999999, but"),
        ("train", "train/bee/0000.png 0", "images, but the published list 21"),
        ("train", "train/bee", "lines of ImageNet_LT_train.txt that cannot be read: 1 ("),
        ("train", "train/bee/0000.png 0", "images that stand twice in train: 1 (train/bee/0000.png)"),
        ("test", "train/bee/0000.png 0", "images that stand in train and test: 1 (train/bee/0000.png)"),
        ("test", "train/bee/0000.png 0", "has 13 images, but the published list 12"),
        ("test", "../secret.png 0", "1 of 13 images of ImageNet_LT_test.txt are not below"),
    ],
)
def test_a_list_that_is_not_the_published_one_is_a_sentence(small, capsys, part, line, message):
    add_line(small, part, line)
    assert main(["data", "imagenet-lt", "--root", str(small)]) == 2
    assert message in capsys.readouterr().err


def test_a_list_without_some_classes_and_one_that_is_not_there_are_named(small, capsys):
    file = small / "ImageNet_LT_val.txt"
    file.write_text("\n".join(line for line in file.read_text().splitlines() if not line.endswith(" 3")))
    (small / "ImageNet_LT_train.txt").unlink()
    assert main(["data", "imagenet-lt", "--root", str(small)]) == 2
    said = capsys.readouterr().err
    assert "ImageNet_LT_val.txt has no image of 1 of the 4 classes" in said
    assert "the list ImageNet_LT_train.txt is not there (github.com/facebookresearch/classifier-balancing" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["imagenet-lt", "--root", "nowhere"], "`root` of imagenet-lt must be a folder, but nowhere is none"),
        (["imagenet-lt", "--lists", "nowhere"], "`lists` of imagenet-lt must be a folder, but nowhere is none"),
        (["imagenet-lt", "--train-json", "a.json"], "The lists of imagenet-lt are published as they are"),
        (["inaturalist2018", "--train-json", "a.json"], "There is no file of annotations a.json"),
        (["imagenet_lt"], "did you mean 'imagenet-lt'"),
    ],
)
def test_bad_input_is_a_sentence(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert main(["data", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.fixture
def inaturalist(tmp_path, monkeypatch):
    """Annotations and images of three species, as published."""
    folder = tmp_path / "train_val2018"
    number = 0
    for part, counts in {"train": (3, 2, 1), "val": (1, 1, 1)}.items():
        images, annotations = [], []
        for label, count in enumerate(counts):
            (folder / "Aves" / str(label)).mkdir(parents=True, exist_ok=True)
            for _ in range(count):
                path = folder / "Aves" / str(label) / f"{number}.jpg"
                path.write_bytes(b"")
                images.append({"id": number, "file_name": str(path.relative_to(tmp_path))})
                annotations.append({"id": number, "image_id": number, "category_id": label})
                number += 1
        (tmp_path / f"{part}2018.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    known = replace(
        KNOWN_SETS["inaturalist2018"],
        sizes={"train": 6, "val": 3},
        num_classes=3,
        largest=3,
        smallest=1,
        groups=(0, 0, 3),
    )
    monkeypatch.setitem(KNOWN_SETS, "inaturalist2018", known)
    monkeypatch.chdir(tmp_path)
    return ["data", "inaturalist2018", "--train-json", "train2018.json", "--val-json", "val2018.json", "--root", "."]


def test_lists_are_made_of_annotations_checked_and_never_overwritten(inaturalist, tmp_path, capsys):
    assert main([*inaturalist, "--lists", "lists"]) == 0
    said = capsys.readouterr().out
    assert "written lists/iNaturalist18_train.txt: 6 lines of train2018.json" in said
    assert "lists and images are as published; to train: " in said
    name, *words = shlex.split(said.split("to train: setwise train ")[1])
    _, recipe = parse_with_recipe("train", name, _Own, RECIPES[name], words)
    assert (recipe.data.root, recipe.data.train_list) == (".", "lists/iNaturalist18_train.txt")
    assert (recipe.data.val_list, recipe.data.test_list) == (None, "lists/iNaturalist18_val.txt")
    assert recipe.data.normalise == "inaturalist2018"
    train = tmp_path / "lists" / "iNaturalist18_train.txt"
    assert train.read_text().splitlines()[0] == "train_val2018/Aves/0/0.jpg 0"
    (tmp_path / "lists" / "iNaturalist18_val.txt").unlink()
    before = train.read_bytes()
    assert main([*inaturalist, "--lists", "lists"]) == 1
    assert "iNaturalist18_train.txt exists already and is not overwritten" in capsys.readouterr().err
    assert train.read_bytes() == before
    assert not (tmp_path / "lists" / "iNaturalist18_val.txt").exists()


def test_damaged_annotations_leave_no_list(inaturalist, tmp_path, capsys):
    (tmp_path / "val2018.json").write_text('{"images": [')
    assert main([*inaturalist, "--lists", "lists"]) == 2
    assert "val2018.json is not JSON" in capsys.readouterr().err
    assert not (tmp_path / "lists").exists()


def test_annotations_of_another_set_are_said_before_a_list_is_written(inaturalist, tmp_path, capsys):
    inaturalist[inaturalist.index("train2018.json")] = "val2018.json"
    assert main([*inaturalist, "--lists", "lists"]) == 2
    assert "val2018.json has 3 images, but the published train2018.json has 6" in capsys.readouterr().err
    assert not (tmp_path / "lists").exists()


def test_other_sizes_of_classes_are_said_where_their_sum_is_right(small, capsys):
    file = small / "ImageNet_LT_train.txt"
    lines = file.read_text().splitlines()
    place = next(number for number, line in enumerate(lines) if line.endswith(" 0"))
    lines[place] = lines[place][:-1] + "3"
    file.write_text("\n".join(lines) + "\n")
    assert main(["data", "imagenet-lt", "--lists", str(small)]) == 2
    assert "classes of ImageNet_LT_train.txt have" in capsys.readouterr().err


def test_an_archive_is_told_by_its_first_bytes(inaturalist, tmp_path, capsys):
    (tmp_path / "val2018.json").write_bytes(b"\x1f\x8b" + b"0" * 50)
    assert main(inaturalist) == 2
    assert "is an archive: extract it" in capsys.readouterr().err


def test_the_made_lists_are_loaded(inaturalist, tmp_path, capsys):
    from setwise.data import DATASETS

    assert main(inaturalist) == 0
    lists = {"train_list": "iNaturalist18_train.txt", "val_list": "iNaturalist18_val.txt"}
    splits = DATASETS["image-list"].load(root=".", seed=0, cache="files", image_size=8, **lists)
    assert splits.group_counts.tolist() == [3, 2, 1]
    assert len(splits.test) == 3
