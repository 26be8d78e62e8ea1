"""A network that was trained elsewhere, by its name and its file of weights: whole, or not at all."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from timm.models import get_pretrained_cfg
from torch import Tensor, nn

from setwise.errors import InvalidInput
from setwise.models.backbone import create_backbone
from setwise.models.patchconvnet import PatchConvNet, checkpoint_filter_fn
from setwise.models.weights import read_state, without_prefixes
from setwise.nn import AttentionPool, attention_pooling

__all__ = ["create_trained"]

MOST_LISTED = 5


def create_trained(
    name: str,
    weights: str | Path,
    *,
    image_size: int | None = None,
    options: Mapping[str, Any] | None = None,
    pool_heads: int = 1,
) -> nn.Module:
    """Build a timm model with its classifier and load all its weights, in evaluation.

    The number of classes is read from the weights, official PatchConvNets are renamed, and where the weights have
    attention pooling that the model has not by itself, :func:`setwise.nn.attention_pooling` puts it in.

    Args:
        name: any of timm's models, ours among them.
        weights: .safetensors, or a file of torch that is read with ``weights_only=True``.
        image_size: side in pixels, for models whose size is fixed when they are built.
        options: further arguments of the model, as timm names them.
        pool_heads: of a pool that was put in, which no weight tells.

    Raises:
        UnknownName: if timm has no such model.
        MissingFile: if there is no such file.
        InvalidInput: if it cannot be read, or is not exactly of this model.
    """
    state = read_state(weights)
    classes = _number_of_classes(state, name)
    given = {} if classes is None else {"num_classes": classes}
    model = create_backbone(name, image_size=image_size, options={**given, **(options or {})})
    queries = [value for key, value in state.items() if key.endswith("pool.query") and value.dim() == 3]
    if queries and not any(isinstance(module, AttentionPool) for module in model.modules()):
        attention_pooling(model, num_queries=queries[0].shape[1], num_heads=pool_heads)
    own = model.state_dict()
    candidates = without_prefixes(state)
    if isinstance(model, PatchConvNet):
        candidates = [checkpoint_filter_fn(candidate, model) for candidate in candidates]
    state = max(candidates, key=lambda candidate: len(own.keys() & candidate.keys()))
    _check_fit(state, own, f"{weights} is not of {name}")
    model.load_state_dict(state, strict=True)
    return model.eval()


def _number_of_classes(state: Mapping[str, Tensor], name: str) -> int | None:
    """Rows of the classifier, which is one layer or, in official networks with a query a class, one a class."""
    cfg = get_pretrained_cfg(name, allow_unregistered=True)
    layer = getattr(cfg, "classifier", None) or "fc"
    for each in [layer] if isinstance(layer, str) else layer:  # the others, of distilled networks, have as many
        pattern = rf"(?:^|\.){re.escape(each)}(?:\.\d+)?\.weight$"
        if rows := [value.shape[0] for key, value in state.items() if re.search(pattern, key)]:
            return sum(rows)
    return None


def _check_fit(state: Mapping[str, Tensor], own: Mapping[str, Tensor], what: str) -> None:
    wrong = {
        "missing": [key for key in own if key not in state],
        "not in the model": [key for key in state if key not in own],
        "of another shape": [key for key in state if key in own and state[key].shape != own[key].shape],
    }
    if any(wrong.values()):
        told = [f"{len(keys)} {kind} ({', '.join(keys[:MOST_LISTED])})" for kind, keys in wrong.items() if keys]
        raise InvalidInput(f"{what}: of its tensors {'; '.join(told)}. Name the model and --options it was made with.")
