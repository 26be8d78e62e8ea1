"""What a recipe is: frozen, keyword-only dataclasses of plain data, one per part of a run.

The fields (:mod:`setwise.recipes.fields` and ``training_fields``) are the options of the command line (``--group.field
value``) and the keys of a run's ``recipe.yaml``. Nothing here imports more than the standard library: ``setwise list``
must not wait for torch.
"""

from dataclasses import dataclass, field, replace
from typing import Any, Literal

from setwise.errors import InvalidInput
from setwise.recipes.fields import (
    Backbone,
    Before,
    Contrast,
    Criterion,
    Data,
    Episodes,
    Groups,
    Head,
    Relation,
)
from setwise.recipes.training_fields import Optimizer, Trainer

__all__ = [
    "Backbone",
    "Before",
    "Contrast",
    "Criterion",
    "Data",
    "Episodes",
    "Groups",
    "Head",
    "Optimizer",
    "Ran",
    "Recipe",
    "Relation",
    "Reported",
    "Trainer",
    "Variant",
]

Variant = Literal["plain", "related", "control"]


@dataclass(frozen=True, kw_only=True)
class Reported:
    """One number of the literature, as printed there."""

    metric: str
    variant: Variant
    value: float
    """A fraction in 0..1, as all metrics here."""
    source: str
    """Paper and table, or the place it was read."""


@dataclass(frozen=True, kw_only=True)
class Ran:
    """The run behind a recipe's own number."""

    command: str
    commit: str
    result: str
    """What it printed, with its interval."""
    details: str
    """File under benchmarks/results with machine, seeds and all numbers."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One experiment, whole: task, data, network, loss, optimizer, and what was reported for it."""

    name: str
    summary: str
    """One line for `setwise list`."""
    task: str = "classification"
    """One of `setwise list tasks`."""
    data: Data = field(default_factory=Data)
    before: Before = field(default_factory=Before)
    backbone: Backbone = field(default_factory=Backbone)
    relation: Relation = field(default_factory=Relation)
    head: Head = field(default_factory=Head)
    episodes: Episodes = field(default_factory=Episodes)
    criterion: Criterion = field(default_factory=Criterion)
    contrast: Contrast = field(default_factory=Contrast)
    optimizer: Optimizer = field(default_factory=Optimizer)
    trainer: Trainer = field(default_factory=Trainer)
    groups: Groups = field(default_factory=Groups)
    primary: str = "adjusted_balanced_accuracy"
    """The one metric that selection looks at on validation and the verdict of `compare` on test."""
    select_on: Literal["val", "test"] = "val"
    """Part that chooses weights (trainer.select) and the strength of the logit adjustment. test, as in several official
    codes, holds nothing out of train; its numbers are too good, and the report says so."""
    seed: int = 0
    """Seed of a single run, and the first seed of a comparison."""
    num_seeds: int = 3
    """Seeds of a comparison, fixed before it."""
    paper: str = ""
    """What to cite, with link."""
    reported: tuple[Reported, ...] = ()
    """Numbers of the literature; never a target to tune towards."""
    ran: tuple[Ran, ...] = ()
    """Runs of this recipe whose numbers stand in benchmarks/results; none: untried."""
    smoke: dict[str, Any] = field(default_factory=dict)
    """Overrides ("group.field": value) with which the tests run two steps of it."""

    @property
    def status(self) -> str:
        """``ran`` if a number of this recipe was recorded here, else ``untried``."""
        return "ran" if self.ran else "untried"

    def override(self, values: dict[str, Any]) -> "Recipe":
        """A copy with ``{"group.field": value}`` replaced.

        >>> Recipe(name="x", summary="").override({"data.batch_size": 8, "seed": 3}).data.batch_size
        8
        """
        recipe = self
        for path, value in values.items():
            group, _, name = path.rpartition(".")
            if group:
                recipe = replace(recipe, **{group: replace(getattr(recipe, group), **{name: value})})
            else:
                recipe = replace(recipe, **{name: value})
        return recipe

    def as_variant(self, variant: Variant) -> "Recipe":
        """The related recipe itself, its plain twin, or its control (every sample attends to itself alone).

        The control has no memory, which holds others.

        Raises:
            InvalidInput: if a plain recipe is to become a control; it does not say which relation that has.
        """
        if self.relation.name == "none" and variant == "control":
            raise InvalidInput(f"{self.name} has no relation (relation.name none), so it has no control.")
        if variant == "plain":
            return self.override({"relation.name": "none"})
        if variant == "control":
            return self.override({"relation.attend": "self", "relation.memory": 0})
        return self

    @property
    def variant(self) -> Variant:
        """What this recipe is, by its relation: plain without one, control where each sample has itself alone."""
        if self.relation.name == "none":
            return "plain"
        return "control" if self.relation.attend == "self" else "related"
