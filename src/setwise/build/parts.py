"""Parts that every task is made of: the backbone, the optimizer, and weights that depend on seed and part alone."""

import inspect
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

import torch
from torch import nn

from setwise import seeds
from setwise.errors import InvalidInput
from setwise.models import create_backbone, load_weights
from setwise.optim import lr_factor, make_optimizer
from setwise.recipes import Recipe, schema
from setwise.tasks.classification import OptimizerFactory

__all__ = ["Say", "drawn_from", "load_data", "make_backbone", "optimizer_factory"]

Say = Callable[[str], None]
Loaded = TypeVar("Loaded")


def load_data(recipe: Recipe, name: str, load: Callable[..., Loaded], *, unused: Collection[str]) -> Loaded:
    """Call the ``load`` of a data set with those fields of the recipe's ``data`` that it takes.

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
    return load(seed=recipe.seed, **options)


def make_backbone(recipe: Recipe, *, in_chans: int, image_size: int, say: Say) -> nn.Module:
    """The recipe's network without a classifier, with the weights that it starts from.

    Args:
        recipe: names it.
        in_chans: channels of the images.
        image_size: their side in pixels.
        say: told which of one's own weights did not load.
    """
    part = recipe.backbone
    with drawn_from(recipe.seed, "backbone"):
        backbone = create_backbone(
            part.name, pretrained=part.pretrained, in_chans=in_chans, image_size=image_size, options=dict(part.options)
        )
    if part.weights:
        say(f"{part.weights} -> {part.name}: {load_weights(backbone, part.weights)}")
    return backbone


def optimizer_factory(recipe: Recipe) -> OptimizerFactory:
    """What makes optimizer and schedule once the network is there."""
    part = recipe.optimizer
    return make_optimizer(
        part.name,
        lr=part.lr,
        momentum=part.momentum,
        nesterov=part.nesterov,
        weight_decay=part.weight_decay,
        relation_lr_multiplier=recipe.relation.lr_multiplier,
        relation_weight_decay=recipe.relation.weight_decay,
        schedule=partial(
            lr_factor,
            schedule=part.schedule,
            epochs=recipe.trainer.epochs,
            warmup_epochs=part.warmup_epochs,
            milestones=part.milestones,
            every=part.every,
            gamma=part.gamma,
        ),
    )


@contextmanager
def drawn_from(seed: int, part: str) -> Iterator[None]:
    """Initial weights depend on the seed and the part alone, and nothing else notices that they were drawn."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeds.key(seed, "init", part))
        yield
