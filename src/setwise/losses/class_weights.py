"""How much a class counts in the loss, from a short specification and the training counts."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from setwise.errors import InvalidInput, choose
from setwise.losses.targets import check_counts

__all__ = ["class_weights"]

BETA = 0.9999  # the largest value that Cui et al. try on CIFAR, and the one in LDAM's and RIDE's code
BY_NAME = "NAME=WEIGHT,..."


def class_weights(spec: str, counts: Int64[Tensor, "k"], class_names: Sequence[str]) -> Float[Tensor, "k"] | None:
    """Weights of the classes, for the criteria's argument of the same name.

    Args:
        spec: "none"; "auto", inverse frequency ``N / (K * n_c)``, so that all classes weigh the same in total
            (scikit-learn's "balanced"); "effective-number", ``(1 - beta) / (1 - beta ** n_c)`` with beta 0.9999, scaled
            to sum ``K``; or by name, "cat=2,dog=0.5", where all others weigh 1.
        counts: training images ``n_c`` of each class ``[K]``.
        class_names: the ``K`` names, in the order of ``counts``.

    Returns:
        ``[K]``, all positive; None for "none".

    Raises:
        UnknownName: if the specification or a class name in it is unknown.
        InvalidInput: if a weight is not a positive number, a class is named twice, or a class without training images
            would get its weight from its count.

    Source: Cui et al., Class-Balanced Loss Based on Effective Number of Samples, CVPR 2019, arXiv:1901.05555,
    section 4.

    >>> class_weights("auto", torch.tensor([30, 10]), ["cat", "dog"])
    tensor([0.6667, 2.0000])
    >>> class_weights("dog=3", torch.tensor([30, 10]), ["cat", "dog"])
    tensor([1., 3.])
    """
    if len(class_names) != len(counts):
        raise InvalidInput(f"`class_names` has {len(class_names)} names but `counts` has {len(counts)} classes.")
    if "=" in spec:
        return _by_name(spec, class_names)
    choose(spec, ["none", "auto", "effective-number", BY_NAME], "specification of class weights")
    if spec == "none":
        return None
    check_counts(counts, class_names)
    number = counts.double()
    if spec == "auto":
        return (number.sum() / (len(number) * number)).float()
    # expm1 keeps the digits of 1 - beta ** n, and where beta ** n is far below 1 the weights just become equal
    weight = (1 - BETA) / -torch.expm1(number * math.log(BETA))
    return (weight * len(weight) / weight.sum()).float()


def _by_name(spec: str, class_names: Sequence[str]) -> Float[Tensor, "k"]:
    given: dict[str, float] = {}
    for part in spec.split(","):
        name, _, text = (piece.strip() for piece in part.rpartition("="))  # the last "=": a class name may hold one
        choose(name, class_names, "class")
        if name in given:
            raise InvalidInput(f"`class_weights` names the class {name!r} twice in {spec!r}; give it one weight.")
        given[name] = _positive(text, name)
    return torch.tensor([given.get(name, 1.0) for name in class_names])


def _positive(text: str, name: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise InvalidInput(f"The weight of class {name!r} must be a positive number, not {text!r}: {name}=2, say.")
    return value
