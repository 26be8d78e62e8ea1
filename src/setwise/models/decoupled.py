"""Classifiers for a backbone that stays as it is: what decoupled training puts in place of the first stage's head.

Letters: ``B`` samples, ``C`` channels, ``K`` classes. Re-training a fresh head on class-balanced draws (cRT) needs
nothing from here: ``backbone.frozen`` with ``data.sampler`` does it.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from setwise.errors import InvalidInput
from setwise.models.weights import read_state

__all__ = [
    "EXPONENTS",
    "LearnableScale",
    "TauNormalized",
    "choose_exponent",
    "limit_norm",
    "norm_between",
    "tau_normalize",
]

EXPONENTS = tuple(step / 20 for step in range(21))
"""The grid of exponents, 0 to 1 in steps of 0.05. The paper searches 0 to 1 and names no step."""


class LearnableScale(nn.Module):
    """A linear classifier that stays as it was trained, with one learned factor a class on its scores (LWS).

    The paper scales the weight of a class and leaves its bias out of account; here the factor is on the whole score,
    bias included.

    Args:
        dim: width ``C`` of the features.
        num_classes: classes ``K``.

    Source: Kang et al., Decoupling Representation and Classifier, ICLR 2020, arXiv:1910.09217, section 4.

    >>> head = LearnableScale(8, 3)
    >>> [name for name, parameter in head.named_parameters() if parameter.requires_grad]
    ['scales']
    """

    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__()
        start = nn.Linear(dim, num_classes)
        self.weight = nn.Parameter(start.weight.detach(), requires_grad=False)
        self.bias = nn.Parameter(start.bias.detach(), requires_grad=False)
        self.scales = nn.Parameter(torch.ones(num_classes))

    def forward(self, x: Float[Tensor, "B C"]) -> Float[Tensor, "B K"]:
        """Scores of the fixed classifier, each times its class's factor."""
        return self.scales * F.linear(x, self.weight, self.bias)

    def start_from(self, path: str | Path) -> None:
        """Take the linear head of a first stage, ``head.weight`` and ``head.bias`` of its weights file.

        Raises:
            MissingFile: if there is no such file.
            InvalidInput: if it has no linear head of these sizes.
        """
        _take_linear("lws scales", path, {"weight": self.weight, "bias": self.bias})


class TauNormalized(nn.Module):
    """A linear classifier that stays as it was trained, its class weights ``w_j / |w_j| ** tau``, without bias.

    Nothing of it is learned; :meth:`choose` sets ``tau``, which begins at 0.

    Args:
        dim: width ``C`` of the features.
        num_classes: classes ``K``.

    Source: Kang et al., ICLR 2020, arXiv:1910.09217, section 4, tau-normalised classifier.

    >>> head = TauNormalized(8, 3)
    >>> [name for name, parameter in head.named_parameters() if parameter.requires_grad], float(head.tau)
    ([], 0.0)
    """

    tau: Tensor

    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(nn.Linear(dim, num_classes).weight.detach(), requires_grad=False)
        self.register_buffer("tau", torch.zeros(()))

    def forward(self, x: Float[Tensor, "B C"]) -> Float[Tensor, "B K"]:
        """Scores of the fixed weights, each over its weight's length to the power of ``tau``."""
        return F.linear(x, self.weight / _lengths(self.weight)[:, None] ** self.tau)

    def start_from(self, path: str | Path) -> None:
        """Take the linear head of a first stage, ``head.weight`` of its weights file.

        Raises:
            MissingFile: if there is no such file.
            InvalidInput: if it has no linear head of this size.
        """
        _take_linear("tau shortens the weights of", path, {"weight": self.weight})  # a linear head has a bias, too

    @torch.no_grad()
    def choose(self, scores: Float[Tensor, "n K"], target: Int64[Tensor, "n"]) -> None:
        """Set ``tau`` to the one of ``EXPONENTS`` that :func:`choose_exponent` would take.

        Args:
            scores: of the **validation** images, as this head gives them now.
            target: their labels.
        """
        lengths = _lengths(self.weight).to(scores)
        plain = scores * lengths ** float(self.tau)
        self.tau.fill_(_most_balanced(EXPONENTS, lambda tau: plain / lengths**tau, target, num_classes=len(lengths)))


def _lengths(weight: Float[Tensor, "K C"]) -> Float[Tensor, "K"]:
    """Of the class weights; a zero weight stays zero when it is divided by its own."""
    return weight.norm(dim=1).clamp_min(torch.finfo(weight.dtype).tiny)


def _take_linear(does: str, path: str | Path, own: dict[str, nn.Parameter]) -> None:
    state = read_state(path)
    wanted = {"weight": own["weight"].shape, "bias": own["weight"].shape[:1]}
    beside = state.keys() & {"head.scales", "head.tau"}  # of heads that are linear no more
    for name, shape in wanted.items():
        given = state.get(f"head.{name}")
        found = None
        if given is None or given.shape != shape:
            found = "there is none" if given is None else f"it is {list(given.shape)}"
        elif beside:
            found = f"there is {min(beside)} beside it"
        if found is not None:
            raise InvalidInput(
                f"Head {does} the linear head of a first stage, whose `head.{name}` must be {list(shape)}, but {found} "
                f"in {path}: give the weights of a run with --head.name linear on the same classes, or re-train a "
                "fresh head with --head.name linear."
            )
    for name, parameter in own.items():
        parameter.data.copy_(state[f"head.{name}"])


