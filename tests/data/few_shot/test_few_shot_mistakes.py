"""What is wrong with files and lists is said in one sentence."""

import json
import os
import warnings
import zipfile
from pathlib import Path

import few_shot_fakes
import pytest
import torch
from PIL import Image

from setwise.data.few_shot import FEW_SHOT, read_squashed
from setwise.data.few_shot.csv_lists import read_csv
from setwise.data.few_shot.omniglot import VAL_ALPHABETS
from setwise.data.few_shot.trees import ZipMembers, open_tree
from setwise.data.images import ImageFiles, PackedImages, StackedImages
from setwise.errors import DataError, InvalidInput, MissingFile


def load(name: str, root: Path, layout: str | None = None, *, spoil=None, **options):
    written = few_shot_fakes.write(name, root, layout)
    if spoil is not None:
        spoil(Path(str(written["root"])))
    return FEW_SHOT[name].load(seed=0, **(written | options))


def one_sentence(info: pytest.ExceptionInfo) -> str:
    assert "\n" not in str(info.value)
    return str(info.value)


@pytest.mark.parametrize("name", FEW_SHOT)
def test_no_root_and_a_wrong_root_are_refused(name, tmp_path):
    with pytest.raises(InvalidInput, match="needs `root`"):
        FEW_SHOT[name].load(seed=0)
    with pytest.raises(MissingFile, match="is not a folder"):
        FEW_SHOT[name].load(seed=0, root=str(tmp_path / "nowhere"))
    with pytest.raises((MissingFile, DataError)):
        FEW_SHOT[name].load(seed=0, root=str(tmp_path))


@pytest.mark.parametrize("name", [name for name in FEW_SHOT if name != "meta-dataset"])
def test_a_size_below_1_is_refused(name, tmp_path):
    with pytest.raises(InvalidInput, match=r"`image_size` \(0\) must be at least 1"):
        load(name, tmp_path, image_size=0)


def lists(**changes):
    def spoil(root: Path) -> None:
        content = json.loads((root / "splits.json").read_text()) | changes
        (root / "splits.json").write_text(json.dumps({key: value for key, value in content.items() if value != "gone"}))

    return spoil


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"test": ["train-00"]}, "'train-00' is both in train and in test"),
        ({"test": ["test-00", "unicorn"]}, "classes of test that have no folder of images in .*: 'unicorn'"),
        ({"test": ["../train-00"]}, r"classes of test that have no folder of images in .*: '\.\./train-00'"),
        ({"test": ["test-00", "test-00"]}, "names a class of test twice: test-00"),
        ({"val": "gone"}, "has no list of names 'val'"),
        ({"train": "train-00"}, "has no list of names 'train'"),
        ({"train": [3]}, "has no list of names 'train'"),
    ],
)
def test_lists_of_classes_that_do_not_fit_are_refused(tmp_path, change, message):
    with pytest.raises(DataError, match=message) as info:
        load("class-folders", tmp_path, spoil=lists(**change))
    one_sentence(info)


@pytest.mark.parametrize(
    ("content", "message"), [("{", "cannot be read as JSON"), ("[]", "holds a list"), ("[" * 100_000, "as JSON")]
)
def test_what_is_no_json_object_is_refused(tmp_path, content, message):
    with pytest.raises(DataError, match=message):
        load("class-folders", tmp_path, spoil=lambda root: (root / "splits.json").write_text(content))


def test_folders_that_are_in_no_list_are_left_out_and_named(tmp_path):
    splits = load("class-folders", tmp_path, spoil=lists(test=["test-00", "test-01"]))
    assert splits.test.class_names == ("test-00", "test-01")
    assert "left out: 4 (test-02, test-03, test-04, test-05)" in splits.notes[0]


def test_class_folders_without_lists_need_a_folder_of_every_part(tmp_path):
    with pytest.raises(MissingFile, match=r"no splits.json .* and no folder val/"):
        load("class-folders", tmp_path, "folders of parts", spoil=lambda root: (root / "val").rename(root / "dev"))


def test_a_class_folder_without_images_is_named(tmp_path):
    with pytest.raises(DataError, match=r"No image in .*test for class 'hollow'"):
        load("class-folders", tmp_path, "folders of parts", spoil=lambda root: (root / "test" / "hollow").mkdir())


