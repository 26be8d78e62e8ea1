"""Contract: what holds for every few-shot set in the table, in every layout it may have on disk."""

import inspect
from dataclasses import fields, replace
from itertools import combinations
from pathlib import Path

import few_shot_fakes
import pytest
import torch

from setwise.data.few_shot import (
    FEW_SHOT,
    EpisodeSampler,
    FewShotSplits,
    Pool,
    classes_of_training,
    make_episode_loader,
)
from setwise.data.loader import make_loader
from setwise.recipes.schema import Data
from setwise.seeds import generator

CASES = [(name, layout) for name in FEW_SHOT for layout in few_shot_fakes.LAYOUTS.get(name, {"no fake": None})]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: "-".join(case))
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict]:
    name, layout = request.param
    assert name in few_shot_fakes.LAYOUTS, f"tests/few_shot_fakes.py cannot write {name} yet"
    return name, few_shot_fakes.write(name, tmp_path_factory.mktemp(name), layout)


@pytest.fixture(scope="module")
def splits(case: tuple[str, dict]) -> FewShotSplits:
    name, options = case
    return FEW_SHOT[name].load(seed=0, **options)


def pools(splits: FewShotSplits) -> dict[str, Pool]:
    return {"train": splits.train, "val": splits.val, "test": splits.test}


def test_every_few_shot_set_has_a_fake():
    assert set(few_shot_fakes.LAYOUTS) == set(FEW_SHOT)


@pytest.mark.parametrize("name", FEW_SHOT)
def test_options_of_a_few_shot_set_are_fields_of_the_recipe(name):
    entry = FEW_SHOT[name]
    options = inspect.signature(entry.load).parameters
    assert {"root", "seed", "image_size", "cache"} <= set(options) <= {"seed", *(field.name for field in fields(Data))}
    assert all(option.kind is option.KEYWORD_ONLY for option in options.values())
    assert all(text and "\n" not in text for text in (entry.summary, entry.licence, entry.source, entry.how_to_get))


def test_no_class_and_no_image_is_in_two_parts(splits):
    for one, other in combinations(pools(splits).values(), 2):
        assert not set(one.class_names) & set(other.class_names)
        assert not set(one.names) & set(other.names)


def test_no_part_is_empty_and_every_class_has_its_images(splits):
    for pool in pools(splits).values():
        assert len(pool.images) == len(pool.target) == len(pool.names) == len(pool)
        assert pool.num_classes >= 5
        assert (pool.counts == few_shot_fakes.PER_CLASS).all()


def test_the_name_of_an_image_says_its_class(splits):
    for pool in pools(splits).values():
        for name, label in zip(pool.names, pool.target.tolist(), strict=True):
            assert pool.class_names[label] in name


def test_loading_twice_is_the_same_whatever_the_seed(case, splits):
    name, options = case
    for one, other in zip(pools(splits).values(), pools(FEW_SHOT[name].load(seed=1, **options)).values(), strict=True):
        assert one.names == other.names
        assert torch.equal(one.target, other.target)
        assert all(torch.equal(one.images[place], other.images[place]) for place in range(len(one)))


@pytest.mark.parametrize("image_size", [None, 7])
def test_images_in_files_and_in_memory_make_the_same_episodes(case, image_size):
    name, options = case
    batches = []
    for cache in ("memory", "files"):
        splits = FEW_SHOT[name].load(seed=0, cache=cache, image_size=image_size, **options)
        pool = splits.test
        assert pool.images.in_memory == (cache == "memory")
        loader = make_episode_loader(
            pool,
            EpisodeSampler(pool),
            episodes=1,
            image_size=image_size or 12,
            mean=splits.mean,
            std=splits.std,
            seed=0,
            train=False,
            num_workers=0,
        )
        batches += list(loader)
    one, other = batches
    assert one.support.shape[1:] == (3, *[image_size or 12] * 2)
    torch.testing.assert_close(one.support, other.support)
    torch.testing.assert_close(one.query, other.query)
    assert torch.equal(one.support_target, other.support_target)


def test_an_episode_of_every_part_can_be_drawn(splits):
    for pool in pools(splits).values():
        episode = EpisodeSampler(pool).draw(generator(0))
        assert torch.equal(pool.target[episode.support], episode.classes[episode.support_target])


def test_normalised_pixels_are_centred(splits):
    images = torch.stack([splits.train.images[place].expand(3, -1, -1) for place in range(len(splits.train))]) / 255
    assert len(splits.mean) == len(splits.std) == 3
    centred = (images.mean((0, 2, 3)) - torch.tensor(splits.mean)) / torch.tensor(splits.std)
    assert centred.abs().max() < 3


def test_training_classes_are_a_classification_set_with_as_many_channels_as_means(splits):
    """Grey sets, too: a trunk that learns them must fit the episodes, whose images have three channels."""
    parts = classes_of_training(splits, seed=0)
    loader = make_loader(
        replace(parts.train, image_size=8),
        batch_size=4,
        transform="none",
        mean=parts.mean,
        std=parts.std,
        seed=0,
        train=True,
        epochs=1,
        num_classes=len(parts.class_names),
    )
    assert next(iter(loader)).image.shape == (4, 3, 8, 8)


def test_characters_have_their_alphabet_as_superclass(tmp_path: Path):
    splits = FEW_SHOT["omniglot"].load(seed=0, **few_shot_fakes.write("omniglot", tmp_path))
    assert set(splits.train.superclasses) == {"Greek", "Latin"}
    assert len(set(splits.val.superclasses)) == 5
    assert all(
        name.startswith(f"{alphabet}/")
        for name, alphabet in zip(splits.test.class_names, splits.test.superclasses, strict=True)
    )
    assert any("2 of the official 20 alphabets" in note for note in splits.notes)


def test_birds_are_split_by_turns_as_in_chen_et_al(tmp_path: Path):
    splits = FEW_SHOT["cub"].load(seed=0, **few_shot_fakes.write("cub", tmp_path))
    number = {part: [int(name[:3]) - 1 for name in pool.class_names] for part, pool in pools(splits).items()}
    assert all(label % 2 == 0 for label in number["train"])
    assert all(label % 4 == 1 for label in number["val"])
    assert all(label % 4 == 3 for label in number["test"])
    assert sum(map(len, number.values())) == 22
    assert "rule of Chen et al." in splits.notes[0]
