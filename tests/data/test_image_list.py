import shutil
from pathlib import Path

import fakes
import pytest
import torch
from PIL import Image

from setwise.build import build_data
from setwise.data import DATASETS
from setwise.data.image_list import parse_line, read_lists
from setwise.errors import DataError, InvalidInput, MissingFile
from setwise.recipes import RECIPES

load = DATASETS["image-list"].load


def one_more(options: dict, image: str) -> bytes:
    """Path of a copy of an image, which no line names."""
    copy = Path(image).with_name("copy.png")
    shutil.copy(Path(options["root"]) / image, Path(options["root"]) / copy)
    return str(copy).encode()


def add_line(options: dict, part: str, line: bytes) -> int:
    """Append a line to a list and return its number."""
    file = Path(options[f"{part}_list"])
    content = file.read_bytes()
    file.write_bytes(content + line + b"\n")
    return content.count(b"\n") + 1


def test_lists_are_read_in_order(tmp_path):
    splits = load(seed=0, **fakes.write("image-list", tmp_path))
    assert splits.train_counts.tolist() == [9, 6, 4, 2]
    assert splits.test.names[0] == "test/bee/0200.png"
    assert splits.test.target.tolist() == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
    assert splits.class_names == ("0", "1", "2", "3")


def test_a_mark_of_byte_order_belongs_to_no_path(tmp_path):
    options = fakes.write("image-list", tmp_path)
    plain = load(seed=0, **options)
    file = tmp_path / "train.txt"
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert load(seed=0, **options).train.names == plain.train.names


def test_several_labels_become_a_row_of_zeros_and_ones(tmp_path):
    splits = load(seed=0, **fakes.write("image-list", tmp_path, "several-labels"))
    assert splits.test.names[1] == "test/bee/0201.png"
    assert splits.test.target[1].tolist() == [1, 1, 0, 0]
    assert splits.test.target[0].tolist() == [1, 0, 0, 0]
    assert splits.test.target.dtype == torch.float32


@pytest.mark.parametrize("layout", ["one-label", "several-labels"])
def test_without_other_lists_validation_and_test_are_held_out(tmp_path, layout):
    options = fakes.write("image-list", tmp_path, layout)
    alone = load(seed=0, **(options | {"val_list": None, "test_list": None}))
    assert min(len(alone.train), len(alone.val), len(alone.test)) > 0
    assert len(alone.train) + len(alone.val) + len(alone.test) == 21
    two = load(seed=0, **(options | {"test_list": None}))
    assert two.test.names[0].startswith("val/")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"train/bee/0000.png", "expected \"path label\", found 'train/bee/0000.png'"),
        (b"train/bee/0000.png bee", 'expected "path label"'),
        (b"train/bee/0000.png -1", "label -1 is negative"),
        (b"train/bee/0000.png 1 2", "2 labels; several need --data.multi-label True"),
        (b"train/bee/none.png 1", "none.png is missing"),
        (b"\xff\xfe 1", "can't decode"),
        (b"/etc/hostname 1", "must be relative to the root"),
        (b"../secret.png 1", "must be relative to the root"),
        (b"train/../../secret.png 1", "must be relative to the root"),
        (rb"..\..\secret.png 1", "must be relative to the root"),
        (rb"c:\secret.png 1", "must be relative to the root"),
    ],
)
def test_a_bad_line_is_named_with_its_number_or_skipped(tmp_path, line, message):
    options = fakes.write("image-list", tmp_path)
    (tmp_path / "secret.png").write_bytes(b"x")
    number = add_line(options, "train", line)
    with pytest.raises(DataError, match=rf"train.txt line {number}: ") as info:
        load(seed=0, **options)
    assert message in str(info.value)
    splits = load(seed=0, on_error="skip", **options)
    assert splits.train_counts.tolist() == [9, 6, 4, 2]
    assert splits.notes[-1].startswith("Skipped lines: 1 (")


