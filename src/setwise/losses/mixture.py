"""GLMC's losses: images mixed in two ways, a classifier that leans towards rare classes as training goes on.

Letters: ``N`` rows of logits (both streams, if there are two), ``K`` classes, ``D`` width of the projected features.
"""

import torch.nn.functional as F
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

from setwise.errors import InvalidInput
from setwise.losses.long_tailed import CrossEntropy
from setwise.losses.targets import check_counts, check_labels, full

__all__ = ["GLMC", "mixture_consistency", "rare_class_weights"]


def rare_class_weights(counts: Int64[Tensor, "k"], power: float = 1.2) -> Float[Tensor, "k"]:
    """Class weights ``n_j ** -power``, scaled to a sum of ``K``.

    >>> import torch
    >>> rare_class_weights(torch.tensor([4, 1]), power=0.5)
    tensor([0.6667, 1.3333])
    """
    check_counts(counts)
    weights = counts.double() ** -power
    return (weights * len(weights) / weights.sum()).float()


def mixture_consistency(prediction: Float[Tensor, "n d"], projection: Float[Tensor, "n d"]) -> Float[Tensor, "n"]:
    """Minus the cosine between what is predicted from one mixture and the other mixture's projection, without gradient.

    Args:
        prediction: of one mixture ``[N, D]``, of any length.
        projection: of the other mixture of the same images; nothing flows back into it.

    Source: Du et al., GLMC, CVPR 2023, arXiv:2305.08661, after Chen and He, SimSiam, CVPR 2021, arXiv:2011.10566.

    >>> import torch
    >>> mixture_consistency(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
    tensor([-1., -0.])
    """
    if prediction.shape != projection.shape:
        raise InvalidInput(f"`prediction` is {list(prediction.shape)}, but `projection` {list(projection.shape)}.")
    return -F.cosine_similarity(full(prediction), full(projection.detach()))


class GLMC(CrossEntropy):
    """Cross-entropy on mixed labels, blended over training with one that weighs rare classes more.

    Called on scores alone, as criteria are, it is cross-entropy. A task that mixes images calls :meth:`mixed`. The
    blend is ``a * CE(beside, p) + (1 - a) * CE(logits, w p)`` with ``a = 1 - progress ** 2``: a classifier beside
    learns the labels as they are, the one that is kept learns them weighted by :func:`rare_class_weights`.

    Args:
        counts: training images ``n_j`` of each class ``[K]``, all positive.
        consistency: weight of :func:`mixture_consistency`. Authors: 4; CIFAR-10-LT 1 to 4, ImageNet-LT 10.
        label_power: exponent of the class weights. Authors: 1.2; ImageNet-LT: 1.
        mixture: both parameters of the Beta distribution that shares are drawn from. Authors: 1, for their option beta,
            0.5, has no effect.
        class_weights: see :class:`Criterion`; the paper has its own.
        reweight_epoch: see :class:`Criterion`.

    Source: Du et al., GLMC, CVPR 2023, arXiv:2305.08661, and their code, ynu-yangpeng/GLMC at df7e2da.

    >>> import torch
    >>> criterion = GLMC(counts=torch.tensor([9, 1]))
    >>> zeros, halves = torch.zeros(1, 2), torch.tensor([[0.5, 0.5]])
    >>> criterion.mixed(zeros, zeros, halves, progress=0.0)  # log 2
    tensor([0.6931])
    """

    rare: Tensor

    def __init__(
        self,
        *,
        counts: Int64[Tensor, "k"],
        consistency: float = 4.0,
        label_power: float = 1.2,
        mixture: float = 1.0,
        class_weights: Float[Tensor, "k"] | None = None,
        reweight_epoch: int | None = None,
    ) -> None:
        super().__init__(class_weights=class_weights, reweight_epoch=reweight_epoch)
        for name, value in (("consistency", consistency), ("label_power", label_power)):
            if value < 0:
                raise InvalidInput(f"`{name}` ({value:g}) must be 0 or more.")
        if not mixture > 0:
            raise InvalidInput(f"`mixture` ({mixture:g}) must be above 0.")
        self.consistency, self.mixture = consistency, mixture
        self.register_buffer("rare", rare_class_weights(counts, label_power), persistent=False)

    def mixed(
        self,
        logits: Float[Tensor, "n k"],
        beside: Float[Tensor, "n k"],
        target: Shaped[Tensor, "n k"],
        *,
        progress: float,
    ) -> Float[Tensor, "n"]:
        """Losses of mixed images.

        Args:
            logits: of the classifier that is kept.
            beside: of the one that is used in training alone.
            target: shares of the classes in each image.
            progress: part of the training that is over, 0..1.

        Raises:
            InvalidInput: if the target does not fit the logits.
        """
        check_labels(logits, target)
        plain, weighted = (
            -(shares * full(scores).log_softmax(1)).sum(1)
            for scores, shares in ((beside, target), (logits, target * self.rare.to(target.dtype)))
        )
        kept = 1 - progress**2
        return kept * plain + (1 - kept) * weighted