def test_lists_for_another_purpose_do_not_split_the_birds(tmp_path):
    write = lambda root: (root / "CUB_200_2011" / "splits.json").write_text('{"seen": [], "unseen": []}')  # noqa: E731
    splits = load("cub", tmp_path, spoil=write)
    assert splits.train.num_classes == 11
    assert "splits.json has no list 'train'" in splits.notes[0]


def spoil_csv(text: str, *, whole: bool = False):
    def spoil(root: Path) -> None:
        file = root / "test.csv"
        file.write_text(text if whole else file.read_text() + text)

    return spoil


@pytest.mark.parametrize("layout", ["zip file", "folder"])
@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("test/test-00/none.png,test-00", "test/test-00/none.png is not in "),
        ("../secret.png,test-00", r"\.\./secret.png must be relative to .* and must not leave it"),
        ("/etc/secret.png,test-00", "/etc/secret.png must be relative to"),
        ("test/test-00/0200.png,test-01", "test/test-00/0200.png is listed twice"),
        ("train/train-00/0000.png,test-01", "train/train-00/0000.png is listed twice"),
        ("test/test-00/0200.png", "line 26: expected filename,label"),
    ],
)
def test_lines_that_name_no_image_or_one_outside_are_refused(tmp_path, layout, line, message):
    with pytest.raises(DataError, match=message) as info:
        load("tinyimagenet-few-shot", tmp_path, layout, spoil=spoil_csv(line))
    one_sentence(info)


@pytest.mark.parametrize("text", ["", "filename,label\n", "path,class\na.png,3\n", "a\0b\n\xff"])
def test_what_is_no_list_is_refused(tmp_path, text):
    with pytest.raises(DataError, match=r"must begin with the line filename,label|cannot be read as a list"):
        load("tinyimagenet-few-shot", tmp_path, spoil=spoil_csv(text, whole=True))


def test_bytes_that_are_no_text_are_refused(tmp_path):
    (tmp_path / "train.csv").write_bytes(b"filename,label\n\xff\xfe,3\n")
    with pytest.raises(DataError, match="cannot be read as a list"):
        read_csv(tmp_path / "train.csv")


def test_a_missing_list_is_named(tmp_path):
    with pytest.raises(MissingFile, match=r"val.csv is missing"):
        load("miniimagenet", tmp_path, spoil=lambda root: (root / "val.csv").unlink())


@pytest.mark.parametrize("cache", ["memory", "auto"])
def test_an_image_that_cannot_be_read_is_named(tmp_path, cache):
    spoil = lambda root: (root / "train-00" / "0001.png").write_bytes(b"no image")  # noqa: E731
    with pytest.raises(DataError, match=r"train-00/0001.png cannot be read as an image") as info:
        load("class-folders", tmp_path, spoil=spoil, cache=cache)
    assert one_sentence(info).endswith("or leave it out of the set.")


@pytest.mark.parametrize("member", ["../outside.png", "/outside.png", "images_background/../../x.png", "C:\\x.png"])
def test_an_archive_with_a_member_that_leads_out_of_its_folder_is_refused(tmp_path, member):
    def spoil(root: Path) -> None:
        with zipfile.ZipFile(root / "omniglot-py" / "images_background.zip", "a") as archive:
            archive.writestr(member, b"x")

    with pytest.raises(DataError, match="members that lead out of its folder"):
        load("omniglot", tmp_path, spoil=spoil)


def test_a_damaged_archive_is_named(tmp_path):
    for content in (b"", b"PK\x05\x06", b"no archive at all"):
        (tmp_path / "images.zip").write_bytes(content)
        with pytest.raises(DataError, match=r"images.zip cannot be read as a zip archive"):
            open_tree(tmp_path / "images.zip")


def archive_of(root: Path, *, number: int = 3) -> Path:
    with zipfile.ZipFile(root / "a.zip", "w") as archive:
        for place in range(number):
            archive.writestr(f"a/{place}.png", few_shot_fakes.encoded(0, place))
    return root / "a.zip"


