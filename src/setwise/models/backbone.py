"""Image -> feature, by timm's names."""

import difflib

import timm
import torch
from torch import nn

from setwise.errors import InvalidInput, RunError, SetwiseError, UnknownName
from setwise.models import cifar_resnet, digits_cnn, expert_resnet, multi_expert
from setwise.nn.evaluation import in_evaluation

__all__ = ["OURS", "create_backbone", "feature_dim", "list_backbones", "pretrained_statistics"]

OURS = {
    "cifar_resnet32": cifar_resnet.cifar_resnet32,
    "ride_resnet32": multi_expert.ride_resnet32,
    "ride_resnet10": expert_resnet.ride_resnet10,
    "ride_resnet50": expert_resnet.ride_resnet50,
    "ride_resnext50_32x4d": expert_resnet.ride_resnext50_32x4d,
    "digits_cnn": digits_cnn.digits_cnn,
}
"""What this library registers with timm."""


def list_backbones(pattern: str) -> list[str]:
    """Names of timm's models, ours among them, that match a shell pattern such as "vit_small*"."""
    return timm.list_models(pattern)


def create_backbone(
    name: str,
    *,
    pretrained: bool = False,
    in_chans: int = 3,
    image_size: int | None = None,
    num_classes: int | None = 0,
    options: dict[str, object] | None = None,
) -> nn.Module:
    """Build a timm model, by default without its classifier: images ``[B, in_chans, H, W]`` -> features ``[B, C]``.

    Args:
        name: any of timm's models, ours among them.
        pretrained: load timm's weights, from its cache or a network.
        in_chans: channels of the images.
        image_size: side in pixels, for models whose size is fixed when they are built (ViT, Swin); the others take
            any.
        num_classes: of its classifier; 0: none, None: as many as the model was made for.
        options: further arguments of the model, as timm names them.

    Raises:
        UnknownName: if timm has no such model or no such tag; the nearest names are listed.
        InvalidInput: if the model does not take one of the options, or nobody published weights for it.
        RunError: if pretrained weights cannot be had.
    """
    base = name.split(".")[0]
    if not timm.is_model(base):
        near = difflib.get_close_matches(base, timm.list_models(), n=5, cutoff=0.5)
        raise UnknownName(
            f"There is no backbone {name!r} in timm {timm.__version__}. "
            + (f"Nearest: {', '.join(near)}." if near else "`setwise list backbones PATTERN` searches all names.")
        )
    if pretrained and base not in OURS and not timm.models.is_model_pretrained(base):
        raise InvalidInput(
            f"timm {timm.__version__} has no weights for {name!r}; start from a file with --backbone.weights."
        )
    arguments: dict[str, object] = {"pretrained": pretrained, "in_chans": in_chans, "num_classes": num_classes}
    arguments |= options or {}
    sizes = ({"img_size": image_size}, {}) if image_size and base not in OURS else ({},)
    for size in sizes:  # a model either takes its size when it is built or has none
        try:
            return timm.create_model(name, **arguments, **size)  # type: ignore[arg-type]
        except TypeError as error:
            if not size or "img_size" not in str(error):
                raise InvalidInput(f"Backbone {name!r} does not take these options: {error}.") from error
        except SetwiseError:  # of our own networks, which say where their weights are
            raise
        except (OSError, RuntimeError) as error:
            if "pretrained tag" in str(error):
                raise UnknownName(f"{error} Choices: {', '.join(timm.list_pretrained(f'{base}.*'))}.") from error
            if not pretrained:
                raise
            raise RunError(
                f"The pretrained weights of {name!r} are neither in timm's cache nor to be had from the network "
                f"({type(error).__name__}). Connect once, set HF_HOME to a cache that has them, or start from a file "
                "with --backbone.weights."
            ) from error
    raise AssertionError("the last size is empty, so its error was raised")


def pretrained_statistics(name: str) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and deviation of each channel, of pixels in 0..1, that the weights of a timm model expect; None: not known.

    >>> pretrained_statistics("vit_small_patch16_224")
    ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    """
    try:
        known = timm.models.get_pretrained_cfg(name)
    except RuntimeError:  # of a tag that does not exist, which building the model explains
        return None
    return None if known is None else (tuple(known.mean), tuple(known.std))


def feature_dim(backbone: nn.Module, *, in_chans: int, image_size: int) -> int:
    """Width of the pooled features, asked of the model itself.

    timm's ``num_features`` is not it for models whose head has a hidden layer; where the model does not say, two zero
    images tell.
    """
    known = getattr(backbone, "head_hidden_size", None)
    if isinstance(known, int):
        return known
    device = next((p.device for p in backbone.parameters()), None)
    with in_evaluation(backbone), torch.no_grad():  # norms keep their statistics, dropout draws nothing
        shape = backbone(torch.zeros(2, in_chans, image_size, image_size, device=device)).shape
    if len(shape) != 2:
        raise InvalidInput(f"The backbone must return features [B, C], but it returned {tuple(shape)}.")
    return shape[1]
