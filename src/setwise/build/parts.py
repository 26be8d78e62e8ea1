"""Parts that every task is made of: the backbone, the optimizer, and weights that depend on seed and part alone."""

import inspect
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TypeVar

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from setwise import seeds
from setwise.data import STATISTICS, Splits
from setwise.data.few_shot import FewShotSplits
from setwise.errors import InvalidInput
from setwise.models import (
    create_backbone,
    has_class_queries,
    load_weights,
    pretrained_statistics,
    without_classifier,
)
from setwise.nn import AttentionPool, attention_pooling
from setwise.optim import lr_factor, make_optimizer
from setwise.recipes import Recipe, schema
from setwise.recipes.stages import starts_from_weights
from setwise.tasks.classification import OptimizerFactory

__all__ = ["Say", "drawn_from", "load_data", "make_backbone", "normalised", "optimizer_factory"]

NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm)
"""Modules that normalise, whatever of the backbone trains."""
OFFICIAL_LR = 0.1
"""Of the relation over the network's, in the authors' Balanced Softmax code."""

Say = Callable[[str], None]
"""Told what a person should know."""
Loaded = TypeVar("Loaded")
AnySplits = TypeVar("AnySplits", Splits, FewShotSplits)


def load_data(recipe: Recipe, name: str, load: Callable[..., Loaded], *, unused: Collection[str]) -> Loaded:
    """Call the ``load`` of a data set with those fields of the recipe's ``data`` that it takes.

    Where the test part selects (``select_on``), nothing is to be held out for validation.

    Args:
        recipe: whose ``data`` and seed.
        name: of the data set, for the message.
        load: its parameters are ``seed`` and fields of ``recipes.Data``.
        unused: fields that somebody else looks at.

    Raises:
        InvalidInput: if a field is set that this data set does not have.
    """
    takes = inspect.signature(load).parameters
    default, options = schema.Data(), {}
    for field, value in vars(recipe.data).items():
        if field in takes:
            if value is not None:
                options[field] = value
        elif field not in unused and value != getattr(default, field):
            choices = ", ".join(sorted(set(vars(default)) & set(takes)))
            raise InvalidInput(f"Data set {name!r} has no option `data.{field}` ({value!r}); it takes {choices}.")
    if recipe.select_on == "test" and "val_fraction" in takes:
        options["val_fraction"] = 0.0
    return load(seed=recipe.seed, **options)


def normalised(recipe: Recipe, splits: AnySplits) -> AnySplits:
    """The splits with the mean and deviation that the recipe asks for (``data.normalise``).

    Raises:
        InvalidInput: if it names those of colour images and these are grey, or those of a backbone that has none.
    """
    asked, grey = recipe.data.normalise, len(splits.mean) == 1
    if asked is None and (grey or not recipe.backbone.pretrained):
        return splits
    if asked is not None and grey:
        raise InvalidInput(f"`data.normalise` {asked} is of colour images, but these are grey: leave it out.")
    of_backbone = asked is None or asked == "backbone"
    found = pretrained_statistics(recipe.backbone.name) if of_backbone else STATISTICS[str(asked)]
    if found is None:
        if asked is None:
            return splits
        raise InvalidInput(
            f"`data.normalise` backbone: timm names no mean and deviation for {recipe.backbone.name}; leave it out."
        )
    mean, std = found
    if (mean, std) == (splits.mean, splits.std):
        return splits
    whose = f"{recipe.backbone.name}'s weights" if of_backbone else asked
    note = f"Pixels are normalised as for {whose}: mean {_in_words(mean)}, deviation {_in_words(std)}."
    return replace(splits, mean=mean, std=std, notes=(*splits.notes, note))


def _in_words(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:.3g}" for value in values)


