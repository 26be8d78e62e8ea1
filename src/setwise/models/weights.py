"""Start from somebody's weights: read them without unpickling objects, and say what did not fit."""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from setwise.errors import InvalidInput, MissingFile
from setwise.machine import at_home
from setwise.models.patchconvnet import PatchConvNet, in_our_names

__all__ = ["LoadReport", "load_classifier", "load_weights", "read_state", "without_prefixes"]

WRAPPERS = ("state_dict", "model", "model_state", "state_dict_ema", "state_dict_best")
"""Keys under which training scripts put the weights."""
PREFIXES = ("module.", "model.", "backbone.", "encoder.", "_orig_mod.")
"""What DataParallel, Lightning, torch.compile and their like put before names."""
CLASSIFIERS = ("head", "fc", "classifier", "head.fc")
"""What timm's and torchvision's networks call theirs."""


@dataclass(frozen=True)
class LoadReport:
    """Which weights found their place."""

    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    """In the model, not in the file: they keep their initial values."""
    unexpected: tuple[str, ...]
    """In the file, not in the model."""
    misshapen: tuple[str, ...]
    """In both, with different shapes."""

    def __str__(self) -> str:
        lines = [f"loaded {len(self.loaded)} tensors"]
        for what in ("missing", "unexpected", "misshapen"):
            names = getattr(self, what)
            if names:
                more = f" and {len(names) - 8} more" if len(names) > 8 else ""
                lines.append(f"{what} ({len(names)}): {', '.join(names[:8])}{more}")
        return "\n  ".join(lines)


def read_state(path: str | Path) -> dict[str, Tensor]:
    """Name -> tensor from a .safetensors, .pt or .pth file; pickled files are read with ``weights_only=True``.

    Raises:
        MissingFile: if there is no such file.
        InvalidInput: if it is damaged, holds other objects than tensors, or no tensor at all.
    """
    path = at_home(path)
    if not path.is_file():
        raise MissingFile(f"There is no weights file {path}.")
    state: Any
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            with torch.serialization.safe_globals([argparse.Namespace]):  # beside official weights; it runs nothing
                state = torch.load(path, "cpu", weights_only=True)
    except Exception as error:  # a damaged file ends in any of a dozen kinds of errors
        if "unsupported global" in str(error).lower():
            raise InvalidInput(
                f"{path} holds more than tensors, and unpickling it could run code. Save `model.state_dict()` alone, "
                "or convert it to safetensors where you trust it."
            ) from error
        raise InvalidInput(
            f"{path} cannot be read as weights: it is damaged, or no file of tensors ({type(error).__name__})."
        ) from error
    for wrapper in WRAPPERS:
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    tensors = (
        {name: value for name, value in state.items() if isinstance(name, str) and isinstance(value, Tensor)}
        if isinstance(state, dict)
        else {}
    )
    if not tensors:
        raise InvalidInput(f"{path} holds no named tensors; a state dict was expected.")
    return tensors


def load_weights(model: nn.Module, path: str | Path) -> LoadReport:
    """Load what fits from ``path`` into ``model``, in place.

    Prefixes of wrappers (``module.``, ``backbone.`` ...) are taken off where that makes more names fit, the names of
    official PatchConvNets are made ours, and their one query becomes one a class where the model has these.

    Raises:
        MissingFile: if there is no such file.
        InvalidInput: if the file cannot be read, or nothing in it fits.
    """
    own, state = model.state_dict(), read_state(path)
    candidates = without_prefixes(state)
    if isinstance(model, PatchConvNet):
        candidates = [in_our_names(candidate) for candidate in candidates]
    state = max(candidates, key=lambda candidate: len(own.keys() & candidate.keys()))
    if isinstance(model, PatchConvNet) and "pool.query" in state and state["pool.query"].shape[1] == 1:
        state["pool.query"] = state["pool.query"].repeat(1, getattr(model.pool, "num_queries", 1), 1)
    fitting = {name: value for name, value in state.items() if name in own and own[name].shape == value.shape}
    report = LoadReport(
        loaded=tuple(fitting),
        missing=tuple(name for name in own if name not in state),
        unexpected=tuple(name for name in state if name not in own),
        misshapen=tuple(name for name in state if name in own and name not in fitting),
    )
    if not fitting:
        raise InvalidInput(f"Nothing in {path} fits this {type(model).__name__}: {report}")
    model.load_state_dict(fitting, strict=False)
    return report


def load_classifier(head: nn.Module, path: str | Path) -> None:
    """Load the classifier that stands in ``path`` beside a network into ``head``, in place.

    Args:
        head: with ``weight`` ``[K, C]`` and ``bias`` ``[K]``, as a linear layer has them.
        path: of the weights of a whole network.

    Raises:
        MissingFile: if there is no such file.
        InvalidInput: if it cannot be read, or holds no classifier of these classes and features.
    """
    own = head.state_dict()
    shapes = []
    for candidate in without_prefixes(read_state(path)):
        for names in (candidate, in_our_names(candidate)):
            for classifier in CLASSIFIERS:
                given = {name: names.get(f"{classifier}.{name}") for name in own}
                found = {name: value for name, value in given.items() if value is not None}
                if {name: value.shape for name, value in found.items()} == {n: v.shape for n, v in own.items()}:
                    head.load_state_dict(found)
                    return
                shapes += [f"{classifier}.{name} {list(value.shape)}" for name, value in found.items()]
    wanted = ", ".join(f"{name} {list(value.shape)}" for name, value in own.items())
    raise InvalidInput(
        f"{path} holds no classifier to begin with (head.from_weights): it needs {wanted}, but has "
        f"{', '.join(dict.fromkeys(shapes)) or 'none'}. Leave the option out for a new one."
    )


def without_prefixes(state: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """The state as it is, and what stands in it behind one, two ... known prefixes."""
    candidates = [state]
    for candidate in candidates:  # grows by what is found
        for prefix in PREFIXES:
            # Only the wrapped part can be this model: a Lightning checkpoint has heads and criteria beside it.
            if inner := {n.removeprefix(prefix): v for n, v in candidate.items() if n.startswith(prefix)}:
                candidates.append(inner)
    return candidates
