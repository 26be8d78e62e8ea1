import os
import sys
from pathlib import Path

import fakes
import pytest
import torch
from PIL import Image

from setwise.data import DATASETS
from setwise.errors import DataError, InvalidInput, MissingFile

load = DATASETS["image-folder"].load


def counts(split, num_classes: int = 4) -> list[int]:
    return torch.bincount(split.target, minlength=num_classes).tolist()


def test_three_parts_are_used_as_they_are(tmp_path):
    splits = load(seed=0, **fakes.write("image-folder", tmp_path, "train-val-test"))
    assert (counts(splits.train), counts(splits.val), counts(splits.test)) == ([20, 12, 6, 4], [3] * 4, [4] * 4)
    assert splits.class_names == ("bee", "cat", "dog", "owl")
    assert splits.notes == ()


@pytest.mark.parametrize(("layout", "part", "number"), [("train-val", "val", 3), ("train-test", "test", 4)])
def test_with_two_parts_validation_is_carved_out_of_train(tmp_path, layout, part, number):
    splits = load(seed=0, **fakes.write("image-folder", tmp_path, layout))
    assert counts(splits.test) == [number] * 4
    assert all(name.startswith(f"{part}/") for name in splits.test.names)
    assert counts(splits.val) == [2, 1, 1, 1]
    assert counts(splits.train) == [18, 11, 5, 3]
    assert any("Validation is 10%" in note for note in splits.notes)
    assert any("val part is the test part" in note for note in splits.notes) == (part == "val")


def test_one_folder_is_split_70_10_20_class_by_class(tmp_path):
    fakes.write_classes(tmp_path, {"cat": 100, "dog": 50, "owl": 3, "yak": 1})
    splits = load(seed=0, root=str(tmp_path))
    assert counts(splits.train) == [70, 35, 1, 1]
    assert counts(splits.val) == [10, 5, 1, 0]
    assert counts(splits.test) == [20, 10, 1, 0]


def test_a_class_called_train_does_not_make_a_split(tmp_path):
    fakes.write_classes(tmp_path, {"bus": 5, "train": 5})
    assert load(seed=0, root=str(tmp_path)).class_names == ("bus", "train")


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [
        ("Train", "Val", "Test"),
        ("TRAIN", "valid", "test"),
        ("train", "Validation", "TEST"),
        ("Training", "val", "Testing"),
    ],
)
def test_parts_are_recognised_by_any_of_their_names_in_small_letters_or_large(tmp_path, train, val, test):
    for first, (name, number) in enumerate({train: 5, val: 2, test: 3}.items()):
        fakes.write_classes(tmp_path / name, {"cat": number, "dog": number}, first=100 * first)
    splits = load(seed=0, root=str(tmp_path))
    assert splits.class_names == ("cat", "dog")
    assert (counts(splits.train, 2), counts(splits.val, 2), counts(splits.test, 2)) == ([5, 5], [2, 2], [3, 3])
    assert all(name.startswith(f"{val}/") for name in splits.val.names)


def test_other_class_folders_beside_train_are_refused_by_name(tmp_path):
    options = fakes.write("image-folder", tmp_path)
    for name in ("dev", "holdout"):
        fakes.write_classes(tmp_path / name, {"bee": 1})
    with pytest.raises(DataError, match=r"class folders in dev/, holdout/ beside train/.*val/ or valid/ or valida"):
        load(seed=0, **options)


def test_folders_beside_train_that_hold_no_classes_are_left_alone(tmp_path):
    options = fakes.write("image-folder", tmp_path)
    (tmp_path / "annotations" / "xml").mkdir(parents=True)
    (tmp_path / "annotations" / "xml" / "1.xml").write_text("x")
    fakes.write_classes(tmp_path, {"unlabelled": 3}, first=500)
    assert load(seed=0, **options).class_names == ("bee", "cat", "dog", "owl")


def test_a_ring_of_links_shows_every_image_once(tmp_path):
    fakes.write_classes(tmp_path, {"cat": 6, "dog": 6})
    (tmp_path / "cat" / "again").symlink_to(tmp_path / "cat", target_is_directory=True)
    (tmp_path / "dog" / "elsewhere").symlink_to(tmp_path / "nowhere", target_is_directory=True)
    splits = load(seed=0, root=str(tmp_path))
    assert sum(len(part) for part in (splits.train, splits.val, splits.test)) == 12


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_a_part_that_is_a_link_to_another_is_told(tmp_path):
    fakes.write("image-folder", tmp_path, "train-val")
    (tmp_path / "test").symlink_to("val")
    splits = load(root=str(tmp_path), seed=0)
    number = len(splits.val)
    assert len(splits.test) == number
    assert any(note.startswith(f"Images both in val and in test: {number} (as ") for note in splits.notes)


def test_a_folder_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    fakes.write("image-folder", tmp_path)
    walk = os.walk

    def refused(folder, onerror=None, **options):
        if Path(folder).name == "owl":
            onerror(PermissionError(13, "Permission denied", str(folder)))
        return walk(folder, onerror=onerror, **options)

    monkeypatch.setattr(os, "walk", refused)
    with pytest.raises(DataError, match=r"owl cannot be read: Permission denied"):
        load(root=str(tmp_path), seed=0)


def test_a_class_folder_whose_name_is_no_text_is_refused(tmp_path):
    fakes.write_classes(tmp_path, {"cat": 3, "dog": 3})
    os.mkdir(os.fsencode(tmp_path) + b"/caf\xe9")
    with pytest.raises(DataError, match=r"b'caf\\xe9' of .* has a name that is not UTF-8: rename it"):
        load(seed=0, root=str(tmp_path))