@torch.no_grad()
def limit_norm(head: nn.Linear, max_norm: float) -> None:
    """Shorten, in place, each class weight that is longer than ``max_norm`` to that length; the bias stays.

    Called after every step it is projected gradient descent: large classes cannot win by the length of their weight.

    Args:
        head: a linear classifier ``[K, C]``.
        max_norm: longest weight of a class, above 0.

    Source: Alshammari et al., Long-Tailed Recognition via Weight Balancing, CVPR 2022, arXiv:2203.14197, section 3.

    >>> head = nn.Linear(2, 2)
    >>> head.weight.data = torch.tensor([[3.0, 4.0], [0.0, 0.5]])
    >>> limit_norm(head, 1.0)
    >>> head.weight.data
    tensor([[0.6000, 0.8000],
            [0.0000, 0.5000]])
    """
    length = head.weight.norm(dim=1, keepdim=True)
    head.weight.mul_((max_norm / length.clamp_min(torch.finfo(length.dtype).tiny)).clamp_max(1.0))


def norm_between(head: nn.Linear, share: float) -> float:
    """A limit for :func:`limit_norm`: so far from the shortest (0) to the longest (1) class weight as they are now.

    Source: the code of Alshammari et al., CVPR 2022, whose ``thresh`` is 0.1.

    >>> head = nn.Linear(2, 2)
    >>> head.weight.data = torch.tensor([[3.0, 4.0], [0.0, 1.0]])
    >>> norm_between(head, 0.1)
    1.4
    """
    lengths = head.weight.detach().double().norm(dim=1)
    return float(lengths.min() + share * (lengths.max() - lengths.min()))


def tau_normalize(head: nn.Linear, tau: float) -> nn.Linear:
    """A copy of a linear classifier whose class weights are ``w_j / |w_j| ** tau``, without bias.

    Large classes grow long weights; dividing their length out takes that advantage away. It trains nothing.

    Args:
        head: the classifier as it was trained ``[K, C]``; its bias is left out, as in the paper.
        tau: exponent; 0 keeps the lengths, 1 makes all of them 1. Choose it with :func:`choose_exponent`.

    Raises:
        InvalidInput: if the head is no linear layer, or tau negative or no finite number.

    Source: Kang et al., ICLR 2020, arXiv:1910.09217, section 4, tau-normalised classifier.

    >>> head = nn.Linear(2, 2)
    >>> head.weight.data = torch.tensor([[3.0, 4.0], [0.0, 1.0]])
    >>> tau_normalize(head, 1.0).weight.data
    tensor([[0.6000, 0.8000],
            [0.0000, 1.0000]])
    """
    if not isinstance(head, nn.Linear):
        raise InvalidInput(
            f"`head` must be a linear layer, but it is {type(head).__name__}; a cosine classifier's weights have the "
            "length 1 already."
        )
    if not (math.isfinite(tau) and tau >= 0):
        raise InvalidInput(f"`tau` must be a finite number of 0 or more, but it is {tau}.")
    weight = head.weight.detach()
    made = nn.Linear(head.in_features, head.out_features, bias=False, device=weight.device, dtype=weight.dtype)
    made.weight.data = weight / _lengths(weight)[:, None] ** tau
    return made


@torch.no_grad()
def choose_exponent(
    head: nn.Linear,
    features: Float[Tensor, "n C"],
    target: Int64[Tensor, "n"],
    *,
    exponents: Sequence[float] = EXPONENTS,
) -> float:
    """The ``tau`` of :func:`tau_normalize` with the best balanced accuracy, to be called with **validation** features.

    The paper takes accuracy on a balanced validation set; ours is as imbalanced as what it was held out from, so here
    each class weighs the same. Of equally good exponents the first is taken.

    Args:
        head: the classifier as it was trained.
        features: of the validation images ``[n, C]``, never of test images.
        target: their labels ``[n]``.
        exponents: which to try, at least one.

    Raises:
        InvalidInput: without exponents or images, if rows do not fit, or for what :func:`tau_normalize` refuses.
    """
    if not exponents:
        raise InvalidInput("`exponents` is empty: name at least one to try.")
    if not len(target) or len(target) != len(features):
        raise InvalidInput(f"`features` has {len(features)} rows and `target` {len(target)}; one an image.")
    return _most_balanced(
        exponents, lambda tau: tau_normalize(head, tau)(features), target, num_classes=head.out_features
    )


def _most_balanced(
    exponents: Sequence[float],
    scores_at: Callable[[float], Float[Tensor, "n K"]],
    target: Int64[Tensor, "n"],
    *,
    num_classes: int,
) -> float:
    """The first exponent whose scores have the best balanced accuracy, over the classes that have images."""
    present = target.bincount(minlength=num_classes).double()

    def balanced_accuracy(tau: float) -> float:
        hits = target[scores_at(tau).argmax(1) == target].bincount(minlength=num_classes).double()
        return float((hits / present)[present > 0].mean())

    return max(exponents, key=balanced_accuracy)
