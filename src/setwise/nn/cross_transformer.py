"""CrossTransformer: every location of a query attends to the locations of a class's support images.

Letters: ``Q`` queries, ``S`` support images of all classes, ``K`` classes, ``C`` channels, ``H W`` map size.
"""

from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from setwise.errors import InvalidInput
from setwise.nn.attention import Recordable, is_half
from setwise.nn.gather import gather_ragged
from setwise.nn.rebuilding import squared_distances
from setwise.nn.support import check_maps, order_support

__all__ = ["CrossTransformer"]

INITIAL_STD = 0.1
"""The official code's, cut off at two deviations, as for all its convolutions."""


FEW_IMAGES = 16
"""With fewer in a call torch does not ask oneDNN for the convolution (ATen/native/Convolution.cpp, torch 2.15)."""


class CrossTransformer(nn.Module, Recordable):
    """Score query images against classes by attending from each query location to the support set.

    For every class the query's feature map is rebuilt from that class's support locations; the score is minus the
    squared distance between the map and its rebuilding, summed over channels and averaged over locations. One
    projection makes keys and queries, one the values of both sides, so that an image is rebuilt best from what looks
    the same. There are no positions: the order of images and of locations means nothing.

    Classes may have unequal numbers of images, in any order, and support maps another size than query maps. Memory
    grows with query locations times classes in training and with neither of them squared: of the scores, one class's
    for some hundred query locations exist at a time.

    Args:
        dim: channels ``C`` of both feature maps.
        dim_key: width of keys and queries. Paper: 128.
        dim_value: width of values. Paper: 128.
        gather: take the support images of all processes, in the order of their ranks; queries stay with their process.
            Ranks may hold unequal numbers of them. Without an initialised process group nothing changes.

    Raises:
        InvalidInput: if a width is below 1.

    Source: Doersch, Gupta, Zisserman, CrossTransformers, NeurIPS 2020, arXiv:2007.11498, section 3.2. Initial weights
    are the official code's: normal, deviation 0.1, cut off at 0.2.

    >>> head = CrossTransformer(dim=64)
    >>> head(torch.randn(5, 64, 7, 7), torch.randn(6, 64, 7, 7), torch.tensor([0, 0, 1, 1, 2, 2])).shape
    torch.Size([5, 3])
    """

    record_options: ClassVar[frozenset[str]] = frozenset({"positions"})

    def __init__(self, dim: int, *, dim_key: int = 128, dim_value: int = 128, gather: bool = False) -> None:
        super().__init__()
        for name, width in (("dim", dim), ("dim_key", dim_key), ("dim_value", dim_value)):
            if width < 1:
                raise InvalidInput(f"`{name}` ({width}) must be at least 1.")
        self.dim, self.gather = dim, gather
        self.key = nn.Linear(dim, dim_key, bias=False)
        self.value = nn.Linear(dim, dim_value, bias=False)
        for projection in (self.key, self.value):
            nn.init.trunc_normal_(projection.weight, std=INITIAL_STD, a=-2 * INITIAL_STD, b=2 * INITIAL_STD)

    def extra_repr(self) -> str:
        """What ``print`` shows in the brackets."""
        return f"dim={self.dim}, gather={self.gather}"

    def forward(
        self,
        query: Float[Tensor, "Q C H W"],
        support: Float[Tensor, "S C Hs Ws"],
        support_target: Int[Tensor, "S"],
    ) -> Float[Tensor, "Q K"]:
        """Minus the distance of each query to each class; cross-entropy takes them as logits.

        Args:
            query: feature maps of the query images, not pooled.
            support: those of the support images.
            support_target: class of each support image, ``0..K-1`` without gaps.

        Returns:
            ``[Q, K]``, columns in label order, at least in float32.

        Raises:
            InvalidInput: if shapes do not fit or a class has no support image.
        """
        check_maps(query, support, self.dim)
        keys, values, shots = self._by_class(support, support_target)
        locations = query.shape[2] * query.shape[3]
        q, v = (rows.flatten(0, 1) for rows in self._project(query))  # [Q*HW, k] and [Q*HW, v]
        sizes = [n * keys.shape[1] for n in shots]
        distances = squared_distances(q, v, keys.flatten(0, 1), values.flatten(0, 1), sizes)  # [K, Q*HW]
        return -distances.unflatten(1, (len(query), locations)).mean(2).t()

    def _by_class(self, support: Tensor, support_target: Tensor) -> tuple[Tensor, Tensor, list[int]]:
        """Keys and values ``[S, Hs*Ws, .]`` class by class, and each class's number of images."""
        if len(support_target) != len(support):  # before processes talk to each other
            order_support(support_target, len(support))
        keys, values = self._project(support)
        if self.gather:
            keys, values, support_target = (gather_ragged(x) for x in (keys, values, support_target))
        order, shots = order_support(support_target, len(keys))
        return keys[order], values[order], shots

    def _project(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of all locations, ``[images, HW, k]`` and ``[images, HW, v]``, by one 1x1 convolution."""
        weight = torch.cat([self.key.weight, self.value.weight])
        if is_half(maps):  # float16 could overflow in a sum over channels
            with torch.autocast(maps.device.type, enabled=False):
                return self._convolve(maps.float(), weight.float())
        return self._convolve(maps, weight)

    def _convolve(self, maps: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        # Without gradients a few images at a time: the convolution lays out its input anew, all that it is given.
        parts = 1 if torch.is_grad_enabled() else max(1, len(maps) // FEW_IMAGES)
        widths = [len(self.key.weight), len(self.value.weight)]
        keys, values = [], []
        for part in maps.tensor_split(parts):
            both = F.conv2d(part, weight[:, :, None, None])  # [images, k+v, H, W]
            key, value = both.flatten(2).transpose(1, 2).split(widths, -1)  # [images, HW, k], [images, HW, v]
            keys.append(key.contiguous())
            values.append(value.contiguous())
            del both, key, value  # before the next images need as much
        return (keys[0], values[0]) if parts == 1 else (torch.cat(keys), torch.cat(values))

    def record(self, keep: Callable[[Tensor], None], **what: object) -> list[RemovableHandle]:
        """Hand the attention of chosen query locations to ``keep``; see :func:`setwise.nn.record_attention`.

        ``positions=[(row, column), ...]`` says of which. Every call of the head appends ``Q * K`` maps, those of the
        first query first and its classes in label order: ``[positions, n_c, H', W']``, the softmax weights over the
        ``n_c`` images of the class in the order in which they stand in the support set; the weights of each position
        sum to 1.

        Raises:
            InvalidInput: if no positions are given, or (in the call) one lies outside the query's map.
        """
        positions = [(int(row), int(column)) for row, column in what.get("positions", ())]  # type: ignore[attr-defined]
        if not positions:
            raise InvalidInput(
                "CrossTransformer records the attention of chosen query locations: "
                "record_attention(model, positions=[(row, column), ...])."
            )

        def weights(head: nn.Module, args: tuple, kwargs: dict) -> None:
            with torch.no_grad():
                for attention in self._attention(positions, *args, **kwargs):
                    keep(attention)

        return [self.register_forward_pre_hook(weights, with_kwargs=True)]

    def _attention(
        self, positions: Sequence[tuple[int, int]], query: Tensor, support: Tensor, support_target: Tensor
    ) -> list[Tensor]:
        check_maps(query, support, self.dim)
        height, width = query.shape[2:]
        for row, column in positions:
            if not (0 <= row < height and 0 <= column < width):
                raise InvalidInput(f"Position {(row, column)} is outside the query's {height}x{width} map.")
        places = [row * width + column for row, column in positions]
        keys, _, shots = self._by_class(support, support_target)
        asking = self._project(query)[0][:, places]  # [Q, positions, k]
        maps = []
        for q in asking:
            for key in keys.split(shots):  # [n_c, Hs*Ws, k]
                scores = q @ key.flatten(0, 1).t() * q.shape[1] ** -0.5
                wide = torch.promote_types(scores.dtype, torch.float32)
                maps.append(scores.to(wide).softmax(-1).view(len(places), len(key), *support.shape[2:]))
        return maps
