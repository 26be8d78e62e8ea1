"""Maps of networks without attention, to compare with: CAM and Grad-CAM from the last map of a convolutional network.

Letters: ``B`` images, ``C`` channels, ``K`` classes, ``h w`` size of the last map.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from setwise.errors import InvalidInput
from setwise.nn.evaluation import in_evaluation

__all__ = ["cam", "grad_cam"]

SAME = 1e-3
"""Largest difference, over the largest score, at which a map's mean is the score but for rounding."""


def cam(
    model: nn.Module, images: Float[Tensor, "B c H W"], classes: Int64[Tensor, "B"] | None = None
) -> Float[Tensor, "B h w"]:
    """Class activation map: the last map's channels, weighted as the classifier weighs their averages.

    Its mean is the class's score without the bias, so it says exactly what each place adds to that score.

    Args:
        model: whose classifier is one linear layer directly on the average of its last map, with timm's methods.
        images: what it takes.
        classes: class of every image; None: the one with the highest score.

    Returns:
        Values of either sign.

    Raises:
        InvalidInput: if the network is another one; this is tested on its scores.

    Source: Zhou et al., Learning Deep Features for Discriminative Localization, CVPR 2016, arXiv:1512.04150.
    """
    classifier = _interface(model).get_classifier()  # type: ignore[operator]
    if not isinstance(classifier, nn.Linear):
        raise InvalidInput(
            f"CAM needs a linear classifier, but that of {type(model).__name__} is a {type(classifier).__name__}: use "
            "grad_cam."
        )
    with in_evaluation(model), torch.no_grad():
        features = _channels_first(model, model.forward_features(images), classifier.in_features)  # type: ignore[operator]
        logits = model(images)
        maps = torch.einsum("kc,bchw->bkhw", classifier.weight, features)  # of all classes, for the test
        means = maps.mean((2, 3)) + (0 if classifier.bias is None else classifier.bias)
    if means.shape != logits.shape or float((means - logits).abs().max()) > SAME * float(logits.abs().max()):
        raise InvalidInput(
            f"CAM needs a classifier directly on the average of the last map, but {type(model).__name__} has something "
            "between or does not average: use grad_cam."
        )
    return maps[torch.arange(len(maps), device=maps.device), _chosen(logits, classes)]


def grad_cam(
    model: nn.Module, images: Float[Tensor, "B c H W"], classes: Int64[Tensor, "B"] | None = None
) -> Float[Tensor, "B h w"]:
    """Gradient-weighted map: the last map's channels, weighted by the mean gradient of the class's score, not below 0.

    Args:
        model: a convolutional network with timm's methods ``forward_features`` and ``forward_head``.
        images: what it takes.
        classes: class of every image; None: the one with the highest score.

    Returns:
        Values of 0 or more; all 0 where nothing speaks for the class.

    Raises:
        InvalidInput: if the network has not these methods, or its last features are no map.

    Source: Selvaraju et al., Grad-CAM, ICCV 2017, arXiv:1610.02391, equations 1 and 2.
    """
    with in_evaluation(_interface(model)):
        with torch.no_grad():
            given = model.forward_features(images)  # type: ignore[operator]
        with torch.enable_grad():
            given = given.detach().requires_grad_()
            logits = model.forward_head(given)  # type: ignore[operator]
            rows = torch.arange(len(logits), device=logits.device)
            (gradient,) = torch.autograd.grad(logits[rows, _chosen(logits, classes)].sum(), given)
    width = getattr(model, "num_features", None)
    features, gradient = (_channels_first(model, x.detach(), width) for x in (given, gradient))
    return torch.einsum("bc,bchw->bhw", gradient.mean((2, 3)), features).relu()


def _interface(model: nn.Module) -> nn.Module:
    missing = [n for n in ("forward_features", "forward_head", "get_classifier") if not hasattr(model, n)]
    if missing:
        raise InvalidInput(
            f"{type(model).__name__} has no {', '.join(missing)}: CAM and Grad-CAM take the networks of timm, which "
            "have."
        )
    return model


def _channels_first(model: nn.Module, features: Tensor, width: int | None) -> Tensor:
    if features.dim() != 4:
        raise InvalidInput(
            f"The last features of {type(model).__name__} have shape {list(features.shape)}, which is no map [B, C, h, "
            "w]: for a vision transformer use rollout."
        )
    return features.permute(0, 3, 1, 2) if features.shape[1] != width == features.shape[3] else features


def _chosen(logits: Tensor, classes: Tensor | None) -> Tensor:
    if classes is None:
        return logits.argmax(1)
    if classes.shape != logits.shape[:1] or not 0 <= int(classes.min()) <= int(classes.max()) < logits.shape[1]:
        raise InvalidInput(
            f"`classes` must be one number below {logits.shape[1]} for each of {len(logits)} images, but it is "
            f"{classes.tolist()}."
        )
    return classes
