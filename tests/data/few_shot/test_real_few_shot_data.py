"""Real few-shot sets, where they are: below $SETWISE_DATA, or in shared/data beside the checkout."""

import csv
import json
import shutil
import zipfile
from itertools import combinations
from pathlib import Path

import pytest
import torch
from few_shot_fakes import DATA
from PIL import Image

from setwise.data.few_shot import FEW_SHOT, EpisodeSampler, FewShotSplits, make_episode_loader
from setwise.data.few_shot.csv_lists import read_csv

LISTS = DATA / "split-lists" / "few-shot"


def cases(found: list[Path], what: str) -> list:
    return found or [pytest.param(None, marks=pytest.mark.skip(reason=f"no {what} below {DATA}"))]


def with_omniglot() -> list[Path]:
    return sorted({file.parent for file in DATA.glob("*/omniglot-py")})


def with_lists() -> list[Path]:
    return sorted(file.parent for file in DATA.glob("*/train.csv") if (file.parent / "images.zip").is_file())


def with_birds() -> list[Path]:
    return sorted(folder.parent for folder in DATA.glob("*/images") if list(folder.glob("001.*Albatross")))


def episode(splits: FewShotSplits, size: int, **fixed) -> None:
    for pool in (splits.train, splits.val, splits.test):
        loader = make_episode_loader(
            pool,
            EpisodeSampler(pool, **fixed),
            episodes=1,
            image_size=size,
            mean=splits.mean,
            std=splits.std,
            seed=0,
            train=False,
            num_workers=0,
        )
        batch = next(iter(loader))
        assert batch.support.shape[1:] == batch.query.shape[1:] == (3, size, size)
        assert batch.support.isfinite().all()
        assert batch.support.mean().abs() < 1


@pytest.mark.parametrize("root", cases(with_omniglot(), "omniglot"), ids=str)
def test_omniglots_parts_are_those_of_meta_dataset(root):
    splits = FEW_SHOT["omniglot"].load(root=str(root), seed=0, image_size=28, cache="files")
    lists = json.loads((root / "splits.json").read_text())
    for part, pool in (("train", splits.train), ("val", splits.val), ("test", splits.test)):
        assert sorted(set(pool.superclasses)) == sorted(lists[part])
        assert (pool.counts == 20).all()
    assert (splits.train.num_classes, splits.val.num_classes) == (883, 81)
    episode(splits, 28)


@pytest.mark.parametrize("root", cases(with_omniglot(), "omniglot"), ids=str)
def test_omniglot_without_lists_has_the_same_parts(root, tmp_path):
    (tmp_path / "omniglot-py").symlink_to((root / "omniglot-py").resolve())
    options = {"seed": 0, "image_size": 28, "cache": "files"}
    with_lists, without = (FEW_SHOT["omniglot"].load(root=str(folder), **options) for folder in (root, tmp_path))
    for part in ("train", "val", "test"):
        assert sorted(getattr(with_lists, part).class_names) == sorted(getattr(without, part).class_names)


@pytest.mark.parametrize("root", cases(with_lists(), "lists in CSV files"), ids=str)
def test_every_line_of_the_lists_is_an_image_of_its_class(root):
    splits = FEW_SHOT["tinyimagenet-few-shot"].load(root=str(root), seed=0, cache="files")
    with zipfile.ZipFile(root / "images.zip") as archive:
        members = set(archive.namelist())
    total = 0
    for part, pool in (("train", splits.train), ("val", splits.val), ("test", splits.test)):
        rows = {row["filename"]: row["label"] for row in csv.DictReader((root / f"{part}.csv").open())}
        labels = (pool.class_names[label] for label in pool.target.tolist())
        assert dict(zip(pool.names, labels, strict=True)) == rows
        assert set(pool.names) <= members
        total += len(pool)
    assert total == len(members)
    episode(splits, 64)


@pytest.mark.parametrize("root", cases(with_birds(), "photographs of CUB"), ids=str)
def test_birds_are_split_without_a_class_in_two_parts(root):
    splits = FEW_SHOT["cub"].load(root=str(root), seed=0, cache="files")
    pools = (splits.train, splits.val, splits.test)
    folders = [path for path in (root / "images").iterdir() if path.is_dir()]
    assert sum(pool.num_classes for pool in pools) == len(folders)
    assert all(not set(one.class_names) & set(other.class_names) for one, other in combinations(pools, 2))
    assert sum(map(len, pools)) == sum(len(list(folder.iterdir())) for folder in folders)
    episode(splits, 32, n_way=2, n_shot=3, n_query=4)


@pytest.mark.parametrize("folder", cases(sorted(LISTS.glob("mini_imagenet")), "lists of miniImageNet"), ids=str)
def test_published_lists_of_miniimagenet_have_64_16_and_20_classes_of_600_images(folder):
    for part, number in (("train", 64), ("val", 16), ("test", 20)):
        classes = read_csv(folder / f"{part}.csv")
        assert len(classes) == number
        assert {len(names) for names in classes.values()} == {600}


@pytest.mark.parametrize(
    "file", cases(sorted(LISTS.glob("meta_dataset/*_splits.json")), "lists of Meta-Dataset"), ids=lambda f: f and f.name
)
def test_published_lists_of_meta_dataset_split_folders_of_their_names_with_underscores_for_slashes(file, tmp_path):
    lists = json.loads(file.read_text())
    picture = tmp_path / "picture.png"
    Image.new("RGB", (2, 2)).save(picture)
    for name in {name for names in lists.values() for name in names}:
        folder = tmp_path / "root" / name.replace("/", "_")
        folder.mkdir(parents=True)
        (folder / "1.png").hardlink_to(picture)
    shutil.copy(file, tmp_path / "root" / "splits.json")
    splits = FEW_SHOT["class-folders"].load(root=str(tmp_path / "root"), seed=0, cache="files")
    numbers = [pool.num_classes for pool in (splits.train, splits.val, splits.test)]
    assert numbers == [len(lists["train"]), len(lists["valid" if "valid" in lists else "val"]), len(lists["test"])]


def test_the_evaluation_episodes_of_omniglot_have_the_sizes_of_their_alphabets():
    """Ten of the twenty alphabets: their means are near those of the reference, which are of all twenty."""
    root = next(iter(with_omniglot()), None)
    if root is None:
        pytest.skip(f"no omniglot below {DATA}")
    pool = FEW_SHOT["omniglot"].load(root=str(root), seed=0, image_size=28, cache="files").test
    alphabets = {name: pool.superclasses.count(name) for name in pool.superclasses}
    expected = torch.tensor([(5 + min(50, size)) / 2 for size in alphabets.values()]).mean()
    sampler = EpisodeSampler(pool)
    ways = [len(sampler.draw(torch.Generator().manual_seed(seed)).classes) for seed in range(1000)]
    assert sum(ways) / len(ways) == pytest.approx(float(expected), rel=0.05)
