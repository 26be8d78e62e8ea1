"""A few-shot recipe -> pools of images, episodes and task."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

from torch import nn

from setwise.build.checks import OF_META, check_numbers, is_taught
from setwise.build.parts import Say, drawn_from, load_data, make_backbone, normalised, optimizer_factory
from setwise.data.few_shot import (
    FEW_SHOT,
    META_DATASET,
    EpisodeLoader,
    EpisodeSampler,
    FewShotSplits,
    Pool,
    find_sources,
    load_sources,
    make_episode_loader,
    one_size,
)
from setwise.data.images import Cache
from setwise.errors import DataError, InvalidInput, choose
from setwise.machine import at_home
from setwise.models import FeatureMap, map_channels
from setwise.nn import CrossTransformer, Prototypical
from setwise.recipes import Recipe, schema
from setwise.tasks import FewShot

__all__ = ["build_episode_data", "build_episode_loader", "build_few_shot", "training_sources"]

PARTS = ("train", "val", "test")
SERVED_BY_THE_LOADER = ("name", "augment", "normalise", "num_workers")
AUGMENT: dict[str, Literal["none", "simclr"]] = {"none": "none", "simclr": "simclr"}


def build_episode_data(recipe: Recipe) -> dict[str, FewShotSplits]:
    """Load the recipe's images, in parts of which none shares a class with another.

    Returns:
        Name of the set -> its pools; several where Meta-Dataset's root holds several.

    Raises:
        InvalidInput: if a field is set that means nothing here.
        SetwiseError: whatever is wrong with the files.
    """
    _check(recipe)
    data = recipe.data
    data_set = choose(data.name, FEW_SHOT, "few-shot data set")
    if data.name == META_DATASET.name and data.root is not None and find_sources(at_home(data.root)):
        sets = load_data(recipe, data_set.name, _load_several, unused=SERVED_BY_THE_LOADER)
    else:
        sets = {data.name: load_data(recipe, data_set.name, data_set.load, unused=SERVED_BY_THE_LOADER)}
    return {name: normalised(recipe, splits) for name, splits in sets.items()}


def _load_several(
    *, root: str, seed: int, image_size: int | None = None, cache: Cache = "auto"
) -> dict[str, FewShotSplits]:
    """All sets below a root, with the fields of the recipe that one takes; their parts are fixed."""
    return load_sources(root, image_size=image_size, cache=cache)


def training_sources(recipe: Recipe, sets: Mapping[str, FewShotSplits]) -> dict[str, FewShotSplits]:
    """The sets to train on: those that the recipe names, or all that have training classes.

    Raises:
        UnknownName: if there is no such set.
        DataError: if one has no training class, or none has.
    """
    named = recipe.episodes.sources
    chosen = {name: choose(name, sets, "data set (episodes.sources)") for name in named} or {
        name: splits for name, splits in sets.items() if splits.train.num_classes
    }
    if empty := [name for name, splits in chosen.items() if not splits.train.num_classes] or [*sets] * (not chosen):
        raise DataError(f"No training class in {', '.join(empty)}: name sets that have some (--episodes.sources).")
    return chosen


def build_episode_loader(recipe: Recipe, sets: Sequence[FewShotSplits], part: str) -> EpisodeLoader:
    """The episodes of one part, each of one of the sets, which are drawn uniformly.

    Those of validation and test depend on the seed alone, so that every recipe is measured on the same ones; their
    classes are drawn as the data suggests, whatever part of the training ignores it.

    Args:
        recipe: says how episodes are drawn.
        sets: at least one; images are normalised with the first's mean and deviation.
        part: train, val or test.

    Raises:
        InvalidInput: if an episode would be larger than the data.
    """
    episodes, train = recipe.episodes, part == "train"
    choose(part, PARTS, "part")
    pools = [pool for splits in sets if (pool := getattr(splits, part)).num_classes]
    if not pools:
        raise DataError(f"There is no class for {part} in {recipe.data.name}.")
    return make_episode_loader(
        [(pool, _sampler(episodes, pool, train=train)) for pool in pools],
        episodes=getattr(episodes, part),
        image_size=recipe.data.image_size or one_size(sets[0].train),
        mean=sets[0].mean,
        std=sets[0].std,
        seed=recipe.seed,
        train=train,
        simclr_fraction=episodes.simclr_fraction if train else 0.0,
        augment=AUGMENT[recipe.data.augment] if train else "none",
        views=train and episodes.contrastive_weight > 0,
        num_workers=recipe.data.num_workers,
    )


def _sampler(episodes: schema.Episodes, pool: Pool, *, train: bool) -> EpisodeSampler:
    return EpisodeSampler(
        pool,
        n_way=episodes.n_way,
        n_shot=episodes.n_shot,
        n_query=episodes.n_query,
        hierarchy=episodes.hierarchy,
        ignore_hierarchy=episodes.ignore_hierarchy if train else 0.0,
    )


def build_few_shot(recipe: Recipe, *, in_chans: int, image_size: int, say: Say = print) -> FewShot:
    """Trunk, head and optimizer of a recipe.

    Args:
        recipe: what to build.
        in_chans: channels of the images.
        image_size: side of the images in pixels.
        say: told which of one's own weights did not load.
    """
    _check(recipe)
    trunk = FeatureMap(make_backbone(recipe, in_chans=in_chans, image_size=image_size, say=say))
    dim = map_channels(trunk, in_chans=in_chans, image_size=image_size)
    with drawn_from(recipe.seed, "head"):
        head = _head(recipe.head, dim)
    return FewShot(
        trunk,
        head,
        optimizer=optimizer_factory(recipe),
        contrastive_weight=recipe.episodes.contrastive_weight,
        moments=recipe.episodes.moments,
        test_moments=recipe.episodes.test_moments,
        freeze_trunk=recipe.episodes.freeze_trunk,
        seed=recipe.seed,
    )


def _head(part: schema.Head, dim: int) -> nn.Module:
    if part.name == "cross-transformer":
        return CrossTransformer(dim, dim_key=part.dim_key, dim_value=part.dim_value)
    return Prototypical(dim)


def _check(recipe: Recipe) -> None:
    """Refuse what would run, and be something else than it looks like."""
    check_numbers(recipe)
    data = recipe.data
    if recipe.task != "few-shot":
        raise InvalidInput(f"{recipe.name} is a {recipe.task} recipe, which has no episodes.")
    if recipe.head.name not in ("cross-transformer", "prototypical"):
        raise InvalidInput(
            f"A few-shot recipe needs --head.name cross-transformer or prototypical, but it is {recipe.head.name}."
        )
    if recipe.relation.name != "none":
        raise InvalidInput(
            f"`relation.name` ({recipe.relation.name}) must be none in a few-shot recipe: who attends to whom is the "
            "head's business (--head.name)."
        )
    if recipe.backbone.pool != "own":
        raise InvalidInput(
            f"`backbone.pool` ({recipe.backbone.pool}) makes one vector of a map, and a few-shot head compares maps: "
            "leave it out."
        )
    if recipe.backbone.frozen:
        raise InvalidInput("`backbone.frozen` is a classifier's; freeze a few-shot trunk by --episodes.freeze-trunk.")
    if recipe.contrast != schema.Contrast():
        raise InvalidInput("`contrast` is of --criterion.name paco, which classifies fixed classes.")
    if is_taught(recipe):
        raise InvalidInput("A teacher (criterion.teacher, before.use) is of classifiers: episodes have other classes.")
    if recipe.criterion != schema.Criterion():
        raise InvalidInput("`criterion` is of classifiers: the loss of an episode is cross-entropy over its queries.")
    own = schema.Head(name=recipe.head.name)
    if recipe.head.name == "cross-transformer":
        own = replace(own, dim_key=recipe.head.dim_key, dim_value=recipe.head.dim_value)
    if recipe.head != own:
        raise InvalidInput(
            f"--head.name {recipe.head.name} has no such option among `head`'s: a cross-transformer has dim_key and "
            "dim_value, a prototypical head has none."
        )
    choose(data.augment, AUGMENT, "augmentation of episodes")
    of_batches = ("mixup", "cutmix", "views", "sampler", *OF_META, "batch_size", "micro_batch")
    for name in (*of_batches, "multi_label"):
        if getattr(data, name) != getattr(schema.Data(), name):
            raise InvalidInput(
                f"`data.{name}` ({getattr(data, name)}) means nothing to episodes, of which each is a training step; "
                "their size is set by --episodes.n-way and its like."
            )
    _check_episodes(recipe)


def _check_episodes(recipe: Recipe) -> None:
    """Refuse settings of episodes that contradict each other, or the head."""
    episodes = recipe.episodes
    for name in ("train", "val", "test"):
        if getattr(episodes, name) < 1:
            raise InvalidInput(f"`episodes.{name}` must be at least 1, but it is {getattr(episodes, name)}.")
    for name in ("simclr_fraction", "ignore_hierarchy"):
        if not 0 <= getattr(episodes, name) <= 1:
            raise InvalidInput(f"`episodes.{name}` must be from 0 to 1, but it is {getattr(episodes, name)}.")
    if episodes.contrastive_weight < 0:
        raise InvalidInput(
            f"`episodes.contrastive_weight` must be at least 0, but it is {episodes.contrastive_weight}."
        )
    if episodes.contrastive_weight and episodes.freeze_trunk:
        raise InvalidInput("`episodes.contrastive_weight` trains the trunk, which --episodes.freeze-trunk forbids.")
    if episodes.freeze_trunk and recipe.head.name == "prototypical":
        raise InvalidInput(
            "A prototypical head has no weights, so with --episodes.freeze-trunk there is nothing to train; evaluate "
            "the trunk with --optimizer.lr 0, or leave the trunk free."
        )
    if episodes.freeze_trunk and episodes.test_moments == "support":
        raise InvalidInput("A frozen trunk keeps its moments: leave --episodes.test-moments running.")
