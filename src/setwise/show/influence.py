"""What the samples of a trained classifier do to each other, class by class: measured on the run's own data."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from setwise.build import build_data, build_loader, is_taught
from setwise.data import Loader
from setwise.errors import InvalidInput
from setwise.metrics import Influence, influence
from setwise.nn.attend import attend_mask
from setwise.recipes import Recipe
from setwise.run import load_run
from setwise.run_folder import RunFolder
from setwise.seeds import generator
from setwise.tasks import Classification

__all__ = ["GROUPS", "Measured", "between_groups", "in_order", "measure"]

GROUPS = ("many", "medium", "few")


@dataclass(frozen=True)
class Measured:
    """The influence of classes on each other, and what the classes are; all of them from the largest to the smallest.

    ``group`` has the place in ``GROUPS`` of each class.
    """

    found: Influence
    names: tuple[str, ...]
    counts: tuple[int, ...]
    """Training images, before validation was held out."""
    group: tuple[int, ...]
    part: str
    batch_size: int
    attend: str
    criterion: str
    """The loss that was differentiated, in words."""

    @property
    def mean_of_groups(self) -> list[float]:
        """Mean gradient over the classes of each group; NaN for an empty one."""
        gradient, group = self.found.gradient.numpy(), np.array(self.group)
        return [_mean(gradient[group == number]) for number in range(len(GROUPS))]


def measure(path: Path, recipe: Recipe, *, part: str = "test", batches: int | None = None) -> Measured:
    """Run a part of a run's data through its relation, batch by batch, and keep what samples do to each other.

    Batches have the size of a training step in one process. They are drawn at random, for files lie class by class; the
    last, incomplete one is left out unless it is the only one.

    Args:
        path: folder of the run.
        recipe: its recipe, with ``data.root`` as it lies here.
        part: test, val, or train (augmented and drawn as in training, without mixup and CutMix).
        batches: most batches; None: all.

    Raises:
        InvalidInput: if the run has no relation, its images have several labels, or its data have other classes.
        SetwiseError: whatever is wrong with run or data.
    """
    _check(path, recipe, batches)
    recipe, task, model = load_run(path, recipe=recipe.override({"data.mixup": 0.0, "data.cutmix": 0.0}))
    if task.relation is None:  # experts that are routed, whose features do not change any more
        raise InvalidInput(f"{path} itself has no relation: show the stage before it, {RunFolder(path).before}.")
    splits = build_data(recipe)
    model.check_classes(splits, path)
    task.criterion.set_epoch(recipe.trainer.epochs - 1)  # class weights that come late have come
    order = generator(recipe.seed, "shuffled", 0)
    # The learned sampler's steps relate what is drawn from a batch, replicas a share of it each.
    shares = recipe.data.meta_pool if recipe.data.sampler == "meta" else recipe.relation.official_replicas
    recipe = recipe.override({"data.batch_size": max(1, recipe.data.batch_size // shares)})
    size = min(recipe.data.batch_size, len(getattr(splits, part)))
    found = influence(
        _features(task, build_loader(recipe, splits, part, mixed=True), size, batches),
        relation=task.relation,
        head=task.head,
        criterion=task.criterion,
        num_classes=len(model.class_names),
        mask=lambda target: attend_mask(task.attend, target, generator=order),
    )
    return in_order(
        Measured(
            found,
            names=tuple(model.class_names),
            counts=tuple(model.group_counts),
            group=_group_of(task.groups),
            part=part,
            batch_size=size,
            attend=recipe.relation.attend,
            criterion=_loss_of(recipe),
        )
    )


def _check(path: Path, recipe: Recipe, batches: int | None) -> None:
    """Refuse a run whose samples do nothing to each other that could be measured class by class."""
    if recipe.relation.name == "none":
        raise InvalidInput(
            f"{path} has no relation (relation.name none), so no sample of it reaches another and there is nothing to "
            "measure: name a run that has one. To see where an attention pool looks, name images: setwise show RUN "
            "IMAGES..."
        )
    if recipe.data.multi_label:
        raise InvalidInput(f"The images of {path} have several labels, so what one does is not that of one class.")
    if batches is not None and batches < 1:
        raise InvalidInput(f"`batches` must be at least 1, but it is {batches}.")


def _loss_of(recipe: Recipe) -> str:
    """What was differentiated, in words; what a loss takes beside class scores is not there any more."""
    name = recipe.criterion.name
    if name == "paco":
        return "of paco the part without queries and keys, balanced-softmax"
    if name == "glmc":
        return "of glmc the cross-entropy of images that are not mixed"
    return f"{name}, without the teacher's term" if is_taught(recipe) else f"{name}, as in training"


@torch.no_grad()
def _features(task: Classification, loader: Loader, size: int, most: int | None) -> Iterator[tuple[Tensor, Tensor]]:
    """Features and labels of batches of one size: values of others could not be averaged with theirs."""
    whole = (batch for batch in loader if len(batch.target) == size)
    for batch in islice(whole, most):
        yield task.backbone(batch.image), batch.target


def _group_of(groups: dict[str, Tensor]) -> tuple[int, ...]:
    return tuple(torch.stack([groups[name] for name in GROUPS]).int().argmax(0).tolist())


def in_order(one: Measured) -> Measured:
    """Groups one after the other, and in each the largest class first; equal ones as they are numbered."""
    order = sorted(range(len(one.names)), key=lambda k: (one.group[k], -one.counts[k]))
    found, places = one.found, torch.tensor(order)
    square = (places[:, None], places)
    return replace(
        one,
        found=replace(
            found,
            gradient=found.gradient[places],
            gradient_between=found.gradient_between[square],
            attention=None if found.attention is None else found.attention[square],
            samples=found.samples[places],
        ),
        names=tuple(one.names[k] for k in order),
        counts=tuple(one.counts[k] for k in order),
        group=tuple(one.group[k] for k in order),
    )


def between_groups(values: Float[np.ndarray, "K K"], group: tuple[int, ...]) -> Float[np.ndarray, "3 3"]:
    """Means over the pairs of classes of two groups, each pair that was seen counting once; NaN where there is none."""
    of = np.array(group)
    places = range(len(GROUPS))
    return np.array([[_mean(values[np.ix_(of == row, of == column)]) for column in places] for row in places])


def _mean(values: np.ndarray) -> float:
    seen = values[~np.isnan(values)]
    return float(seen.mean()) if len(seen) else float("nan")
