"""How many experts an image needs: asked one after the other, until a small network says that it is enough.

Letters: ``B`` images, ``E`` experts, ``C`` channels of one expert, ``K`` classes.
"""

from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from setwise.errors import InvalidInput
from setwise.models.multi_expert import ExpertHead, split_experts
from setwise.models.weights import read_state
from setwise.nn.experts import check_decisions

__all__ = ["ExpertAssignment", "Routed", "RoutedExperts", "route"]


class Routed(NamedTuple):
    """What routing made of a batch."""

    logits: Float[Tensor, "B K"]
    """Mean over the experts that were asked."""
    used: Int64[Tensor, "B"]
    """How many of them, 1 to ``E``."""

    @property
    def mean_used(self) -> float:
        """Mean number of experts that were used, the cost that is reported beside accuracy."""
        return float(self.used.cpu().double().mean())


def route(logits: Float[Tensor, "B E K"], scores: Float[Tensor, "B steps"]) -> Routed:
    """Average each image's logits over the experts up to the first after which it need not go on.

    Args:
        logits: of all experts ``[B, E, K]``.
        scores: of going on after expert 1 .. ``E - 1``, ``[B, E - 1]``; an image goes on while the sigmoid is above one
            half, that is, the score above 0.

    Raises:
        InvalidInput: if the two do not fit, or there is no image.

    Source: Wang et al., RIDE, ICLR 2021, arXiv:2010.01809, section 3, as in the official code.

    >>> logits = torch.tensor([[[4.0, 0.0], [0.0, 2.0], [0.0, 4.0]]]).repeat(3, 1, 1)
    >>> routed = route(logits, torch.tensor([[-1.0, 1.0], [1.0, -1.0], [1.0, 1.0]]))
    >>> routed.used, routed.logits[1], routed.mean_used
    (tensor([1, 2, 3]), tensor([2., 1.]), 2.0)
    """
    check_decisions(logits, scores)
    goes_on = (scores > 0).long().cumprod(1)  # 1 up to the first stop
    used = 1 + goes_on.sum(1)  # [B]
    asked = torch.arange(logits.shape[1], device=logits.device) < used[:, None]  # [B, E]
    return Routed((logits * asked[:, :, None]).sum(1) / used[:, None], used)


class ExpertAssignment(nn.Module):
    """Scores of going on, one small network after each expert but the last; trained alone, on frozen experts.

    After expert ``e`` it sees that expert's feature, L2-normalised and mapped to ``hidden`` numbers by a layer of its
    own, beside the ``top_k`` largest of the mean logits so far. One layer makes the score of all steps, as in the
    official code.

    Args:
        dim: width ``C`` of one expert's feature.
        num_experts: ``E``, at least 2.
        num_classes: ``K``.
        top_k: largest logits that are looked at, as far as there are so many classes. ResNet-10 and CIFAR: 30,
            ResNet-50: 50.
        hidden: width of the mapped feature. Official code: 16.

    Raises:
        InvalidInput: with a single expert, or without a logit to look at.

    >>> stop = ExpertAssignment(48, num_experts=3, num_classes=10)
    >>> stop(torch.randn(5, 3, 48), torch.randn(5, 3, 10)).shape
    torch.Size([5, 2])
    """

    def __init__(self, dim: int, *, num_experts: int, num_classes: int, top_k: int = 30, hidden: int = 16) -> None:
        super().__init__()
        if num_experts < 2 or top_k < 1:
            raise InvalidInput(
                f"Routing needs at least 2 `num_experts` ({num_experts}) and a `top_k` of at least 1 ({top_k})."
            )
        self.top_k = min(top_k, num_classes)
        steps = range(num_experts - 1)
        self.inward = nn.ModuleList(nn.Linear(dim, hidden) for _ in steps)
        self.outward = nn.Linear(hidden + self.top_k, 1)

    def forward(self, features: Float[Tensor, "B E C"], logits: Float[Tensor, "B E K"]) -> Float[Tensor, "B steps"]:
        """Scores of going on after expert 1 .. ``E - 1``; above 0: yes."""
        scores = []
        for step, inward in enumerate(self.inward):
            feature = inward(F.normalize(features[:, step])).relu()
            best = logits[:, : step + 1].mean(1).topk(self.top_k, 1).values
            scores.append(self.outward(torch.cat([feature, best], 1)))
        return torch.cat(scores, 1)


class RoutedExperts(nn.Module):
    """The classifiers of a finished first stage, which stay as they are, and the network that decides how many to ask.

    Args:
        experts: one classifier an expert.
        assign: what decides; it alone trains.

    >>> experts = ExpertHead(lambda: nn.Linear(48, 10), num_experts=3)
    >>> head = RoutedExperts(experts, ExpertAssignment(48, num_experts=3, num_classes=10))
    >>> head(torch.randn(5, 144)).shape
    torch.Size([5, 10])
    """

    def __init__(self, experts: ExpertHead, assign: ExpertAssignment) -> None:
        super().__init__()
        self.experts, self.assign = experts.requires_grad_(False), assign

    def decide(self, x: Float[Tensor, "B experts_C"]) -> tuple[Float[Tensor, "B E K"], Float[Tensor, "B steps"]]:
        """Logits of every expert, and scores of going on after each but the last."""
        features = split_experts(x, num_experts=len(self.experts.classifiers))
        logits = self.experts.scores(x)
        return logits, self.assign(features, logits)

    def forward(self, x: Float[Tensor, "B experts_C"]) -> Float[Tensor, "B K"]:
        """Mean logits of the experts that are asked."""
        return route(*self.decide(x)).logits

    def start_from(self, path: str | Path) -> None:
        """Take the experts' classifiers of a first stage, ``head.*`` of its weights file.

        Raises:
            MissingFile: if there is no such file.
            InvalidInput: if it has no classifiers of these sizes.
        """
        given = {k.removeprefix("head."): v for k, v in read_state(path).items() if k.startswith("head.")}
        own = {name: tuple(value.shape) for name, value in self.experts.state_dict().items()}
        if {name: tuple(value.shape) for name, value in given.items()} != own:
            raise InvalidInput(
                f"Head routed asks the classifiers of a first stage, here {len(self.experts.classifiers)} of "
                f"{next(iter(own.values()))}, but {path} has others or none: give the weights of a run with several "
                "experts (cifar100-lt-ride) on the same classes and --backbone.options."
            )
        self.experts.load_state_dict(given)
