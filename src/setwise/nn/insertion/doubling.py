"""Models whose inputs are doubled: by name, with everything before the relation still run once."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from setwise.nn.insertion.hooks import ARGUMENTS, OTHER_ARGUMENTS, Inputs, Once, parameters_of
from setwise.nn.insertion.measure import Place
from setwise.nn.insertion.places import find_layers, is_transformers

__all__ = ["NAME", "Insertion", "double_inputs", "may_run_once"]

NAME = "setwise_relation"
"""The relation's name as a submodule: the prefix of its weights in the model's state dict."""


@dataclass
class Insertion:
    """What was done to a model, to be undone: the objects whose hooks hang in it, and attributes that were changed."""

    hooked: list[Any] = field(default_factory=list)
    attributes: dict[str, Any] = field(default_factory=dict)


def may_run_once(module: nn.Module) -> bool:
    """Whether all arguments of a layer are known, so that they can be halved."""
    return set(parameters_of(module)) <= ARGUMENTS.keys() | OTHER_ARGUMENTS


def double_inputs(
    model: nn.Module, insertion: Insertion, places: list[Place], before: bool, also: frozenset[str]
) -> None:
    """Double what the model is given, and halve it again for what runs before the relation.

    Args:
        model: whose relation is its submodule already.
        insertion: keeps the hooks, to be undone.
        places: of the relation, in the order in which they run.
        before: it stands before classifiers, else behind layers.
        also: further names of arguments that hold one row for each sample.
    """
    relation = next(model.get_submodule(NAME).modules())
    inputs = Inputs(relation, also)
    insertion.hooked.append(inputs)
    model.register_forward_pre_hook(inputs.double, with_kwargs=True)
    if not is_transformers(model):
        return
    first = places[0].name
    layers = find_layers(model)
    earlier = layers[: layers.index(first) + 1] if not before and first in layers else [first] if not before else []
    for name in _runs_before(model, first, before):
        _hang_once(model.get_submodule(name), insertion, Once(relation, None), Once.repeat)
    for name in earlier:
        module = model.get_submodule(name)
        if may_run_once(module):
            _hang_once(module, insertion, Once(relation, ARGUMENTS), Once.repeat if name != first else None)
    ignored = getattr(model, "_keys_to_ignore_on_save", None)
    insertion.attributes["_keys_to_ignore_on_save"] = ignored
    names = {f"{NAME}.{key}" for key in model.get_submodule(NAME).state_dict()}
    model._keys_to_ignore_on_save = set(ignored or ()) | names  # type: ignore[assignment]


def _runs_before(model: nn.Module, first: str, before: bool) -> list[str]:
    """Modules that end before the first relation: the base model of a classifier, a detector's backbone."""
    base: str = model.base_model_prefix  # type: ignore[assignment]
    if before:
        return [base] if base and hasattr(model, base) and not first.startswith(f"{base}.") else []
    backbones = [name for name, _ in model.named_modules() if name.rpartition(".")[2] == "backbone"]
    return [name for name in backbones[:1] if not first.startswith(f"{name}.")]


def _hang_once(module: nn.Module, insertion: Insertion, once: Once, repeat: Callable | None) -> None:
    insertion.hooked.append(once)
    module.register_forward_pre_hook(once.halve, with_kwargs=True)
    if repeat is not None:
        module.register_forward_hook(once.repeat, with_kwargs=True)
