"""A few-shot recipe -> pools of images, episodes and task."""

from typing import Any, Literal

from torch import nn
from torch.utils.data import DataLoader

from setwise.build.parts import Say, drawn_from, load_data, make_backbone, optimizer_factory
from setwise.data.few_shot import FEW_SHOT, EpisodeSampler, FewShotSplits, make_episode_loader, one_size
from setwise.errors import InvalidInput, choose
from setwise.models import FeatureMap, map_channels
from setwise.nn import CrossTransformer, Prototypical
from setwise.recipes import Recipe, schema
from setwise.tasks import FewShot

__all__ = ["build_episode_data", "build_episode_loader", "build_few_shot"]

PARTS = ("train", "val", "test")
SERVED_BY_THE_LOADER = ("name", "augment", "num_workers")
AUGMENT: dict[str, Literal["none", "simclr"]] = {"none": "none", "simclr": "simclr"}


def build_episode_data(recipe: Recipe) -> FewShotSplits:
    """Load the recipe's images, in parts of which none shares a class with another.

    Raises:
        InvalidInput: if a field is set that means nothing here.
        SetwiseError: whatever is wrong with the files.
    """
    _check(recipe)
    data_set = choose(recipe.data.name, FEW_SHOT, "few-shot data set")
    return load_data(recipe, data_set.name, data_set.load, unused=SERVED_BY_THE_LOADER)


def build_episode_loader(recipe: Recipe, splits: FewShotSplits, part: str) -> DataLoader[Any]:
    """The episodes of one part.

    Those of validation and test depend on the seed alone, so that every recipe is measured on the same ones; their
    classes are drawn as the data suggests, whatever part of the training ignores it.

    Raises:
        InvalidInput: if an episode would be larger than the data.
    """
    episodes, train = recipe.episodes, part == "train"
    pool = getattr(splits, choose(part, PARTS, "part"))
    sampler = EpisodeSampler(
        pool,
        n_way=episodes.n_way,
        n_shot=episodes.n_shot,
        n_query=episodes.n_query,
        hierarchy=episodes.hierarchy,
        ignore_hierarchy=episodes.ignore_hierarchy if train else 0.0,
    )
    return make_episode_loader(
        pool,
        sampler,
        episodes=getattr(episodes, part),
        image_size=recipe.data.image_size or one_size(splits.train),
        mean=splits.mean,
        std=splits.std,
        seed=recipe.seed,
        train=train,
        simclr_fraction=episodes.simclr_fraction if train else 0.0,
        augment=AUGMENT[recipe.data.augment] if train else "none",
        num_workers=recipe.data.num_workers,
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
    episodes, data = recipe.episodes, recipe.data
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
    choose(data.augment, AUGMENT, "augmentation of episodes")
    for name in ("mixup", "cutmix", "batch_size", "micro_batch", "multi_label"):
        if getattr(data, name) != getattr(schema.Data(), name):
            raise InvalidInput(
                f"`data.{name}` ({getattr(data, name)}) means nothing to episodes, of which each is a training step; "
                "their size is set by --episodes.n-way and its like."
            )
    for name in ("train", "val", "test"):
        if getattr(episodes, name) < 1:
            raise InvalidInput(f"`episodes.{name}` must be at least 1, but it is {getattr(episodes, name)}.")
    for name in ("simclr_fraction", "ignore_hierarchy"):
        if not 0 <= getattr(episodes, name) <= 1:
            raise InvalidInput(f"`episodes.{name}` must be from 0 to 1, but it is {getattr(episodes, name)}.")
    if episodes.freeze_trunk and recipe.head.name == "prototypical":
        raise InvalidInput(
            "A prototypical head has no weights, so with --episodes.freeze-trunk there is nothing to train; evaluate "
            "the trunk with --optimizer.lr 0, or leave the trunk free."
        )
    if episodes.freeze_trunk and episodes.test_moments == "support":
        raise InvalidInput("A frozen trunk keeps its moments: leave --episodes.test-moments running.")
