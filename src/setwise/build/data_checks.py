"""What a recipe asks of its data, checked before the first step."""

from collections.abc import Mapping

from torch import Tensor

from setwise.data import Splits
from setwise.errors import InvalidInput
from setwise.launch import started
from setwise.recipes import Recipe
from setwise.tasks import Classification

__all__ = ["check_gathered", "check_primary", "check_processes"]


def check_processes(recipe: Recipe, sizes: Mapping[str, int], what: str) -> int:
    """How many processes train, each of which has a share of every part; refuse parts that are too small for that."""
    devices, num_nodes = started(recipe.trainer.devices, recipe.trainer.num_nodes)
    processes = devices * num_nodes
    for part, size in sizes.items():
        if size < processes:
            raise InvalidInput(
                f"The {part} part has {size} {what}, too few for {processes} processes: start fewer "
                "(--trainer.devices)."
            )
    return processes


def check_gathered(recipe: Recipe, splits: Splits, processes: int) -> None:
    """Refuse shares that may become unequal while a relation gathers them; sets in memory are looked through before."""
    gathers = processes > 1 and recipe.relation.gather and recipe.relation.name != "none"
    if gathers and recipe.data.on_error == "skip" and not splits.train.images.in_memory:
        raise InvalidInput(
            "`relation.gather` needs as many images on every process, and --data.on-error skip may leave some of one "
            "out: repair or remove unreadable images, and leave the option out."
        )


def check_primary(recipe: Recipe, task: Classification, target: Tensor, part: str) -> None:
    """Refuse a group of classes as the primary metric where a part has no image of it."""
    group = task.groups.get(recipe.primary.removeprefix("adjusted_"))
    shown = target.new_zeros(0) if group is None else group.long()[target] if target.dim() == 1 else target[:, group]
    if group is not None and not bool(shown.any()):
        raise InvalidInput(
            f"`primary` ({recipe.primary}) is of classes of which the {part} part has no image: bring some, or choose "
            "another metric with --primary."
        )
