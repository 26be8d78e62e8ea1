"""Class rates that are learned: how often images of each class should be drawn, by what helps on a balanced set.

Letters: ``P`` images to choose from, ``B`` draws, ``K`` classes, ``C`` channels.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.func import functional_call

from setwise.errors import InvalidInput
from setwise.nn import streams
from setwise.nn.gather import place

__all__ = ["Drawn", "MetaSampler", "meta_gradient"]


BETAS, EPSILON = (0.9, 0.999), 1e-8
"""Adam's."""


class Drawn(NamedTuple):
    """Images drawn by learned rates."""

    place: Int64[Tensor, "B"]
    """Where each stands among those to choose from."""
    weight: Float[Tensor, "B"]
    """All 1, with the gradient of the logarithm of that draw's probability: a mean over draws that is weighted so has,
    on average, the gradient of its expectation."""
    log_rates: Float[Tensor, "k"]
    """What that gradient is of."""


class MetaSampler(nn.Module):
    """How often a draw is of each class, learned beside a classifier by :meth:`descend`.

    A draw takes class ``j`` with the probability ``softmax(log_rates)_j`` among the classes that are there, then one of
    its images, each as likely. Draws have no gradient; the weight of each has that of the logarithm of its probability.

    Args:
        counts: training images ``n_j`` of each class ``[K]``, all positive.
        power: the rates begin with each image ``n_j ** -power`` as likely as another: 0 as images occur, 1 all classes
            alike. Official code: 0.1 on ImageNet-LT, 0 on CIFAR.

    Raises:
        InvalidInput: if a class has no image.

    Source: Ren et al., Balanced Meta-Softmax, NeurIPS 2020, arXiv:2007.10740, section 3.3. The official draws
    are those of a hard Gumbel softmax with the gradient of the soft one, which is biased; ours is the score function's.
    Their rates are sigmoids of what Adam moves, ours exponentials.

    >>> MetaSampler(torch.tensor([90, 10]), power=1.0).rates
    tensor([0.5000, 0.5000])
    """

    log_rates: Tensor
    mean: Tensor
    mean_square: Tensor
    steps: Tensor

    def __init__(self, counts: Int64[Tensor, "k"], *, power: float = 0.1) -> None:
        super().__init__()
        if counts.numel() == 0 or not bool((counts > 0).all()):
            raise InvalidInput("`counts` must be positive: the rate of a class without images cannot be learned.")
        # Buffers: no optimizer of the classifier's is to move the rates, nor its weight decay.
        self.register_buffer("log_rates", ((1 - power) * counts.double().log()).float())
        self.register_buffer("mean", torch.zeros_like(self.log_rates))
        self.register_buffer("mean_square", torch.zeros_like(self.log_rates))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    @property
    def rates(self) -> Float[Tensor, "k"]:
        """Probability that a draw is of each class ``[K]``."""
        return self.log_rates.softmax(0)

    def forward(self, target: Int64[Tensor, "p"], size: int, generator: torch.Generator) -> Drawn:
        """Draw ``size`` of the images with these labels, with replacement.

        Args:
            target: labels of the images to choose from ``[P]``.
            size: number of draws ``B``.
            generator: what is random; on the CPU.

        Raises:
            InvalidInput: if there is nothing to choose from, or no draw to make.
        """
        if not len(target) or size < 1:
            raise InvalidInput(f"There must be an image to choose from ({len(target)}) and a draw to make ({size}).")
        log_rates = self.log_rates.detach().clone().requires_grad_()
        in_class = target.bincount(minlength=len(log_rates))
        with torch.enable_grad():
            p = (log_rates[target] - in_class[target].to(log_rates.dtype).log()).softmax(0)  # [P]
        chosen = torch.multinomial(p.detach().cpu().double(), size, replacement=True, generator=generator)
        chosen = chosen.to(target.device)
        with torch.enable_grad():
            return Drawn(chosen, p[chosen] / p[chosen].detach(), log_rates)

    @torch.no_grad()
    def descend(self, gradient: Float[Tensor, "k"], *, lr: float) -> None:
        """Adam's step against the gradient, in place; several processes by their mean gradient.

        What of it is no number counts as 0: a step that is left out elsewhere must not spoil the rates for good.
        """
        if place()[1] > 1:
            gradient = gradient.clone()
            dist.all_reduce(gradient)
            gradient /= place()[1]
        gradient = gradient.nan_to_num(0.0, 0.0, 0.0)
        self.steps += 1
        self.mean.lerp_(gradient, 1 - BETAS[0])
        self.mean_square.lerp_(gradient.square(), 1 - BETAS[1])
        precise = torch.promote_types(gradient.dtype, torch.float32)  # of bfloat16, 0.999 would be 1
        mean, square = (
            moment / (1 - beta ** self.steps.to(precise))
            for moment, beta in zip((self.mean, self.mean_square), BETAS, strict=True)
        )
        self.log_rates -= lr * mean / (square.sqrt() + EPSILON)


def meta_gradient(
    drawn: Drawn,
    head: nn.Module,
    losses: Callable[[Tensor], Tensor],
    rows: Float[Tensor, "rows C"],
    *,
    lr: float,
    balanced: tuple[Float[Tensor, "m C"], Int64[Tensor, "m"]],
) -> Float[Tensor, "k"]:
    """Gradient of the rates: how the loss on balanced images changes if the head takes a step on the drawn ones.

    One step of gradient descent on ``mean(weight * losses(head(rows)))`` gives a head that depends on the rates by way
    of the draws' weights; its cross-entropy on the balanced images is differentiated through that step.

    Args:
        drawn: by :class:`MetaSampler`.
        head: features -> scores.
        losses: scores of the rows -> their losses.
        rows: features of the draws, of both streams if there are two; constants here.
        lr: length of the step.
        balanced: features and labels of images in which every class is as frequent.

    Returns:
        ``[K]``, of the logarithms of the rates.

    Source: as :class:`MetaSampler`, algorithm 1.
    """
    own: Mapping[str, Tensor] = {name: p for name, p in head.named_parameters() if p.requires_grad}
    # Not under autocast to float16, where what is differentiated twice without a scaled loss would vanish.
    precise = next(iter(own.values())).dtype
    with torch.enable_grad(), torch.autocast(rows.device.type, enabled=False):
        weight = streams.tile(drawn.weight, like=rows)
        loss = (weight * losses(functional_call(head, dict(own), (rows.detach().to(precise),)))).mean()
        gradients = torch.autograd.grad(loss, list(own.values()), create_graph=True)
        moved = {name: p - lr * g for (name, p), g in zip(own.items(), gradients, strict=True)}
        feature, target = balanced
        outer = F.cross_entropy(functional_call(head, moved, (feature.detach().to(precise),)), target)
        return torch.autograd.grad(outer, drawn.log_rates)[0]
