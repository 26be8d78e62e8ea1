"""PatchConvNet by name, registered with timm, and the way in for official checkpoints.

The names are ``patchconvnet_{s60,s120,b60,b120,l60,l120}``, and the same with ``_multi`` for one query per class.
"""

import argparse
import pickle
import re
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import (
    build_model_with_cfg,
    generate_default_cfgs,
    get_arch_pretrained_cfgs,
    get_pretrained_cfg,
    register_model,
)
from torch import Tensor

from setwise.errors import InvalidInput, MissingFile, RunError, UnknownName
from setwise.models.patchconvnet_network import PatchConvNet

__all__ = ["PatchConvNet", "checkpoint_filter_fn", "in_our_names"]

HOST = "https://dl.fbaipublicfiles.com/deit/"
SIZES = {
    "s60": {"embed_dim": 384, "depth": 60, "init_values": 1e-4},
    "s120": {"embed_dim": 384, "depth": 120, "init_values": 1e-6},
    "b60": {"embed_dim": 768, "depth": 60, "init_values": 1e-6},
    "b120": {"embed_dim": 768, "depth": 120, "init_values": 1e-6},
    "l60": {"embed_dim": 1024, "depth": 60, "init_values": 1e-6},
    "l120": {"embed_dim": 1024, "depth": 120, "init_values": 1e-6},
}
"""Width, blocks and initial layer scale of the released code."""

WRAPPERS = ("state_dict", "model")
NAMES = (
    (r"^module\.", ""),
    (r"^patch_embed\.proj\.0\.0\.", "stem.0."),
    (r"^patch_embed\.proj\.2\.0\.", "stem.1.1."),
    (r"^patch_embed\.proj\.4\.0\.", "stem.2.1."),
    (r"^patch_embed\.proj\.6\.0\.", "stem.3.1."),
    (r"^(blocks\.\d+)\.gamma_1$", r"\1.gamma"),
    (r"^(blocks\.\d+)\.norm1\.", r"\1.norm."),
    (r"^(blocks\.\d+)\.attn\.qkv_pos\.0\.", r"\1.conv1."),
    (r"^(blocks\.\d+)\.attn\.qkv_pos\.2\.", r"\1.dwconv."),
    (r"^(blocks\.\d+)\.attn\.qkv_pos\.4\.conv_reduce\.", r"\1.squeeze."),
    (r"^(blocks\.\d+)\.attn\.qkv_pos\.4\.conv_expand\.", r"\1.excite."),
    (r"^(blocks\.\d+)\.attn\.qkv_pos\.5\.", r"\1.conv2."),
    (r"^cls_token$", "pool.query"),
    (r"^blocks_token_only\.(\d+)\.(?:attn\.|mlp\.)?", r"pool.layers.\1."),
    (r"^norm\.", "pool.norm."),
)
"""Official names of parameters as regular expressions, and ours."""


def checkpoint_filter_fn(state_dict: Mapping[str, Any], model: PatchConvNet) -> dict[str, Tensor]:
    """Turn an official checkpoint into one that ``model`` loads with ``strict=True``.

    One query becomes one per class by repetition, and the per-class layers of the released multi variant become one
    stacked weight. Where the number of classes differs, classifier (and queries of classes) are left out, and so are
    the weights of a pool that the model has not; a warning says so, and ``strict=False`` loads the rest.

    A model of class queries without classes has one, which gets the mean of the checkpoint's.

    Args:
        state_dict: official or our own names, raw or below "model".
        model: what the state is for; it is not changed.

    Raises:
        InvalidInput: if the queries of many classes were to become one for all.

    >>> model = PatchConvNet(embed_dim=32, depth=2, num_classes=5)
    >>> model.load_state_dict(checkpoint_filter_fn({"model": model.state_dict()}, model), strict=True)
    <All keys matched successfully>
    """
    state, own = in_our_names(state_dict), model.state_dict()
    _fit_classes(state, own, model)
    pools = "pool.query" in own
    if left := [name for name in state if name.startswith("pool.") and name not in own and not pools]:
        warnings.warn(
            f"The checkpoint pools by attention and this model does not: {len(left)} weights are left out.",
            stacklevel=2,
        )
    return {name: value for name, value in state.items() if name not in left}


