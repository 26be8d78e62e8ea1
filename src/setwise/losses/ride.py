"""The loss of several experts that classify the same images and are rewarded for disagreeing.

Letters: ``N`` rows of logits (both streams, if there are two), ``E`` experts, ``K`` classes, ``n_j`` training images of
class ``j``.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

from setwise.errors import InvalidInput
from setwise.losses.long_tailed import LDAM
from setwise.losses.targets import check_rows, full

__all__ = ["RIDE", "distillation"]


class RIDE(LDAM):
    """The LDAM losses of all experts, added up, minus how much each expert differs from the mean of them.

    Per sample: ``sum_e LDAM(z_e) - diversity * T^2 * sum_e KL(softmax(mean_e z / t) || softmax(z_e / t))``, where no
    gradient goes through the mean. Before re-weighting begins the temperature ``t`` is 1. From then on each class has
    its own, by which its logit is divided: ``t_j = w_j / max w`` with ``w_j = K p_j f + 1 - f``, where ``p_j`` is the
    class's part of the training images and ``f`` the ``temperature_factor``; ``T`` is the mean of ``t``. In evaluation
    it is the cross-entropy of the mean logits.

    The official epochs count from 1 and re-weight after ``reweight_epoch``, ours from 0 and from it on: the same epoch.

    Args:
        counts: training images ``n_j`` of each class ``[K]``, all positive.
        diversity: weight of the reward, 0 or more. Official code: 0.2, on CIFAR 0.45 (there as a negative factor).
        temperature_factor: ``f`` in 0..1; 0 keeps the temperature at 1. Official code: 0.05, ImageNet-LT 0.02,
            iNaturalist 0.015.
        max_margin: see :class:`LDAM`.
        scale: see :class:`LDAM`; of all experts' heads.
        class_weights: see :class:`Criterion`. RIDE: "effective-number". Without them the temperature stays 1.
        reweight_epoch: see :class:`Criterion`. RIDE on CIFAR, 200 epochs: 160.

    Source: Wang et al., Long-tailed Recognition by Routing Diverse Distribution-Aware Experts, ICLR 2021,
    arXiv:2010.01809; the form of the terms is that of the official code.

    >>> criterion = RIDE(counts=torch.tensor([1600, 100]))
    >>> agree, differ = torch.zeros(1, 2, 2), torch.tensor([[[1.0, 0.0], [-1.0, 0.0]]])
    >>> criterion(agree, torch.tensor([1])).shape
    torch.Size([1])
    """

    temperature: Tensor

    def __init__(
        self,
        *,
        counts: Int64[Tensor, "k"],
        diversity: float = 0.2,
        temperature_factor: float = 0.05,
        max_margin: float = 0.5,
        scale: float = 30.0,
        class_weights: Float[Tensor, "k"] | None = None,
        reweight_epoch: int | None = None,
    ) -> None:
        super().__init__(
            counts=counts,
            max_margin=max_margin,
            scale=scale,
            class_weights=class_weights,
            reweight_epoch=reweight_epoch,
        )
        if diversity < 0:
            raise InvalidInput(f"`diversity` ({diversity}) must be 0 or more: it is the weight of a reward.")
        if not 0 <= temperature_factor <= 1:
            raise InvalidInput(f"`temperature_factor` ({temperature_factor}) must be in 0..1.")
        prior = counts.double() / counts.sum()
        width = len(counts) * prior * temperature_factor + 1 - temperature_factor
        self.register_buffer("temperature", (width / width.max()).float(), persistent=False)
        self.diversity = diversity

    def forward(self, logits: Float[Tensor, "n *experts k"], target: Shaped[Tensor, "..."]) -> Float[Tensor, "n"]:
        """Losses ``[N]`` of logits ``[N, E, K]``, or ``[N, K]`` of one expert, which is LDAM.

        Raises:
            InvalidInput: if target or counts do not fit the logits, or the target is soft.
        """
        if logits.dim() == 2:
            return super().forward(logits, target)
        if logits.dim() != 3 or not logits.shape[1]:
            raise InvalidInput(
                f"`logits` must be [N, E, K], a row of K scores for each of E experts, not {list(logits.shape)}."
            )
        check_rows(logits[:, 0], target)
        if not self.training:
            return super().forward(logits.mean(1), target)
        margins = [super(RIDE, self).forward(of_expert, target) for of_expert in logits.unbind(1)]
        return torch.stack(margins).sum(0) - self.diversity * self._disagreement(logits)

    def _disagreement(self, logits: Tensor) -> Float[Tensor, "n"]:
        """KL between the mean's and each expert's probabilities, added up, times the temperature squared."""
        logits = full(logits)
        weighted = self.weights_now(logits[:, 0]) is not None
        t = self.temperature.to(logits.dtype) if weighted else torch.ones_like(self.temperature)
        mean = (logits.mean(1, keepdim=True).detach() / t).log_softmax(2)  # [N, 1, K]
        experts = (logits / t).log_softmax(2)  # [N, E, K]
        return t.mean() ** 2 * (mean.exp() * (mean - experts)).sum((1, 2))


def distillation(
    student: Float[Tensor, "n *experts k"], teacher: Float[Tensor, "m *others c"], *, temperature: float = 1.5
) -> Float[Tensor, "n"]:
    """How far the student's mean logits are from the teacher's: their KL divergence, times the temperature squared.

    The authors of RIDE count this once for each expert, those of BatchFormer once; this is once.

    Args:
        student: logits ``[N, E, K]`` or ``[N, K]``.
        teacher: the same of a network with more experts, which gets no gradient. RIDE: six experts.
        temperature: divides both. RIDE: 1.5.

    Returns:
        ``[N]``, 0 or more.

    Raises:
        InvalidInput: if rows or classes differ, or the temperature is not above 0.

    Source: Wang et al., RIDE, as above.

    >>> distillation(torch.zeros(1, 3, 2), torch.zeros(1, 6, 2))
    tensor([0.])
    """
    if temperature <= 0:
        raise InvalidInput(f"`temperature` ({temperature}) must be above 0.")
    scores = (full(student), full(teacher.detach()))
    one, other = (logits.mean(1) if logits.dim() == 3 else logits for logits in scores)
    if one.shape != other.shape:
        raise InvalidInput(f"`student` is {list(one.shape)} and `teacher` {list(other.shape)}; they must agree.")
    mine, wanted = (F.log_softmax(logits / temperature, 1) for logits in (one, other))
    return temperature**2 * F.kl_div(mine, wanted, reduction="none", log_target=True).sum(1)