def test_two_folders_of_one_part_are_refused(tmp_path):
    options = fakes.write("image-folder", tmp_path)
    fakes.write_classes(tmp_path / "valid", {"bee": 1}, first=500)
    with pytest.raises(DataError, match=r"has val/, valid/, but a set has one val part"):
        load(seed=0, **options)


@pytest.mark.parametrize("names", [("Val", "test"), ("valid",)])
def test_parts_without_train_are_no_classes(tmp_path, names):
    for first, name in enumerate(names):
        fakes.write_classes(tmp_path / name, {"cat": 3, "dog": 3}, first=100 * first)
    with pytest.raises(DataError, match=rf"has {'/, '.join(sorted(names))}/, but no class folders in a training part"):
        load(seed=0, root=str(tmp_path))


def test_train_and_test_full_of_images_are_no_classes(tmp_path):
    fakes.write_classes(tmp_path, {"Train": 5, "Test": 5})
    with pytest.raises(DataError, match=r"no class folders in a training part. Parts are called train/ or training/"):
        load(seed=0, root=str(tmp_path))


def test_groups_of_a_train_part_made_long_tailed_are_those_of_the_long_tail(tmp_path):
    fakes.write_classes(tmp_path / "train", {"cat": 30, "dog": 40})
    fakes.write_classes(tmp_path / "test", {"cat": 3, "dog": 3}, first=200)
    splits = load(seed=0, root=str(tmp_path), imbalance_factor=9)
    assert splits.group_counts.tolist() == splits.train_counts.tolist() == [4, 36]


def test_train_is_made_long_tailed_on_request(tmp_path):
    fakes.write_classes(tmp_path / "train", {"cat": 30, "dog": 40})
    for part, first in (("val", 100), ("test", 200)):
        fakes.write_classes(tmp_path / part, {"cat": 3, "dog": 3}, first=first)
    splits = load(seed=0, root=str(tmp_path), imbalance_factor=10)
    assert splits.train_counts.tolist() == [4, 40]
    assert counts(splits.val, 2) == [3, 3]
    assert "44 of its 70 images" in splits.notes[-1]


def test_images_in_folders_below_a_class_count_and_other_files_are_ignored(tmp_path):
    fakes.write_classes(tmp_path, {"cat": 4, "dog": 4})
    fakes.write_classes(tmp_path / "cat", {"kittens": 3}, first=50)
    (tmp_path / "cat" / ".hidden.png").write_bytes(b"x")
    (tmp_path / "cat" / "Thumbs.db").write_bytes(b"x")
    (tmp_path / ".cache").mkdir()
    splits = load(seed=0, root=str(tmp_path))
    assert sum(len(split) for split in (splits.train, splits.val, splits.test)) == 11
    assert "Ignored files that are no images: 1." in splits.notes


def test_classes_that_train_lacks_are_named(tmp_path):
    options = fakes.write("image-folder", tmp_path)
    fakes.write_classes(tmp_path / "test", {"yak": 1, "zebra": 1})
    with pytest.raises(DataError, match="Class 'yak', 'zebra' of test is missing in train"):
        load(seed=0, **options)


def test_classes_without_images_are_named_up_to_five(tmp_path):
    options = fakes.write("image-folder", tmp_path, "one-folder")
    for number in range(7):
        (tmp_path / f"x{number}").mkdir()
    with pytest.raises(DataError, match="for class 'x0', 'x1', 'x2', 'x3', 'x4' and 2 more"):
        load(seed=0, **options)


def test_a_class_whose_images_were_all_skipped_is_named(tmp_path):
    fakes.write_classes(tmp_path, {"cat": 4, "dog": 1})
    (tmp_path / "dog" / "0000.png").write_bytes(b"x")
    with pytest.raises(DataError, match="No training image for class 'dog'"):
        load(seed=0, root=str(tmp_path), on_error="skip")


@pytest.mark.parametrize("cache", ["memory", "files"])
def test_images_of_several_sizes_need_an_image_size(tmp_path, cache):
    options = fakes.write("image-folder", tmp_path)
    Image.new("RGB", (20, 30)).save(tmp_path / "train" / "cat" / "large.png")
    with pytest.raises(DataError, match=r"12x12 ... 20x30 pixels.*--data.image-size"):
        load(seed=0, cache=cache, **options)
    assert load(seed=0, cache=cache, image_size=8, **options).train.image_size == 8


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"root": None}, InvalidInput, "--data.root FOLDER"),
        ({"root": "/no/such/folder"}, MissingFile, "/no/such/folder"),
        ({"val_fraction": 0.9}, InvalidInput, r"`val_fraction` \(0.9\) must be below 0.8"),
        ({"val_fraction": -0.5}, InvalidInput, "`val_fraction`"),
        ({"imbalance_factor": 0.1}, InvalidInput, "`imbalance_factor`"),
        ({"imbalance_factor": 0.0}, InvalidInput, r"`imbalance_factor` \(0\) must be 1"),
        ({"imbalance_factor": -5.0}, InvalidInput, r"`imbalance_factor` \(-5\) must be 1"),
    ],
)
def test_wrong_options_are_refused(tmp_path, options, error, message):
    with pytest.raises(error, match=message):
        load(seed=0, **(fakes.write("image-folder", tmp_path, "one-folder") | options))


def test_a_folder_without_class_folders_says_what_was_expected(tmp_path):
    with pytest.raises(DataError, match="no class folders; expected one folder of images per class"):
        load(seed=0, root=str(tmp_path))
