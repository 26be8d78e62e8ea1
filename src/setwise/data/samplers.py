"""Which training images an epoch shows: each once, or rare classes more often than they occur.

Letters: ``n`` images, ``K`` classes, ``n_j`` images of class ``j``, ``p_j`` probability that a draw is of class ``j``.
"""

import torch
from jaxtyping import Float64, Int64, Shaped
from torch import Tensor

from setwise.errors import InvalidInput, choose
from setwise.seeds import generator

__all__ = ["SAMPLERS", "class_probabilities", "draw_epoch"]

SAMPLERS = ("shuffle", "class-balanced", "square-root", "class-aware", "progressive")
"""Samplers by name."""

IN_A_ROW = 4  # images of a class that the class-aware sampler takes at a time, as the decoupled-training code sets it


def class_probabilities(
    name: str, counts: Int64[Tensor, "k"], *, epoch: int = 0, epochs: int = 1
) -> Float64[Tensor, "k"]:
    """How often a draw is of each class, ``p_j``; classes without images are never drawn.

    Args:
        name: "shuffle", as they occur (``p_j`` proportional to ``n_j``); "square-root", to the root of ``n_j``;
            "class-balanced" and "class-aware", all alike; "progressive", from as they occur to all alike, linearly over
            the epochs: ``(1 - t / T) n_j / n + t / (T K)``.
        counts: training images of each class ``[K]``.
        epoch: ``t`` of the progressive sampler. The paper does not say where it starts; here it is 0-based, so that the
            first epoch draws classes as they occur.
        epochs: ``T`` of the progressive sampler.

    Returns:
        ``[K]``, summing to 1.

    Raises:
        UnknownName: if there is no such sampler.
        InvalidInput: if there is no image, or the epoch is none of these epochs.

    Source: Kang et al., Decoupling Representation and Classifier, ICLR 2020, arXiv:1910.09217, section 3.

    >>> class_probabilities("square-root", torch.tensor([90, 10]))
    tensor([0.7500, 0.2500], dtype=torch.float64)
    >>> class_probabilities("progressive", torch.tensor([90, 10]), epoch=1, epochs=2)
    tensor([0.7000, 0.3000], dtype=torch.float64)
    """
    choose(name, SAMPLERS, "sampler")
    if not 0 <= epoch < epochs:
        raise InvalidInput(f"`epoch` ({epoch}) must be in 0..{epochs - 1}: there are {epochs} `epochs`.")
    number = counts.double()
    if not bool(number.sum() > 0):
        raise InvalidInput("`counts` has no image at all, so nothing can be drawn.")
    exponent = {"shuffle": 1.0, "square-root": 0.5, "progressive": 1.0}.get(name, 0.0)
    p = _normalised(torch.where(number > 0, number**exponent, 0.0))
    if name == "progressive":
        alike = _normalised((number > 0).double())
        p = p + (alike - p) * epoch / epochs
    return p


def draw_epoch(
    name: str, target: Shaped[Tensor, "n ..."], *, seed: int, epoch: int, epochs: int = 1
) -> Int64[Tensor, "n"]:
    """The images of one epoch in the order in which they are shown; a function of its arguments alone.

    An epoch is as long as the training set whatever the sampler, so that schedules mean the same; the paper does not
    say. "shuffle" shows every image once. "class-aware" goes through the classes in a random order, again and again,
    and takes four images of each from its own shuffled list, which starts anew where it ends: shares are equal and not
    merely equally likely. The others draw a class by :func:`class_probabilities`, then one of its images, each as
    likely, with replacement.

    Args:
        name: one of :data:`SAMPLERS`.
        target: labels of the training images ``[n]``; any target for "shuffle".
        seed: of the run.
        epoch: 0-based. Every epoch is drawn by itself; the official class-aware sampler goes on where the last ended.
        epochs: of the whole training, for "progressive"; later epochs draw as the last of them.

    Returns:
        ``[n]`` places in ``target``.

    Raises:
        UnknownName: if there is no such sampler.
        InvalidInput: if images have several labels, and so no one class to be drawn by.

    Source: Kang et al., as above, section 3; class-aware: Shen et al., Relay Backpropagation, ECCV 2016,
    arXiv:1512.05830, with the four images at a time of the decoupled-training code.

    >>> target = torch.tensor([0] * 97 + [1] * 3)
    >>> target[draw_epoch("class-aware", target, seed=0, epoch=0)].bincount()
    tensor([48, 52])
    """
    choose(name, SAMPLERS, "sampler")
    random = generator(seed, "order", epoch)
    if name == "shuffle":
        return torch.randperm(len(target), generator=random)
    if target.dim() != 1:
        raise InvalidInput(
            f"Sampler {name!r} draws images by their one class, but here an image may have several labels: take "
            "--data.sampler shuffle."
        )
    if not len(target):
        return target.long()
    counts = target.bincount()
    if name == "class-aware":
        return _class_aware(target, counts, random)
    p = class_probabilities(name, counts, epoch=min(epoch, epochs - 1), epochs=epochs)
    classes = torch.multinomial(p, len(target), replacement=True, generator=random)
    drawn = torch.rand(len(target), dtype=torch.float64, generator=random)
    place = (drawn * counts[classes]).long()  # below the count: the largest double below 1 times it rounds below it
    first = counts.cumsum(0) - counts
    return target.argsort(stable=True)[first[classes] + place]


def _class_aware(target: Tensor, counts: Tensor, random: torch.Generator) -> Tensor:
    present = counts.nonzero()[:, 0]
    rounds = -(-len(target) // (IN_A_ROW * len(present)))
    turns = torch.cat([present[torch.randperm(len(present), generator=random)] for _ in range(rounds)])
    classes = turns.repeat_interleave(IN_A_ROW)[: len(target)]  # the class of each draw
    draws_by_class = classes.argsort(stable=True).split(classes.bincount(minlength=len(counts)).tolist())
    images_by_class = target.argsort(stable=True).split(counts.tolist())
    order = torch.empty_like(target)
    for draws, images in zip(draws_by_class, images_by_class, strict=True):
        if len(draws):
            cycles = -(-len(draws) // len(images))
            shuffled = [images[torch.randperm(len(images), generator=random)] for _ in range(cycles)]
            order[draws] = torch.cat(shuffled)[: len(draws)]
    return order


def _normalised(weight: Tensor) -> Tensor:
    return weight / weight.sum()
