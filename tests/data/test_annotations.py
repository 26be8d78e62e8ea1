"""Lists made of annotations in COCO's format: what comes out, and what is refused by name."""

import json

import pytest

from setwise.data.annotations import lines_of, write_list
from setwise.data.image_list import read_list
from setwise.errors import DataError, MissingFile, RunError

IMAGES = [
    {"id": 7, "file_name": "train_val2018/Aves/2/c.jpg", "license": 1},
    {"id": 3, "file_name": "train_val2018/Aves/0/a sea gull.jpg"},
    {"id": 5, "file_name": "train_val2018/Fungi/1/b.jpg"},
]
ANNOTATIONS = [
    {"id": 1, "image_id": 3, "category_id": 0},
    {"id": 2, "image_id": 5, "category_id": 1},
    {"id": 3, "image_id": 7, "category_id": 2},
]


def written(folder, *, images=IMAGES, annotations=ANNOTATIONS):
    file = folder / "val2018.json"
    file.write_text(json.dumps({"info": {}, "images": images, "annotations": annotations, "categories": []}))
    return file


def test_lines_have_the_order_of_the_images_and_the_categories_that_their_annotations_name(tmp_path):
    assert lines_of(written(tmp_path)) == [
        "train_val2018/Aves/2/c.jpg 2",
        "train_val2018/Aves/0/a sea gull.jpg 0",
        "train_val2018/Fungi/1/b.jpg 1",
    ]


def test_a_written_list_is_read_back_and_never_overwritten(tmp_path):
    lines = lines_of(written(tmp_path))
    write_list(lines, tmp_path / "list.txt")
    assert (tmp_path / "list.txt").read_bytes() == "".join(f"{line}\n" for line in lines).encode()
    assert [image.labels for image in read_list(tmp_path / "list.txt").images] == [(2,), (0,), (1,)]
    with pytest.raises(RunError, match="exists already and is not overwritten"):
        write_list([], tmp_path / "list.txt")
    with pytest.raises(RunError, match="cannot be written"):
        write_list([], tmp_path / "no" / "list.txt")


def with_image(**changes):
    return {"images": [IMAGES[0] | changes, *IMAGES[1:]]}


def with_annotation(**changes):
    return {"annotations": [ANNOTATIONS[0] | changes, *ANNOTATIONS[1:]]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (with_image(id="7"), "image 0 of .* has no id or no file_name"),
        (with_image(file_name=None), "image 0 of .* has no id or no file_name"),
        (with_image(id=3), "two images of .* have the id 3"),
        (with_image(id=8), "image 8 of .* has no annotation; an annotation of .* is of image 7, which is not there"),
        (with_image(file_name="a\nb.jpg"), "the path 'a.nb.jpg' in .* cannot stand in a list"),
        (with_image(file_name="photo 7"), "the path 'photo 7' in .* cannot stand in a list"),
        (with_image(file_name="\ud800.jpg"), "cannot stand in a list"),
        (with_annotation(category_id=-1), "annotation 0 of .* has no whole number, 0 or more"),
        (with_annotation(category_id=True), "annotation 0 of .* has no whole number, 0 or more"),
        (with_annotation(image_id=5), "image 5 of .* has two categories, 0 and 1"),
        ({"annotations": []}, 'has no list "annotations"'),
        ({"images": {}}, 'has no list "images"'),
        ({"images": ["a", *IMAGES]}, "image 0 of .* has no id"),
    ],
)
def test_what_no_list_can_say_is_named(tmp_path, changes, message):
    with pytest.raises(DataError, match=message):
        lines_of(written(tmp_path, **changes))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not JSON"),
        (b'{"images": [', "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b"[]", 'has no list "images"'),
        (b"\x1f\x8b\x08", r"is an archive: extract it \(tar -xf val2018.json\)"),
    ],
)
def test_a_damaged_file_is_a_sentence(tmp_path, content, message):
    (tmp_path / "val2018.json").write_bytes(content)
    with pytest.raises(DataError, match=message):
        lines_of(tmp_path / "val2018.json")


def test_a_file_that_is_not_there_is_a_sentence(tmp_path):
    with pytest.raises(MissingFile, match="There is no file of annotations"):
        lines_of(tmp_path / "val2018.json")