def test_a_link_that_leads_out_of_the_root_is_not_followed(tmp_path):
    options = fakes.write("image-list", tmp_path)
    outside = tmp_path / "outside"
    fakes.write_classes(outside, {"cat": 1})
    (tmp_path / "images" / "link.png").symlink_to(outside / "cat" / "0000.png")
    (tmp_path / "images" / "linked").symlink_to(outside)
    add_line(options, "train", b"link.png 1")
    add_line(options, "train", b"linked/cat/0000.png 1")
    with pytest.raises(DataError, match=r"link.png leads out .*; .*linked/cat/0000.png leads out"):
        load(seed=0, **options)


def test_a_link_inside_the_root_is_fine(tmp_path):
    options = fakes.write("image-list", tmp_path)
    (tmp_path / "images" / "link.png").symlink_to(tmp_path / "images" / "train" / "owl" / "0000.png")
    add_line(options, "train", b"link.png 3")
    assert load(seed=0, **options).train_counts.tolist() == [9, 6, 4, 3]


def test_a_label_that_train_lacks_is_out_of_range(tmp_path):
    options = fakes.write("image-list", tmp_path)
    number = add_line(options, "test", one_more(options, "test/bee/0200.png") + b" 4")
    with pytest.raises(DataError, match=rf"test.txt line {number}: label 4 is out of range: train has labels 0 to 3"):
        load(seed=0, **options)


@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_gaps_between_labels_are_named(tmp_path, on_error):
    options = fakes.write("image-list", tmp_path)
    add_line(options, "train", one_more(options, "train/bee/0000.png") + b" 6")
    with pytest.raises(DataError, match="has no image for label 4, 5; "):
        load(seed=0, on_error=on_error, **options)


@pytest.mark.parametrize("layout", ["one-label", "several-labels"])
def test_a_mistyped_huge_label_is_a_gap_and_not_a_full_memory(tmp_path, layout):
    options = fakes.write("image-list", tmp_path, layout)
    add_line(options, "train", one_more(options, "train/bee/0000.png") + b" 99999999999999999999")
    with pytest.raises(DataError, match=r"for label 4, 5, 6, 7, 8 and 9999999999999999999\d more"):
        load(seed=0, **options)


