"""The prototypical network's head, called as :class:`setwise.nn.CrossTransformer` is, to be compared with it.

Letters: ``Q`` queries, ``S`` support images of all classes, ``K`` classes, ``C`` channels, ``H W`` map size.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from setwise.errors import InvalidInput
from setwise.nn.gather import gather_ragged
from setwise.nn.support import check_maps, order_support

__all__ = ["Prototypical"]


class Prototypical(nn.Module):
    """Score query images by their distance to the mean of each class's support images, after global average pooling.

    What CrossTransformer is without attention and without projections; it has no weights.

    Args:
        dim: channels ``C`` of both feature maps.
        gather: take the support images of all processes; queries stay with their process.

    Raises:
        InvalidInput: if ``dim`` is below 1.

    Source: Snell, Swersky, Zemel, Prototypical Networks, NeurIPS 2017, arXiv:1703.05175, equations 1 and 2, with the
    squared Euclidean distance.

    >>> head = Prototypical(dim=64)
    >>> head(torch.randn(5, 64, 7, 7), torch.randn(6, 64, 7, 7), torch.tensor([0, 0, 1, 1, 2, 2])).shape
    torch.Size([5, 3])
    """

    def __init__(self, dim: int, *, gather: bool = False) -> None:
        super().__init__()
        if dim < 1:
            raise InvalidInput(f"`dim` ({dim}) must be at least 1.")
        self.dim, self.gather = dim, gather

    def extra_repr(self) -> str:
        """What ``print`` shows in the brackets."""
        return f"dim={self.dim}, gather={self.gather}"

    def forward(
        self,
        query: Float[Tensor, "Q C H W"],
        support: Float[Tensor, "S C Hs Ws"],
        support_target: Int[Tensor, "S"],
    ) -> Float[Tensor, "Q K"]:
        """Minus the squared distance of each query to each class's mean.

        Args:
            query: feature maps of the query images.
            support: those of the support images.
            support_target: class of each support image, ``0..K-1`` without gaps.

        Returns:
            ``[Q, K]``, columns in label order, at least in float32.

        Raises:
            InvalidInput: if shapes do not fit or a class has no support image.
        """
        check_maps(query, support, self.dim)
        if len(support_target) != len(support):  # before processes talk to each other
            order_support(support_target, len(support))
        wide = torch.promote_types(query.dtype, torch.float32)  # squares of halves overflow
        pooled, embedded = (maps.to(wide).mean((2, 3)) for maps in (query, support))  # [Q, C] and [S, C]
        if self.gather:
            embedded, support_target = gather_ragged(embedded), gather_ragged(support_target)
        order, shots = order_support(support_target, len(embedded))
        prototypes = torch.stack([images.mean(0) for images in embedded[order].split(shots)])  # [K, C]
        return -(pooled[:, None] - prototypes).square().sum(2)