def in_our_names(state_dict: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of an official checkpoint, raw or below "model", by our names and in our shapes; our own stay."""
    for wrapper in WRAPPERS:
        if isinstance(state_dict.get(wrapper), Mapping):
            state_dict = state_dict[wrapper]
    state = {_our_name(name): value for name, value in state_dict.items() if isinstance(value, Tensor)}
    for part in ("weight", "bias"):
        if rows := [name for name in state if re.fullmatch(rf"head\.\d+\.{part}", name)]:
            rows.sort(key=lambda name: int(name.split(".")[1]))
            state[f"head.{part}"] = torch.cat([state.pop(name) for name in rows])
    for name, value in state.items():
        if value.dim() == 4 and not re.search(r"stem|dwconv", name):
            state[name] = value.flatten(1)  # a 1x1 convolution is a linear layer here
    return state


def _our_name(name: str) -> str:
    for pattern, ours in NAMES:
        name = re.sub(pattern, ours, name)
    return name


def _fit_classes(state: dict[str, Tensor], own: Mapping[str, Tensor], model: PatchConvNet) -> None:
    """Repeat one query, and drop what belongs to other classes, in place."""
    dropped = []
    given, wanted = state.get("head.weight"), own.get("head.weight")
    if given is not None and (wanted is None or given.shape[0] != wanted.shape[0]):
        dropped += ["head.weight", "head.bias"]
    query, ours = state.get("pool.query"), own.get("pool.query")
    if query is not None and ours is not None and query.shape != ours.shape:
        many, needed = query.shape[1], ours.shape[1]
        if many == 1:
            state["pool.query"] = query.repeat(1, needed, 1)
        elif model.per_class and model.num_classes == 0:
            state["pool.query"] = query.mean(1, keepdim=True)
        elif model.per_class:
            dropped.append("pool.query")
        else:
            raise InvalidInput(
                f"The checkpoint has one query for each of {many} classes, but the model has one for all. Load it into "
                'the model of the same name with "_multi".'
            )
    if dropped:
        classes = 0 if wanted is None else wanted.shape[0]
        warnings.warn(
            f"The model has {classes} classes and the checkpoint {'others' if given is None else given.shape[0]}, so "
            f"{', '.join(dropped)} of the checkpoint are left out.",
            stacklevel=3,
        )
    for name in dropped:
        state.pop(name, None)


def _cfg(file: str = "", side: int = 224) -> dict[str, Any]:
    patches = side // 16
    return {
        "url": HOST + file if file else "",
        "num_classes": 1000,
        "input_size": (3, side, side),
        "pool_size": (patches, patches),
        "crop_pct": 0.875,  # of the released evaluation; the published accuracies' own is not stated
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "stem.0",
        "classifier": "head",
        "license": "apache-2.0",
        "paper_ids": "arXiv:2112.13692",
    }


default_cfgs = generate_default_cfgs(
    {
        "patchconvnet_s60.fb_in1k": _cfg("s60_224_1k.pth"),
        "patchconvnet_s60.fb_in22k_ft_in1k": _cfg("s60_224_21k.pth"),
        "patchconvnet_s60.fb_in22k_ft_in1k_384": _cfg("s60_384_21k.pth", 384),
        "patchconvnet_s60.fb_in22k_ft_in1k_512": _cfg("s60_512_21k.pth", 512),
        "patchconvnet_s120.fb_in1k": _cfg("s120_224_1k.pth"),
        "patchconvnet_b60.fb_in1k": _cfg("b60_224_1k.pth"),
        "patchconvnet_b60.fb_in22k_ft_in1k": _cfg("b60_224_21k.pth"),
        "patchconvnet_b60.fb_in22k_ft_in1k_384": _cfg("b60_384_21k.pth", 384),
        "patchconvnet_b120.fb_in1k": _cfg("b120_224_1k.pth"),
        "patchconvnet_b120.fb_in22k_ft_in1k": _cfg("b120_224_21k.pth"),
        "patchconvnet_b120.fb_in22k_ft_in1k_384": _cfg("b120_384_21k.pth", 384),
        "patchconvnet_l60.untrained": _cfg(),
        "patchconvnet_l120.untrained": _cfg(),
        "patchconvnet_s60_multi.fb_in1k": _cfg("s60_multi_finetune_1k.pth"),
        "patchconvnet_s60_multi.fb_in1k_scratch": _cfg("s60_multi_scratch_1k.pth"),
        **{f"patchconvnet_{size}_multi.untrained": _cfg() for size in SIZES if size != "s60"},
    }
)


def _create(name: str, pretrained: bool, options: dict[str, Any]) -> PatchConvNet:
    size, _, multi = name.removeprefix("patchconvnet_").partition("_")
    arguments = {**SIZES[size], "per_class": bool(multi), **options}
    out_indices = arguments.pop("out_indices", 3)
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # beside the weights; it holds nothing that runs
            return build_model_with_cfg(
                PatchConvNet,
                name,
                pretrained,
                pretrained_filter_fn=checkpoint_filter_fn,
                feature_cfg={"out_indices": out_indices, "feature_cls": "getter"},
                **arguments,
            )
    except (OSError, RuntimeError, pickle.UnpicklingError) as error:
        if not pretrained:
            raise
        raise _unavailable(name, options, error) from error


def _unavailable(name: str, options: dict[str, Any], error: Exception) -> Exception:
    """The sentence for weights that cannot be had."""
    cfg = options.get("pretrained_cfg")  # a tag, fields, or none
    if isinstance(cfg, str) and cfg not in _tags_of(name):
        return UnknownName(f"There are no weights {cfg!r} of {name}. Choices: {', '.join(_tags_of(name))}.")
    if cfg is None or isinstance(cfg, str):
        cfg = get_pretrained_cfg(f"{name}.{cfg}" if cfg else name)
    fields = cfg if isinstance(cfg, dict) else vars(cfg)
    fields = {**fields, **(options.get("pretrained_cfg_overlay") or {})}
    source = fields.get("file") or fields.get("url")
    if not source:
        return InvalidInput(
            f"Nobody published weights for {name}. Build it with pretrained=False and load a file of your own through "
            "checkpoint_filter_fn."
        )
    if isinstance(error, FileNotFoundError) and fields.get("file"):
        return MissingFile(f"There is no weights file {source}.")
    if isinstance(error, pickle.UnpicklingError) or "loading state_dict" in str(error):
        return InvalidInput(f"The weights from {source} do not fit {name}, or hold more than tensors: {error}")
    return RunError(
        f"The weights of {name} could not be had from {source} ({type(error).__name__}: {error}). Fetch that file "
        f"where there is a network and put it into {torch.hub.get_dir()}/checkpoints, or name it with "
        'pretrained_cfg_overlay={"file": PATH}.'
    )


def _tags_of(name: str) -> list[str]:
    """Tags of the published weights of a network, the default first."""
    return [full.partition(".")[2] for full in get_arch_pretrained_cfgs(name) if "." in full]


@register_model
def patchconvnet_s60(pretrained: bool = False, **options: Any) -> PatchConvNet:
    """S60: width 384, 60 blocks; 25.2 M parameters, 4.0 G multiply-adds at 224 pixels."""
    return _create("patchconvnet_s60", pretrained, options)


@register_model
def patchconvnet_s120(pretrained: bool = False, **options: Any) -> PatchConvNet:
    """S120: width 384, 120 blocks; 47.7 M parameters, 7.5 G multiply-adds at 224 pixels."""
    return _create("patchconvnet_s120", pretrained, options)


@register_model
def patchconvnet_b60(pretrained: bool = False, **options: Any) -> PatchConvNet:
    """B60: width 768, 60 blocks; 99.4 M parameters, 15.8 G multiply-adds at 224 pixels."""
    return _create("patchconvnet_b60", pretrained, options)


@register_model
def patchconvnet_b120(pretrained: bool = False, **options: Any) -> PatchConvNet:
    """B120: width 768, 120 blocks; 188.6 M parameters, 29.8 G multiply-adds at 224 pixels."""
    return _create("patchconvnet_b120", pretrained, options)


@register_model
def patchconvnet_l60(pretrained: bool = False, **options: Any) -> PatchConvNet:
    """L60: width 1024, 60 blocks; 176.0 M parameters, 28.0 G multiply-adds at 224 pixels."""
    return _create("patchconvnet_l60", pretrained, options)


@register_model
def patchconvnet_l120(pretrained: bool = False, **options: Any) -> PatchConvNet:
    """L120: width 1024, 120 blocks; 334.3 M parameters, 52.8 G multiply-adds at 224 pixels."""
    return _create("patchconvnet_l120", pretrained, options)


@register_model
def patchconvnet_s60_multi(pretrained: bool = False, **options: Any) -> PatchConvNet:
    """S60 with one query, and so one attention map, for each class."""
    return _create("patchconvnet_s60_multi", pretrained, options)


@register_model
def patchconvnet_s120_multi(pretrained: bool = False, **options: Any) -> PatchConvNet:
    """S120 with one query, and so one attention map, for each class."""
    return _create("patchconvnet_s120_multi", pretrained, options)


@register_model
def patchconvnet_b60_multi(pretrained: bool = False, **options: Any) -> PatchConvNet:
    """B60 with one query, and so one attention map, for each class."""
    return _create("patchconvnet_b60_multi", pretrained, options)


@register_model
def patchconvnet_b120_multi(pretrained: bool = False, **options: Any) -> PatchConvNet:
    """B120 with one query, and so one attention map, for each class."""
    return _create("patchconvnet_b120_multi", pretrained, options)


@register_model
def patchconvnet_l60_multi(pretrained: bool = False, **options: Any) -> PatchConvNet:
    """L60 with one query, and so one attention map, for each class."""
    return _create("patchconvnet_l60_multi", pretrained, options)


@register_model
def patchconvnet_l120_multi(pretrained: bool = False, **options: Any) -> PatchConvNet:
    """L120 with one query, and so one attention map, for each class."""
    return _create("patchconvnet_l120_multi", pretrained, options)
