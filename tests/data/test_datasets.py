"""Contract: what holds for every data set in the table, in every layout it may have on disk."""

import inspect
from dataclasses import fields
from pathlib import Path

import fakes
import numpy as np
import pytest
import torch
from PIL import Image

from setwise.data import DATASETS, Split, Splits, make_loader
from setwise.data.dataset import count_classes
from setwise.recipes.schema import Data

CASES = [(name, layout) for name in DATASETS for layout in fakes.LAYOUTS.get(name, {"no fake": None})]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: "-".join(case))
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict]:
    name, layout = request.param
    assert name in fakes.LAYOUTS, f"tests/fakes.py cannot write {name} yet"
    return name, fakes.write(name, tmp_path_factory.mktemp(name), layout)


@pytest.fixture(scope="module")
def splits(case: tuple[str, dict]) -> Splits:
    name, options = case
    return DATASETS[name].load(seed=0, **options)


def parts(splits: Splits) -> dict[str, Split]:
    return {"train": splits.train, "val": splits.val, "test": splits.test}


def pictures(split: Split) -> set[bytes]:
    return {split.images[place].numpy().tobytes() for place in range(len(split))}


def same(one: Splits, other: Splits) -> bool:
    return all(
        a.names == b.names and torch.equal(a.target, b.target)
        for a, b in zip(parts(one).values(), parts(other).values(), strict=True)
    )


def test_every_data_set_has_a_fake():
    assert set(fakes.LAYOUTS) == set(DATASETS)


@pytest.mark.parametrize("name", DATASETS)
def test_options_of_a_data_set_are_fields_of_the_recipe(name):
    options = inspect.signature(DATASETS[name].load).parameters
    assert set(options) - {"seed"} <= {field.name for field in fields(Data)}
    assert all(option.kind is option.KEYWORD_ONLY for option in options.values())
    assert all(text for text in (DATASETS[name].summary, DATASETS[name].licence, DATASETS[name].source))
    assert "\n" not in DATASETS[name].summary


def test_no_image_is_in_two_parts(splits):
    names = [name for split in parts(splits).values() for name in split.names]
    assert len(names) == len(set(names))
    train, val, test = (pictures(split) for split in parts(splits).values())
    assert not train & test
    assert not train & val
    assert not val & test


def test_every_class_is_trained_and_no_part_is_empty(splits):
    assert (splits.train_counts > 0).all()
    assert all(len(split) > 0 for split in parts(splits).values())


def test_train_counts_are_the_number_of_images_per_class(splits):
    target = splits.train.target
    for label, count in enumerate(splits.train_counts.tolist()):
        assert count == int((target == label).sum() if target.ndim == 1 else target[:, label].sum())
    assert splits.train_counts.dtype == torch.int64
    assert len(splits.train_counts) == len(splits.class_names) == splits.num_classes


def test_groups_are_counted_before_validation_is_held_out_of_train(splits):
    held = count_classes(splits.val.target, num_classes=splits.num_classes)
    carved = any("Validation is" in note for note in splits.notes)
    assert torch.equal(splits.group_counts, splits.train_counts + (held if carved else 0))
    assert splits.group_counts.dtype == torch.int64


def test_group_counts_do_not_depend_on_what_validation_takes(case, splits):
    name, options = case
    if "val_fraction" in inspect.signature(DATASETS[name].load).parameters:
        other = DATASETS[name].load(seed=0, val_fraction=0.3, **options)
        assert torch.equal(other.group_counts, splits.group_counts)


def test_images_targets_and_names_go_together(case, splits):
    _, options = case
    for split in parts(splits).values():
        assert len(split.images) == len(split.target) == len(split.names) == len(split)
        assert split.target.dtype in (torch.int64, torch.float32)
        for place, file in enumerate(split.names):
            path = Path(options.get("root") or ".") / file
            if not path.is_file():
                continue  # an image of an archive, or of another folder than the root
            shown = torch.from_numpy(np.asarray(Image.open(path).convert("RGB"))).permute(2, 0, 1)
            assert torch.equal(split.images[place].expand_as(shown), shown)
            if path.parent.name in splits.class_names and split.target.ndim == 1:
                assert splits.class_names[int(split.target[place])] == path.parent.name


def test_loading_twice_with_one_seed_is_the_same(case, splits):
    name, options = case
    assert same(splits, DATASETS[name].load(seed=0, **options))


def test_the_test_part_does_not_depend_on_the_seed(case, splits):
    name, options = case
    assert splits.test.names == DATASETS[name].load(seed=1, **options).test.names


@pytest.mark.parametrize("train", [True, False], ids=["train", "evaluation"])
def test_a_batch_is_finite_and_has_the_right_shape(splits, train):
    loader = make_loader(
        splits.train,
        batch_size=5,
        transform="shift",
        mean=splits.mean,
        std=splits.std,
        seed=0,
        train=train,
        num_classes=splits.num_classes,
    )
    batch = next(iter(loader))
    assert batch.image.shape == (5, len(splits.mean), *splits.train.images[0].shape[1:])
    assert batch.image.dtype == torch.float32
    assert batch.image.isfinite().all()
    assert batch.index.dtype == torch.int64
    assert torch.equal(batch.target, splits.train.target[batch.index])


def test_normalised_pixels_are_centred(splits):
    images = torch.stack([splits.train.images[place] for place in range(len(splits.train))]).float() / 255
    centred = (images.mean((0, 2, 3)) - torch.tensor(splits.mean)) / torch.tensor(splits.std)
    assert centred.abs().max() < 2


def test_an_image_in_a_file_and_in_memory_is_the_same(tmp_path: Path):
    options = fakes.write("image-folder", tmp_path)
    memory = DATASETS["image-folder"].load(seed=0, cache="memory", **options)
    files = DATASETS["image-folder"].load(seed=0, cache="files", **options)
    assert memory.train.images.in_memory
    assert not files.train.images.in_memory
    assert all(torch.equal(memory.test.images[place], files.test.images[place]) for place in range(len(memory.test)))
