"""Checks of every training step: the relation is still in the model, and both streams come out."""

from typing import Any

import torch
from torch import Tensor, nn

from setwise.errors import InvalidInput
from setwise.nn.insertion.measure import entries

__all__ = ["Output", "Standing"]


class Output:
    """Check that both streams came out of a forked model.

    Args:
        relation: its ``training`` decides.
        rows: rows of the output for one sample, measured on the plain model.
    """

    def __init__(self, relation: nn.Module, rows: int) -> None:
        self.relation, self.rows = relation, rows

    def check(self, model: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        """Hook behind the model."""
        given = _first((*args, *kwargs.values()))
        if not self.relation.training or given is None:
            return
        first = _first(output)
        wanted = 2 * self.rows * given.shape[0]
        if first is not None and first.shape[0] != wanted:
            raise InvalidInput(
                f"In training the output of {type(model).__name__} must have {wanted} rows, both streams of "
                f"{given.shape[0]} samples, but it has shape {tuple(first.shape)}: the relation was not reached, or "
                "what follows it counts the samples anew. Name another place with `at`."
            )


def _first(values: Any) -> Tensor | None:
    """The first tensor that has axes; a number, as a loss is, has no rows."""
    return next((v for v in entries(values) if isinstance(v, Tensor) and v.dim()), None)


class Standing:
    """Check that the places of a relation are still in the model: a classifier that is replaced takes the hook along.

    Args:
        relation: its ``training`` decides.
        modules: the hooked modules by name. They may be wrapped since then.
    """

    def __init__(self, relation: nn.Module, modules: dict[str, nn.Module]) -> None:
        self.relation, self.modules = relation, modules

    def check(self, model: nn.Module, args: tuple) -> None:
        """Hook before the model."""
        if not self.relation.training or torch.compiler.is_compiling():
            return
        for name, module in self.modules.items():
            try:
                standing = list(model.get_submodule(name).modules())
            except AttributeError:  # as in a list that became shorter
                standing = []
            if all(inner is not module for inner in standing):
                raise InvalidInput(
                    f"{name} of this {type(model).__name__} was replaced after the insertion, and the relation hung "
                    "there. Call remove(model) and insert again."
                )
