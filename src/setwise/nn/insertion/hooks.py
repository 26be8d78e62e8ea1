"""The hooks that put a relation into a model: they fork the batch, relate it, and keep the rest of the model in step.

They are methods of small objects that a model holds, so that a copied or pickled model has its own, and they look at
nothing but ``relation.training`` and the tensors in hand: a layer that is computed again in the backward pass
(gradient checkpointing) does the same again.

Two ways to make a second stream:

* **fork**: the first relation doubles the batch, and everything behind it sees ``2B`` rows by itself.
* **doubled**: the model's *inputs* are doubled, because code behind the relation counts samples by them or takes masks
  and positions of every sample (transformers). What comes before the relation is then run ``Once``.

What is doubled is known by its name (``INPUTS``, ``ARGUMENTS``), never by its size.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from setwise.errors import InvalidInput
from setwise.nn import streams
from setwise.nn.batchformer import BatchFormer, BatchFormerV2

__all__ = ["ARGUMENTS", "INPUTS", "OTHER_ARGUMENTS", "Entry", "InOrder", "Inputs", "Once", "Relate", "parameters_of"]

# fmt: off
INPUTS = frozenset({
        "input_ids", "attention_mask", "token_type_ids", "position_ids", "inputs_embeds", "labels",
        "pixel_values", "pixel_mask", "pixel_attention_mask", "spatial_shapes", "bool_masked_pos",
        "mask_labels", "class_labels", "decoder_input_ids", "decoder_attention_mask", "decoder_inputs_embeds",
        "decoder_position_ids", "bbox", "image", "inputs", "task_type_ids", "lang_ids", "langs", "lengths",
        "global_attention_mask", "entity_ids", "entity_attention_mask", "entity_position_ids",
        "entity_token_type_ids", "input_mask", "perm_mask", "target_mapping", "input_shape_ids",
        "input_pronunciation_ids", "xpath_tags_seq", "xpath_subs_seq", "table_mask", "numeric_values",
        "numeric_values_scale", "float_answer", "answer", "aggregation_labels",
})
# fmt: on
"""Arguments of transformers' models that hold one row, or one entry of a list, for each sample."""

ARGUMENTS: Mapping[str, frozenset[int]] = {
    "hidden_states": frozenset({3, 4}),
    "attention_mask": frozenset({2, 3, 4}),  # [B, N], [B, N, N] or [B, 1, N, N]
    "position_embeddings": frozenset({3}),  # cosine and sine [B, N, C]; [N, C] are the same for all samples
    "spatial_position_embeddings": frozenset({3}),
    "object_queries": frozenset({3}),
    "reference_points": frozenset({4}),  # [B, N, levels, 2]
    "position_ids": frozenset({2}),
    "pixel_values": frozenset({4, 5}),
    "pixel_mask": frozenset({3}),
}
"""Arguments of layers that hold one row for each sample, with the numbers of axes they then have."""

# fmt: off
OTHER_ARGUMENTS = frozenset({
        "self", "kwargs", "past_key_values", "use_cache", "output_attentions", "output_hidden_states",
        "spatial_shapes", "spatial_shapes_list", "level_start_index", "input_dimensions", "height", "width",
        "resolution", "interpolate_pos_encoding", "always_partition", "layer_idx", "cache_position",
        "encoder_hidden_states", "encoder_attention_mask", "relative_position_bias", "return_dict",
        "output_hidden_states_before_downsampling",
})
# fmt: on
"""Arguments of layers that are the same for all samples, or absent in an encoder."""

COUNT = "num_items_in_batch"
"""By this number transformers' losses divide a sum, which is over both streams."""


@dataclass(frozen=True)
class Entry:
    """What happens to one entry of a layer's output.

    Attributes:
        relation: relates it; None: the entry belongs to the samples in another way and is repeated.
        channels_first: it is a map ``[B, C, H, W]``.
    """

    relation: nn.Module | None
    channels_first: bool = False