@pytest.mark.parametrize(("line", "other"), [("./a.png 0", ""), ("a.png 1", ", with another label")])
def test_a_line_that_names_an_image_again_is_a_bad_one(tmp_path, line, other):
    for name in ("a.png", "b.png"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    (tmp_path / "train.txt").write_text(f"a.png 0\nb.png 1\n{line}\n")
    lists = {"train": tmp_path / "train.txt"}
    with pytest.raises(DataError, match=rf"line 3: .*a.png stands in line 1 already{other}\."):
        read_lists(lists, root=tmp_path, multi_label=False, on_error="raise")
    found, _, notes = read_lists(lists, root=tmp_path, multi_label=False, on_error="skip")
    assert [path.name for path in found["train"].paths] == ["a.png", "b.png"]
    assert "Skipped lines: 1" in notes[0]


def test_a_line_with_an_unknown_label_does_not_cost_the_image_its_good_line(tmp_path):
    options = fakes.write("image-list", tmp_path)
    test = Path(options["test_list"])
    image = test.read_text().splitlines()[0].split()[0]
    test.write_text(f"{image} 99\n{test.read_text()}")
    counts = [len(load(seed=0, on_error="skip", **options).test), len(test.read_text().splitlines()) - 1]
    assert counts[0] == counts[1]


def test_images_in_two_lists_are_told(tmp_path):
    options = fakes.write("image-list", tmp_path)
    add_line(options, "test", b"train/bee/0000.png 0")
    assert any("Images both in train and in test: 1 (" in note for note in load(seed=0, **options).notes)


def test_many_bad_lines_are_counted(tmp_path):
    options = fakes.write("image-list", tmp_path)
    for _ in range(8):
        add_line(options, "train", b"nonsense")
    with pytest.raises(DataError, match=r"line 26: .* and 3 more\."):
        load(seed=0, **options)


def test_an_empty_list_says_so(tmp_path):
    options = fakes.write("image-list", tmp_path)
    Path(options["train_list"]).write_text("\n")
    Path(options["val_list"]).write_text("")
    Path(options["test_list"]).write_text("")
    with pytest.raises(DataError, match="has no image for any label"):
        load(seed=0, **options)


def test_a_missing_list_is_named(tmp_path):
    options = fakes.write("image-list", tmp_path)
    with pytest.raises(MissingFile, match=r"none.txt is not a file"):
        load(seed=0, **(options | {"val_list": str(tmp_path / "none.txt")}))
    with pytest.raises(InvalidInput, match=r"--data.train-list FILE"):
        load(seed=0, **(options | {"train_list": None}))


def test_a_list_is_looked_for_in_the_working_directory_and_then_below_the_root(tmp_path, monkeypatch):
    options = fakes.write("image-list", tmp_path)
    below = Path(options["root"]) / "lists"
    below.mkdir()
    Path(options["train_list"]).rename(below / "tr.txt")
    assert load(seed=0, **(options | {"train_list": "lists/tr.txt"})).train_counts.tolist() == [9, 6, 4, 2]
    (tmp_path / "work" / "lists").mkdir(parents=True)
    (tmp_path / "work" / "lists" / "tr.txt").write_text("train/bee/0000.png 0\n")
    for part in ("val", "test"):
        Path(options[f"{part}_list"]).write_text(f"{part}/bee/0{'val test'.index(part) // 4 + 1}00.png 0\n")
    monkeypatch.chdir(tmp_path / "work")
    assert load(seed=0, **(options | {"train_list": "lists/tr.txt"})).train_counts.tolist() == [1]


def test_a_list_in_neither_place_is_named_with_both(tmp_path, monkeypatch):
    options = fakes.write("image-list", tmp_path)
    monkeypatch.chdir(tmp_path)
    sentence = (
        rf"list none.txt is not a file, neither in the working directory \({tmp_path}\) nor below `root` \(.*images\)"
    )
    with pytest.raises(MissingFile, match=sentence):
        load(seed=0, **(options | {"train_list": "none.txt"}))


def test_paths_may_contain_spaces_and_numbers():
    assert parse_line("my photos 3/a 4.jpg 12\r\n", multi_label=True) == ("my photos 3/a 4.jpg", (12,))


def test_pixels_are_normalised_as_the_recipe_names_or_as_pretrained_weights_expect(tmp_path):
    options = {f"data.{name}": value for name, value in fakes.write("image-list", tmp_path).items()}
    recipe = RECIPES["image-list"].override(options | {"backbone.name": "vit_small_patch16_224"})

    def built(**changes):
        return build_data(recipe.override({name.replace("__", "."): value for name, value in changes.items()}))

    imagenet, expected_by_the_weights = (0.485, 0.456, 0.406), (0.5, 0.5, 0.5)
    assert built().mean == built(backbone__pretrained=True, data__normalise="imagenet").mean == imagenet
    assert built(data__normalise="inaturalist2018").mean == (0.466, 0.471, 0.380)
    changed = built(backbone__pretrained=True)
    assert changed.mean == changed.std == built(data__normalise="backbone").mean == expected_by_the_weights
    assert changed.notes[-1].startswith("Pixels are normalised as for vit_small_patch16_224's weights: mean 0.5, 0.5")
    assert built(backbone__pretrained=True, backbone__name="resnet18").notes == built().notes
    with pytest.raises(InvalidInput, match="timm names no mean and deviation for cifar_resnet32"):
        built(data__normalise="backbone", backbone__name="cifar_resnet32")
    with pytest.raises(InvalidInput, match=r"`data\.normalise` imagenet is of colour images, but these are grey"):
        build_data(RECIPES["digits-lt"].override({"data.normalise": "imagenet"}))