def make_backbone(recipe: Recipe, *, num_classes: int = 0, in_chans: int, image_size: int, say: Say) -> nn.Module:
    """The recipe's network without a classifier, with the weights that it starts from.

    Args:
        recipe: names it.
        num_classes: queries of a backbone with a query for each class, which head "per-class" scores.
        in_chans: channels of the images.
        image_size: their side in pixels.
        say: told which of one's own weights did not load.

    Raises:
        InvalidInput: if the backbone has class queries and the head is another, or has no part that is to train.
    """
    part, per_class = recipe.backbone, recipe.head.name == "per-class"
    options = {**part.options, **({"num_classes": num_classes} if per_class else {})}  # as many queries
    with drawn_from(recipe.seed, "backbone"):
        backbone = create_backbone(
            part.name, pretrained=part.pretrained, in_chans=in_chans, image_size=image_size, options=options
        )
    if part.pool == "attention":
        with drawn_from(recipe.seed, "pool"):
            attention_pooling(backbone, example=torch.zeros(2, in_chans, image_size, image_size))
    if per_class:
        without_classifier(backbone)
    elif has_class_queries(backbone):
        raise InvalidInput(f"{part.name} has a query for each class here, each of which --head.name per-class scores.")
    if part.weights:
        say(f"{part.weights} -> {part.name}: {load_weights(backbone, part.weights)}")
    if part.trained and part.frozen:
        raise InvalidInput("`backbone.trained` names parts that train, but --backbone.frozen forbids all: take one.")
    if part.trained:
        train_parts(backbone, part.trained)
        if part.pool == "attention" and not starts_from_weights(recipe):
            _require_no_frozen_pool(backbone)
    return backbone


def _require_no_frozen_pool(backbone: nn.Module) -> None:
    for name, module in backbone.named_modules():
        if isinstance(module, AttentionPool) and not all(p.requires_grad for p in module.parameters()):
            raise InvalidInput(
                f"`backbone.pool` attention begins with random weights, which --backbone.trained would keep: name "
                f"{name}, too, or give weights that have it (--backbone.weights FILE)."
            )


def train_parts(backbone: nn.Module, beginnings: tuple[str, ...]) -> None:
    """Switch off the gradient of all weights but norms and those whose names begin so.

    Raises:
        InvalidInput: if no weight's name begins with one of them.
    """
    names = [name for name, _ in backbone.named_parameters()]
    for beginning in beginnings:
        if not any(name.startswith(beginning) for name in names):
            raise InvalidInput(
                f"No weight of this {type(backbone).__name__} begins with {beginning!r} (--backbone.trained); the last "
                f"is {names[-1]!r}."
            )
    norms = {id(p) for module in backbone.modules() if isinstance(module, NORMS) for p in module.parameters()}
    for name, parameter in backbone.named_parameters():
        parameter.requires_grad_(name.startswith(beginnings) or id(parameter) in norms)


def optimizer_factory(recipe: Recipe) -> OptimizerFactory:
    """What makes optimizer and schedule once the network is there."""
    part = recipe.optimizer
    if (part.official_squared_lr or part.official_early_step) and part.schedule != "cosine":
        raise InvalidInput(
            "`optimizer.official_squared_lr` and `.official_early_step` are of cosine schedules, but "
            f"`optimizer.schedule` is {part.schedule}."
        )
    relation = recipe.relation
    if relation.official_lr and relation.lr_multiplier != 1:
        raise InvalidInput(
            f"`relation.official_lr` is a `relation.lr_multiplier` of {OFFICIAL_LR}, but the latter is "
            f"{relation.lr_multiplier:g}: take one of them."
        )
    return make_optimizer(
        part.name,
        lr=part.lr**2 if part.official_squared_lr else part.lr,
        momentum=part.momentum,
        nesterov=part.nesterov,
        weight_decay=part.weight_decay,
        relation_lr_multiplier=OFFICIAL_LR if relation.official_lr else relation.lr_multiplier,
        relation_weight_decay=relation.weight_decay,
        schedule=partial(
            lr_factor,
            schedule=part.schedule,
            epochs=recipe.trainer.epochs,
            warmup_epochs=part.warmup_epochs,
            warmup_start=part.warmup_start,
            milestones=part.milestones,
            every=part.every,
            gamma=part.gamma,
            early_step=part.official_early_step,
        ),
    )


@contextmanager
def drawn_from(seed: int, part: str) -> Iterator[None]:
    """Initial weights depend on the seed and the part alone, and nothing else notices that they were drawn."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeds.key(seed, "init", part))
        yield