MASK = "attention_mask"
"""How transformers calls the argument that tells tokens from padding."""


class ModelMask:
    """Keeps the mask ``[B, N]`` that a model was given last; None where it had another form or there was none."""

    mask: Tensor | None = None

    def keep(self, model: nn.Module, args: tuple, kwargs: dict) -> None:
        """Hook before the model."""
        mask = _bind(model, args, kwargs)[0].get(MASK)
        self.mask = mask if isinstance(mask, Tensor) and mask.dim() == 2 else None


class Relate:
    """Relate what a module takes (a classifier's features) or gives (a layer's output).

    Args:
        relation: any relation of the insertion: its ``training`` decides.
        entries: for each entry of the input or output what to do; None: leave it.
        first: this is the first place: the batch forks here.
        doubled: rows arrive doubled at the first place, too.
        mask_padding: keep padding, as the layer's ``attention_mask`` tells it, out of the relation.
        model_mask: the model's own mask, for a layer that is given none; its tokens must be the model's.
    """

    def __init__(
        self,
        relation: nn.Module,
        entries: tuple[Entry | None, ...],
        *,
        first: bool,
        doubled: bool = False,
        mask_padding: bool = False,
        model_mask: ModelMask | None = None,
    ) -> None:
        self.relation, self.entries, self.model_mask = relation, entries, model_mask
        self.first, self.doubled, self.mask_padding = first, doubled, mask_padding

    def features(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        """Hook before a classifier: double its features ``[B, C]``, maps ``[B, C, H, W]`` or tokens."""
        if not args:
            name, x = next(iter(kwargs.items()))
            related = self._entry(x, self.entries[0], None)
            return None if related is x else ((), {**kwargs, name: related})
        related = self._entry(args[0], self.entries[0], None)
        return None if related is args[0] else ((related, *args[1:]), kwargs)

    def output(self, module: nn.Module, args: tuple, kwargs: dict, output: Any) -> Any:
        """Hook behind a layer: double its output, or relate the second half of it."""
        if not self.relation.training and not _is_watched(self.relation):
            return None
        padding = self._padding(module, args, kwargs, output) if self.mask_padding else None
        if isinstance(output, Tensor):
            self._check_features(output)
            return self._entry(output, self.entries[0], padding)
        if not isinstance(output, tuple | list):
            raise InvalidInput(
                f"A relation follows tensors, tuples and lists, but {type(module).__name__} gives "
                f"{type(output).__name__}. Name a layer inside of it with `at`."
            )
        given = [*self.entries, *[None] * (len(output) - len(self.entries))]
        related = [self._entry(x, entry, padding) for x, entry in zip(output, given, strict=True)]
        return type(output)(*related) if hasattr(output, "_fields") else type(output)(related)

    def _entry(self, x: Any, entry: Entry | None, padding: Tensor | None) -> Any:
        if entry is None or not isinstance(x, Tensor):
            return x
        if entry.relation is None:
            return torch.cat([x, x]) if self.relation.training and self.first and not self.doubled else x
        if not self.relation.training:
            if _is_watched(entry.relation):  # record_attention looks on; what the relation returns is x itself
                _relate(entry, x, True, padding)
            return x
        if self.first and self.doubled:
            x = x.chunk(2)[0]
        return _relate(entry, x, self.first, padding)

    def _check_features(self, x: Tensor) -> None:
        relation = entry.relation if (entry := self.entries[0]) is not None else None
        if isinstance(relation, BatchFormer) and x.dim() > 2 and x.numel() != x.shape[0] * relation.dim:
            raise InvalidInput(
                f"BatchFormer relates one feature vector [B, C] a sample, but {tuple(x.shape)} passes here. Use "
                '"batchformer-v2", which relates every position.'
            )

    def _padding(self, module: nn.Module, args: tuple, kwargs: dict, output: Any) -> Tensor | None:
        """``[B, N]``, True where a sample is padding, from the layer's own ``attention_mask``; None: no padding."""
        if self.model_mask is not None:
            mask, tokens = self.model_mask.mask, output if isinstance(output, Tensor) else output[0]
            same = mask is not None and tokens.dim() == 3 and tokens.shape[1] == mask.shape[1]
            return ~mask.bool() if mask is not None and same else self._nobody(output)
        mask = _bind(module, args, kwargs)[0].get(MASK)
        if mask is None:
            return self._nobody(output)
        if not isinstance(mask, Tensor) or mask.dim() not in (2, 4):
            raise InvalidInput(
                f"`mask_padding` reads padding from attention masks [B, N] and [B, 1, N, N], but "
                f"{type(module).__name__} got {type(mask).__name__}. Pass mask_padding=False, or "
                'attn_implementation="sdpa" or "eager" to the model.'
            )
        if mask.dim() == 4:  # a key that no query may attend to; masks that are added have large negative numbers
            attended = mask > torch.finfo(mask.dtype).min / 2 if mask.is_floating_point() else mask.bool()
            mask = attended.any(1).any(1)  # [B, heads, queries, keys] -> [B, keys]
        padding = ~mask.bool()
        return padding if self._one_stream() else padding.chunk(2)[0]

    def _nobody(self, output: Any) -> Tensor | None:
        """No padding, said with a mask where other processes may have some: all of them must gather alike."""
        if not getattr(self.relation, "gather", False):
            return None
        tokens = output if isinstance(output, Tensor) else output[0]
        if not isinstance(tokens, Tensor) or tokens.dim() != 3:
            return None
        samples = len(tokens) if self._one_stream() else len(tokens) // 2
        return torch.zeros(samples, tokens.shape[1], dtype=torch.bool, device=tokens.device)

    def _one_stream(self) -> bool:
        """Whether what passes here has not been doubled yet."""
        return not self.relation.training or (self.first and not self.doubled)


def _relate(entry: Entry, x: Tensor, first: bool, padding: Tensor | None) -> Tensor:
    relation = entry.relation
    if not isinstance(relation, BatchFormer | BatchFormerV2):
        return relation(x) if first else relation(x, first=False)  # type: ignore[misc]
    if isinstance(relation, BatchFormerV2) and relation.channels_first:
        return relation(x, first, padding)
    tokens = x.movedim(1, -1) if entry.channels_first else x
    tokens = tokens.flatten(1, -2) if tokens.dim() > 2 else tokens.unsqueeze(1)  # [B, ..., C] -> [B, N, C]
    if isinstance(relation, BatchFormerV2):
        related = relation(tokens, first, padding)
    elif tokens.shape[1] != 1:
        related = streams.join(tokens, relation._relate(tokens))  # scored first and pooled later: at every position
    elif first:
        related = relation(tokens.squeeze(1)).unsqueeze(1)
    else:
        plain, second = tokens.squeeze(1).chunk(2)
        related = streams.join(plain, relation.relate(second)).unsqueeze(1)
    if x.dim() == 2:
        return related.squeeze(1)
    if entry.channels_first:
        return related.transpose(1, 2).unflatten(2, x.shape[2:])  # [2B, N, C] -> [2B, C, H, W]
    return related.unflatten(1, x.shape[1:-1])


def _is_watched(relation: nn.Module) -> bool:
    """Somebody hooked the relation itself, as :func:`record_attention` does: it is called in evaluation, too."""
    return bool(relation._forward_pre_hooks)


class InOrder:
    """The forward pass of a ``Sequential`` that holds a relation, which is none of the modules it runs."""

    def __init__(self, model: nn.Module, relation: str) -> None:
        self.model, self.relation = model, relation

    def forward(self, x: Any) -> Any:
        """Stands in for the model's own."""
        for name, module in self.model._modules.items():
            if name != self.relation and module is not None:
                x = module(x)
        return x


class Inputs:
    """Double the inputs of a model, by name.

    Args:
        relation: its ``training`` decides.
        also: further names that hold one row for each sample.
    """

    def __init__(self, relation: nn.Module, also: frozenset[str]) -> None:
        self.relation, self.names = relation, INPUTS | also

    def double(self, model: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        """Hook before the model."""
        if not self.relation.training:
            return None
        named, rest = _bind(model, args, kwargs)
        main = named.get(getattr(model, "main_input_name", ""))
        candidates = [main, *(value for name, value in named.items() if name in self.names)]
        rows = next((len(value) for value in candidates if isinstance(value, Tensor) and value.dim()), 0)
        if not rows or any(isinstance(value, Tensor) for value in rest):
            raise InvalidInput(
                f"In training the inputs of {type(model).__name__} are doubled by their names, but its forward takes "
                f"({', '.join(parameters_of(model))}), and was given no tensor by the name of one, or some without. "
                "Give its arguments names."
            )
        doubled = {name: self._double(name, value, rows) for name, value in named.items()}
        positional = tuple(doubled.pop(name) for name in list(named)[: len(args) - len(rest)])
        return (*positional, *rest), doubled

    def _double(self, name: str, value: Any, rows: int) -> Any:
        if name == COUNT and value is not None:
            return 2 * value
        if not isinstance(value, Tensor | list | tuple) or (isinstance(value, Tensor) and value.dim() == 0):
            return value
        if name not in self.names:
            if isinstance(value, Tensor):
                raise InvalidInput(
                    f"It is not known whether `{name}` {tuple(value.shape)} has one row for each sample and is to be "
                    f'doubled in training. If so, say insert(..., doubled=["{name}"]).'
                )
            return value
        if len(value) not in (rows, 1):
            raise InvalidInput(f"`{name}` must have one row for each of {rows} samples, but it has {len(value)}.")
        if len(value) != rows:
            return value  # one row for all samples, as position_ids may have
        return torch.cat([value, value]) if isinstance(value, Tensor) else type(value)([*value, *value])


class Once:
    """Run a module on one stream only, and repeat what it gives: before the relation both streams are the same.

    Args:
        relation: its ``training`` decides.
        names: its arguments that hold one row for each sample; None: every tensor does.
    """

    def __init__(self, relation: nn.Module, names: Mapping[str, frozenset[int]] | None) -> None:
        self.relation, self.names = relation, names

    def halve(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        """Hook before the module."""
        if not self.relation.training:
            return None
        named, rest = _bind(module, args, kwargs)
        halved = {name: _each(value, partial(self._half, name)) for name, value in named.items()}
        positional = tuple(halved.pop(name) for name in list(named)[: len(args) - len(rest)])
        return (*positional, *rest), halved

    def repeat(self, module: nn.Module, args: tuple, kwargs: dict, output: Any) -> Any:
        """Hook behind the module."""
        return _each(output, lambda t: torch.cat([t, t])) if self.relation.training else None

    def _half(self, name: str, value: Tensor) -> Tensor:
        batched = self.names is None or value.dim() in self.names.get(name, ())
        return value.chunk(2)[0] if batched and value.dim() and len(value) > 1 else value  # doubled rows are never one


def parameters_of(module: nn.Module, *, positional: bool = False) -> list[str]:
    """Names of the arguments of a module's ``forward``, all or those that can be given by position."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(module.forward).parameters.values()
    return [p.name for p in parameters if p.kind in kinds or not positional]


def _bind(module: nn.Module, args: tuple, kwargs: dict) -> tuple[dict[str, Any], tuple]:
    """Name positional arguments by the signature of ``forward``; what cannot be named comes back as it is."""
    names = parameters_of(module, positional=True)
    return {**dict(zip(names, args, strict=False)), **kwargs}, args[len(names) :]


def _each(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Change every tensor in nested tuples, lists and mappings; the rest stays."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping):
        return type(value)(**{key: _each(item, change) for key, item in value.items()})
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_each(item, change) for item in value))
    return type(value)(_each(item, change) for item in value) if isinstance(value, tuple | list) else value
