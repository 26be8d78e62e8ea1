"""Relate a large set through a few learned points: linear in its size, where all to all is quadratic.

Letters: ``B`` samples of the set, ``N`` positions that are related separately, ``C`` channels, ``m`` inducing points.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from setwise.errors import InvalidInput
from setwise.nn.attention import EncoderLayer, Mask, or_itself
from setwise.nn.gather import gather_set, place

__all__ = ["InducedLayer"]


class InducedLayer(nn.Module):
    """Two encoder layers: learned points attend to the set, then the set attends to the points.

    Not exact: what samples learn from each other passes through ``m`` vectors, so a sample cannot pick out single
    others as it can in :class:`setwise.nn.attention.EncoderLayer`. It has twice the weights of one, and pays from sets
    of several times ``m`` on (``benchmarks/scale.py``).

    Args:
        dim: channels ``C``.
        num_heads: heads of both attentions.
        num_inducing: points ``m``. The source: 16 to 64.
        mlp_ratio: width of the feed-forward parts over ``dim``.
        dropout: on residual branches and inside the feed-forward parts.
        attention_dropout: on the attention weights.
        gather: the points attend to the samples of all processes.

    Source: Lee et al., Set Transformer, ICML 2019, arXiv:1810.00825, section 3.1, equations 9 and 10.

    >>> layer = InducedLayer(16, num_heads=4, num_inducing=8)
    >>> layer(torch.randn(1000, 16)).shape
    torch.Size([1000, 16])
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        num_inducing: int,
        *,
        mlp_ratio: float = 1.0,
        dropout: float = 0.5,
        attention_dropout: float = 0.5,
        gather: bool = False,
    ) -> None:
        super().__init__()
        if num_inducing < 1:
            raise InvalidInput(f"`num_inducing` must be at least 1, but it is {num_inducing}; None relates all to all.")
        self.gather = gather
        self.inducing = nn.Parameter(torch.empty(num_inducing, dim))
        nn.init.xavier_uniform_(self.inducing)
        self.summarise, self.distribute = (
            EncoderLayer(dim, num_heads, mlp_ratio=mlp_ratio, dropout=dropout, attention_dropout=attention_dropout)
            for _ in range(2)
        )

    def forward(
        self,
        x: Float[Tensor, "B C"] | Float[Tensor, "B N C"],
        mask: Mask = None,
        others: Float[Tensor, "keys C"] | Float[Tensor, "keys N C"] | None = None,
    ) -> Float[Tensor, "B C"] | Float[Tensor, "B N C"]:
        """Relate the samples of ``x`` along the first axis; same shape back.

        ``mask`` and ``others`` are :class:`setwise.nn.attention.SetAttention`'s: the points attend to whom the mask
        allows. A mask ``[B, keys]`` needs a summary of its own for every row, so B times the work: it is for controls
        and ablations.
        """
        if x.dim() == 2:
            return self.forward(x.unsqueeze(1), mask, None if others is None else others.unsqueeze(1)).squeeze(1)
        if others is None:
            others = gather_set(x) if self.gather else x
        if mask is not None and mask.dim() == 2:
            return self._each_its_own(x, or_itself(mask, place()[0] if self.gather else 0), others)
        return self.distribute(x, None, self.summarise(self._points(x.shape[1]), mask, others))

    def _each_its_own(self, x: Tensor, mask: Tensor, others: Tensor) -> Tensor:
        """Every sample becomes a position, related through a summary of whom it may attend to."""
        if x.shape[1] != 1:
            raise InvalidInput(f"A mask [B, keys] goes with features [B, C], but there are {x.shape[1]} positions.")
        summary = self.summarise(self._points(len(x)), mask[:, None, None], others.expand(-1, len(x), -1))  # [m, B, C]
        return self.distribute(x.transpose(0, 1), None, summary).transpose(0, 1)  # [1, B, C] -> [B, 1, C]

    def _points(self, positions: int) -> Tensor:
        return self.inducing.unsqueeze(1).expand(-1, positions, -1)  # [m, C] -> [m, N, C]
