import pickle

import fakes
import pytest
import torch
from PIL import Image

from setwise.data import DATASETS, cifar
from setwise.errors import DataError, InvalidInput, MissingFile
from setwise.metrics import by_count

NAMES = ("cifar10-lt", "cifar100-lt")


@pytest.mark.parametrize(("name", "largest"), [("cifar10-lt", 10), ("cifar100-lt", 3)])
def test_official_files_are_made_long_tailed_in_label_order(tmp_path, name, largest):
    options = fakes.write(name, tmp_path, "official")
    splits = DATASETS[name].load(seed=0, val_fraction=0.0, **options)
    num_classes, factor = splits.num_classes, options["imbalance_factor"]
    assert splits.train_counts.tolist() == [
        int(largest * (1 / factor) ** (label / (num_classes - 1))) for label in range(num_classes)
    ]
    assert len(splits.val) == 0
    assert any("long-tailed" in note for note in splits.notes)


def test_pixels_labels_and_names_of_official_files_go_together(tmp_path):
    splits = DATASETS["cifar10-lt"].load(seed=0, **fakes.write("cifar10-lt", tmp_path, "official"))
    for split in (splits.train, splits.val, splits.test):
        for place, name in enumerate(split.names):
            label, number = map(int, name.split("/")[1].removesuffix(".png").split("_"))
            assert split.target[place] == label
            expected = torch.from_numpy(fakes.picture(label, number, side=32)).permute(2, 0, 1)
            assert torch.equal(split.images[place], expected)
    assert splits.class_names[3] == "class 03"


def test_the_seed_draws_the_long_tail_from_official_files(tmp_path):
    options = fakes.write("cifar10-lt", tmp_path, "official")
    one, other = (DATASETS["cifar10-lt"].load(seed=seed, **options) for seed in (0, 1))
    assert one.train.names != other.train.names
    assert torch.equal(one.train_counts, other.train_counts)


def test_cifar100_at_imbalance_100_has_35_35_and_30_classes_whatever_validation_takes(tmp_path, monkeypatch):
    fakes.write("cifar100-lt", tmp_path, "official")  # for its class names
    target = torch.arange(50_000) % 100  # 500 images a class, as in the official files
    part = torch.zeros(50_000, 3, 1, 1, dtype=torch.uint8), target, [str(place) for place in range(50_000)]
    monkeypatch.setattr(cifar, "read_part", lambda *_: part)
    for val_fraction in (0.0, 0.1):
        splits = DATASETS["cifar100-lt"].load(root=str(tmp_path), seed=0, val_fraction=val_fraction)
        groups = by_count(splits.group_counts, many=100, few=20)
        assert {name: int(group.sum()) for name, group in groups.items()} == {"many": 35, "medium": 35, "few": 30}
        assert splits.group_counts.sum() == 10_847


def test_folders_keep_all_images_and_classes_in_alphabetical_order(tmp_path):
    splits = DATASETS["cifar10-lt"].load(seed=0, **fakes.write("cifar10-lt", tmp_path))
    assert splits.class_names == tuple(sorted(splits.class_names))
    assert len(splits.train) + len(splits.val) == len(list((tmp_path / "train").rglob("*.jpg")))
    assert (torch.bincount(splits.val.target, minlength=10) == 1).all()
    assert any("of the official 10,000" in note for note in splits.notes)


def test_folders_with_an_imbalance_factor_are_refused(tmp_path):
    options = fakes.write("cifar10-lt", tmp_path)
    with pytest.raises(InvalidInput, match=r"`imbalance_factor` \(100\) must be left out"):
        DATASETS["cifar10-lt"].load(seed=0, imbalance_factor=100, **options)


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_of_neither_layout_says_what_was_expected(tmp_path, name):
    with pytest.raises(MissingFile, match=r"finds neither cifar-1.* nor train/ and test/"):
        DATASETS[name].load(seed=0, root=str(tmp_path))


def test_the_wrong_number_of_classes_is_named(tmp_path):
    options = fakes.write("cifar10-lt", tmp_path)
    with pytest.raises(DataError, match=r"has 100 classes; .*train has 10"):
        DATASETS["cifar100-lt"].load(seed=0, **options)


def test_a_pickle_that_would_run_a_program_is_not_opened(tmp_path):
    options = fakes.write("cifar10-lt", tmp_path, "official")
    (tmp_path / "cifar-10-batches-py" / "data_batch_3").write_bytes(pickle.dumps({"data": print}))
    with pytest.raises(DataError, match=r"data_batch_3 cannot be read .*asks for builtins.print"):
        DATASETS["cifar10-lt"].load(seed=0, **options)


def test_a_missing_official_file_is_named(tmp_path):
    options = fakes.write("cifar10-lt", tmp_path, "official")
    (tmp_path / "cifar-10-batches-py" / "data_batch_2").unlink()
    with pytest.raises(MissingFile, match="data_batch_2 is missing"):
        DATASETS["cifar10-lt"].load(seed=0, **options)


def test_a_file_of_the_other_cifar_is_named(tmp_path):
    options = fakes.write("cifar10-lt", tmp_path, "official")
    fakes.write_python2_pickle(tmp_path / "cifar-10-batches-py" / "test_batch", {b"fine_labels": [1]})
    with pytest.raises(DataError, match=r"test_batch is no official file of cifar10-lt \(KeyError"):
        DATASETS["cifar10-lt"].load(seed=0, **options)


def test_a_meta_file_without_names_is_named(tmp_path):
    options = fakes.write("cifar10-lt", tmp_path, "official")
    fakes.write_python2_pickle(tmp_path / "cifar-10-batches-py" / "batches.meta", {b"num_cases_per_batch": 1})
    with pytest.raises(DataError, match=r"batches.meta is no official file of cifar10-lt \(KeyError"):
        DATASETS["cifar10-lt"].load(seed=0, **options)


def test_corrupt_images_of_folders_are_named_or_skipped(tmp_path):
    options = fakes.write("cifar10-lt", tmp_path)
    broken = sorted((tmp_path / "train" / "class 00").iterdir())[:2]
    for path in broken:
        path.write_bytes(b"")
    with pytest.raises(DataError, match=r"0000.jpg cannot .*; .*0001.jpg cannot .*--data.on-error skip"):
        DATASETS["cifar10-lt"].load(seed=0, **options)
    splits = DATASETS["cifar10-lt"].load(seed=0, on_error="skip", **options)
    assert any(note.startswith("Skipped images: 2 (") for note in splits.notes)
    assert splits.train_counts[0] + (splits.val.target == 0).sum() == 6


def test_image_size_is_what_the_network_will_see(tmp_path):
    options = fakes.write("cifar10-lt", tmp_path)
    assert DATASETS["cifar10-lt"].load(seed=0, image_size=64, **options).train.image_size == 64


def test_an_image_of_another_size_is_refused(tmp_path):
    options = fakes.write("cifar10-lt", tmp_path)
    Image.new("RGB", (40, 32)).save(tmp_path / "test" / "class 00" / "wide.jpg")
    with pytest.raises(DataError, match=r"32x32 ... 40x32 pixels"):
        DATASETS["cifar10-lt"].load(seed=0, **options)