def test_a_damaged_member_is_named_and_the_others_are_read(tmp_path):
    file = archive_of(tmp_path)
    content = bytearray(file.read_bytes())
    content[60] ^= 1
    file.write_bytes(content)
    taken = PackedImages(ZipMembers(file, ["a/0.png", "a/1.png", "a/9.png"])).take(torch.arange(3))
    assert isinstance(taken[0], DataError)
    assert "a.zip/a/0.png cannot be read from the archive" in str(taken[0])
    assert isinstance(taken[1], torch.Tensor)
    assert "a.zip/a/9.png cannot be read from the archive" in str(taken[2])


def test_a_member_that_unpacks_to_more_than_an_image_has_is_not_unpacked(tmp_path):
    with (
        zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("a/0.png", "w") as file,
    ):
        for _ in range(65):
            file.write(bytes(2**20))
    with pytest.raises(DataError, match="has 68,157,440 bytes, and an image at most 67,108,864"):
        ZipMembers(tmp_path / "a.zip", ["a/0.png"]).read(0)


def test_a_forked_process_opens_an_archive_for_itself(tmp_path):
    members = ZipMembers(archive_of(tmp_path, number=2), ["a/0.png", "a/1.png"])
    first = members.read(0)
    pid = os.fork()
    if not pid:
        os._exit(members.read(0) != first or members._open[0] != os.getpid())
    assert os.waitpid(pid, 0)[1] == 0
    assert members.read(0) == first


def test_alphabets_of_two_parts_of_the_set_are_refused_in_one_list(tmp_path):
    def spoil(root: Path) -> None:
        (root / "splits.json").write_text(json.dumps({"train": ["Greek", "Angelic"], "val": [], "test": ["Oriya"]}))

    with pytest.raises(DataError, match="Alphabets of train must be all among the background or all among"):
        load("omniglot", tmp_path, spoil=spoil)


def test_a_missing_part_of_omniglot_is_named(tmp_path):
    with pytest.raises(MissingFile, match=r"finds neither images_evaluation.zip nor images_evaluation/"):
        load("omniglot", tmp_path, spoil=lambda root: (root / "omniglot-py" / "images_evaluation.zip").unlink())


def test_a_folder_that_was_unpacked_into_one_of_its_name_has_the_same_alphabets(tmp_path):
    def spoil(root: Path) -> None:
        for part in ("images_background", "images_evaluation"):
            (root / part).rename(root / "inner")
            (root / part).mkdir()
            (root / "inner").rename(root / part / part)

    plain = load("omniglot", tmp_path / "plain", "folders")
    doubled = load("omniglot", tmp_path / "doubled", "folders", spoil=spoil)
    assert doubled.train.class_names == plain.train.class_names
    assert doubled.train.superclasses == plain.train.superclasses


def test_one_coloured_drawing_makes_all_of_three_channels(tmp_path):
    def spoil(root: Path) -> None:
        every = sorted((root / "images_background").rglob("*.png"))
        drawing = next(path for path in every if path.parent.parent.name not in VAL_ALPHABETS)
        with Image.open(drawing) as image:
            side = image.size
        Image.new("RGB", side, (200, 0, 0)).save(drawing)

    images = load("omniglot", tmp_path, "folders", spoil=spoil).train.images
    assert isinstance(images, StackedImages)
    assert images.tensor.shape[1] == 3


def test_a_member_that_stands_twice_in_an_archive_is_one_image(tmp_path):
    file = archive_of(tmp_path, number=2)
    names = open_tree(file).names
    with zipfile.ZipFile(file) as archive:
        content = archive.read(names[0])
    with zipfile.ZipFile(file, "a") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        archive.writestr(names[0], content)
    assert open_tree(file).names == names


def test_few_photographs_are_held_as_large_as_they_are(tmp_path, monkeypatch):
    taken = []
    take = ImageFiles.take
    monkeypatch.setattr(ImageFiles, "take", lambda self, places: taken.append(len(places)) or take(self, places))
    for cache in ("memory", "files"):
        pool = load("class-folders", tmp_path / cache, cache=cache, image_size=8).train
        read_squashed(pool.images, torch.arange(len(pool)), 8)
    assert max(taken) == 8
