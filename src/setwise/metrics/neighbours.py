"""Nearest neighbours of embedded images: whether a network keeps apart what it was never told apart.

Letters: ``N`` images to look among, ``Q`` queries, ``C`` channels, ``K`` neighbours of each query.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from setwise.errors import InvalidInput

__all__ = ["Collapse", "collapse", "nearest"]

AT_ONCE = 2**25
"""Distances held at a time: 128 MiB in float32."""


@dataclass(frozen=True)
class Collapse:
    """What the neighbours of some queries are, as shares of all neighbours (means over queries), in 0..1."""

    same_class: float
    """Of the query's own class."""
    modal_wrong: float
    """Of the commonest single wrong class among a query's neighbours: high where classes have collapsed onto others."""
    from_train: float
    """Of classes that were trained on."""
    any_correct: float
    """Queries with at least one neighbour of their class."""
    chance_same_class: float
    """What drawing neighbours at random would give."""
    chance_from_train: float


def nearest(
    features: Float[Tensor, "N C"], queries: Int64[Tensor, "Q"], *, num_neighbours: int = 9
) -> Int64[Tensor, "Q K"]:
    """The nearest images of each query by Euclidean distance, nearest first; never the query itself.

    Args:
        features: embeddings of all images.
        queries: places of the queries among them.
        num_neighbours: ``K``. Paper: 9.

    Raises:
        InvalidInput: if there are not so many other images.

    >>> nearest(torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([0, 2]), num_neighbours=1)
    tensor([[1],
            [1]])
    """
    if not 0 < num_neighbours < len(features):
        raise InvalidInput(
            f"`num_neighbours` ({num_neighbours}) must be at least 1 and below the number of images ({len(features)})."
        )
    found = []
    for part in queries.split(max(1, AT_ONCE // len(features))):
        distances = torch.cdist(features[part], features)
        distances[torch.arange(len(part)), part] = torch.inf
        found.append(distances.topk(num_neighbours, largest=False).indices)
    return torch.cat(found)


def collapse(
    neighbours: Int64[Tensor, "Q K"],
    queries: Int64[Tensor, "Q"],
    target: Int64[Tensor, "N"],
    trained: Bool[Tensor, "N"],
) -> Collapse:
    """What the neighbours are: of the same class, of one wrong class, of classes of training.

    Args:
        neighbours: from :func:`nearest`.
        queries: places of the queries.
        target: class of each image; classes of train and test have different numbers.
        trained: whether each image is of a class of training.

    Source: Doersch, Gupta, Zisserman, CrossTransformers, NeurIPS 2020, arXiv:2007.11498, figure 1 and section 1; the
    share of the commonest wrong class is marked there by frames and has no formula, so this one is ours.
    """
    own, theirs = target[queries], target[neighbours]  # [Q], [Q, K]
    same = theirs == own[:, None]
    times = (theirs[:, :, None] == theirs[:, None, :]).sum(2)  # [Q, K]: how often each neighbour's class is there
    wrong = torch.where(same, 0, times).amax(1)
    counts = torch.bincount(target)
    others = len(target) - 1
    of_train = trained.sum() - trained[queries].long()
    return Collapse(
        same_class=float(same.double().mean()),
        modal_wrong=float(wrong.double().mean() / neighbours.shape[1]),
        from_train=float(trained[neighbours].double().mean()),
        any_correct=float(same.any(1).double().mean()),
        chance_same_class=float(((counts[own] - 1) / others).double().mean()),
        chance_from_train=float((of_train / others).double().mean()),
    )
