"""Where a relation can go in somebody's model: its classifiers and its layers.

Nothing here imports timm, torchvision or transformers: their models are known by the methods and attributes that they
document.
"""

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

__all__ = ["HEAD_NAMES", "LAYERS", "find_classifiers", "find_layers", "is_transformers", "width_of"]

HEAD_NAMES = ("fc", "classifier", "head", "heads", "last_linear", "linear", "score")
"""Attributes under which models without ``get_classifier()`` keep their classifier, as torchvision's do."""

LAYERS = (
    "group_matcher(), for layers of transformers, and for modules of one class that stand in a list or a Sequential"
)
"""What :func:`find_layers` looks for, for errors."""

AUXILIARY_HEADS = ("aux1", "aux2", "AuxLogits", "aux_head")
"""Further classifiers of the same samples: GoogLeNet's and Inception's in torchvision, VOLO's in timm."""

NO_CLASSIFIER = re.compile(r"box|(^|\.)(pre_|dense)")
"""Layers of transformers that are no classifier, though they may have as many outputs as there are labels."""


def is_transformers(model: nn.Module) -> bool:
    """Whether ``model`` is a model of transformers: those document ``config`` and ``base_model_prefix``."""
    return hasattr(model, "config") and hasattr(model, "base_model_prefix")


# ---------------------------------------------------------------------------------------------------- classifiers
def find_classifiers(model: nn.Module) -> list[str]:
    """Names of the layers that turn features into class scores, in the order of the model; empty if none is found.

    timm's models say it themselves, transformers' know how many labels they have, others are known by a name of
    ``HEAD_NAMES``. Distilled models have two classifiers, networks of several branches one each.
    """
    if callable(getattr(model, "get_classifier", None)):
        found = _modules_in(model.get_classifier())  # type: ignore[operator]
    elif is_transformers(model):
        return _transformers_classifiers(model)
    else:
        found = [getattr(model, name) for name in HEAD_NAMES if isinstance(getattr(model, name, None), nn.Module)][:1]
    found += [head for name in AUXILIARY_HEADS if isinstance(head := getattr(model, name, None), nn.Module)]
    last = {id(layer) for head in found for layer in _last_scoring(head)}
    return [name for name, module in model.named_modules() if id(module) in last]


def _transformers_classifiers(model: nn.Module) -> list[str]:
    labels = getattr(model.config, "num_labels", None)
    scoring = {
        name: m
        for name, m in model.named_modules()
        if _scores(m) and width_of(m, out=True) == labels and not NO_CLASSIFIER.search(name)
    }
    base = model.base_model_prefix
    outside = [name for name in scoring if not f"{name}.".startswith(f"{base}.")]
    last = {}  # of a head with several layers the last one scores; the entries of a list are heads of their own
    for name in outside:
        head = name.rpartition(".")[0]
        last[name if not head or isinstance(model.get_submodule(head), nn.ModuleList) else head] = name
    return list(last.values()) or list(scoring)[-1:]


def _modules_in(value: Any) -> list[nn.Module]:
    """The heads in what ``get_classifier()`` returns: a module, or a tuple or list of them."""
    if isinstance(value, nn.ModuleList | list | tuple):
        return [module for item in value for module in _modules_in(item)]
    return [value] if isinstance(value, nn.Module) else []


def _last_scoring(head: nn.Module) -> list[nn.Module]:
    """The last linear layer or convolution of a head, where features go in and scores come out, and those beside it.

    Two that take as many channels and give as many others cannot follow each other: they are two classifiers in one
    head, as RepViT's.
    """
    scoring = [module for module in head.modules() if _scores(module)]
    widths = [(width_of(module), width_of(module, out=True)) for module in scoring]
    if not scoring or widths[-1][0] == widths[-1][1]:
        return scoring[-1:]
    return [module for module, width in zip(scoring, widths, strict=True) if width == widths[-1]]


def _scores(module: nn.Module) -> bool:
    """A linear layer or convolution, also of another library's own class."""
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.dim() in (2, 4) and width_of(module) is not None


def width_of(module: nn.Module, *, out: bool = False) -> int | None:
    """Channels that a linear layer or convolution takes (or gives); None for other modules."""
    names = ("out_features", "out_channels") if out else ("in_features", "in_channels")
    return next((width for name in names if isinstance(width := getattr(module, name, None), int)), None)


# --------------------------------------------------------------------------------------------------------- layers
def find_layers(model: nn.Module) -> list[str]:
    """Names of the layers of the model's encoder, in order: what an index in ``at`` counts.

    timm's models name their blocks in ``group_matcher()``, transformers' derive them from one class or call them
    "...EncoderLayer" (a detector's backbone does not count); in others they are the modules of the class that stands
    most often in a ``Sequential`` or ``ModuleList``, or else in the model itself.
    """
    if is_transformers(model):
        layers = [name for name, m in model.named_modules() if _is_layer(m) and "backbone" not in name.split(".")]
        encoder = [name for name in layers if "encoder" in name.split(".")]
        layers = _outermost(encoder or [name for name in layers if "decoder" not in name.split(".")] or layers)
        return layers or _repeated(model)
    if callable(getattr(model, "group_matcher", None)):
        return _matched(model) or _repeated(model)
    return _repeated(model)


def _matched(model: nn.Module) -> list[str]:
    """timm: an expression with an index and no order of its own stands for a block."""
    groups = model.group_matcher(coarse=False)  # type: ignore[operator]
    if not isinstance(groups, Mapping):
        return []
    patterns = []
    for group in groups.values():
        for entry in [group] if isinstance(group, str) else group:
            pattern, order = (entry, None) if isinstance(entry, str) else (entry[0], entry[1])
            if order is None and r"(\d+)" in pattern:
                patterns.append(re.compile(pattern.removeprefix("^")))
    return _outermost([name for name, _ in model.named_modules() if any(p.fullmatch(name) for p in patterns)])


def _repeated(model: nn.Module) -> list[str]:
    containers = {name for name, m in model.named_modules() if type(m) in (nn.Sequential, nn.ModuleList)}
    return _most_frequent(model, containers) or _most_frequent(model, {""})


def _most_frequent(model: nn.Module, containers: set[str]) -> list[str]:
    """Own modules (not torch's) directly in containers, outermost ones, of the class that is there most often."""
    inside = {
        name: type(module)
        for name, module in model.named_modules()
        if name.rpartition(".")[0] in containers
        and name
        and name not in containers
        and (type(module).__module__.partition(".")[0] != "torch" or isinstance(module, nn.TransformerEncoderLayer))
    }
    outermost = _outermost(list(inside))
    counts = Counter(inside[name] for name in outermost)
    if not counts:
        return []
    kind, count = counts.most_common(1)[0]
    return [name for name in outermost if inside[name] is kind] if count > 1 else []


def _outermost(names: list[str]) -> list[str]:
    return [name for name in names if not any(name.startswith(f"{other}.") for other in names)]


def _is_layer(module: nn.Module) -> bool:
    """A layer of a transformer, of transformers; RT-DETR's do not derive from the class that the others have."""
    return type(module).__name__.endswith("EncoderLayer") or any(
        kind.__name__ == "GradientCheckpointingLayer" for kind in type(module).__mro__
    )
