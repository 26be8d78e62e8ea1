"""The set across time: features of past samples."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from setwise.errors import InvalidInput

__all__ = ["Memory"]


class Memory(nn.Module):
    """The last ``size`` features, first in, first out, without a gradient.

    They were computed with older weights: the smaller the learning rate and the memory, the truer they are. The memory
    is part of the state dict, so that a resumed run goes on with it. Under DistributedDataParallel all processes hold
    that of the first one, unless what is written is gathered (``BatchFormer(gather=True)``).

    Args:
        size: samples that are kept.
        dim: width ``C`` of the features.

    Source: Wang et al., Cross-Batch Memory for Embedding Learning, CVPR 2020, arXiv:1912.06798, section 3.2. It keeps
    pairs for a loss; here they are attended to.

    >>> memory = Memory(size=6, dim=2)
    >>> memory.write(torch.ones(4, 2)); memory.write(torch.zeros(4, 2)); len(memory)
    6
    >>> memory.join(torch.ones(1, 2)).sum(1)
    tensor([2., 0., 0., 2., 2., 0., 0.])
    """

    features: Tensor
    written: Tensor

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        if size < 1:
            raise InvalidInput(f"`memory` must be at least 0, but it is {size}; 0 switches it off.")
        self.size = size
        self.register_buffer("features", torch.zeros(size, dim))
        self.register_buffer("written", torch.zeros((), dtype=torch.long))

    def __len__(self) -> int:
        """Samples that are kept so far."""
        return min(int(self.written), self.size)

    def join(self, x: Float[Tensor, "B C"]) -> Float[Tensor, "set C"]:
        """``x``, then what is kept, in no particular order: a set has none."""
        return torch.cat([x, self.features[: len(self)].to(x.dtype)])

    @torch.no_grad()
    def write(self, x: Float[Tensor, "B C"]) -> None:
        """Keep ``x`` in place of the oldest; a batch with a number that is not finite would harm all later ones."""
        if not bool(torch.isfinite(x).all()):
            return
        x = x[-self.size :]
        places = (self.written + torch.arange(len(x), device=x.device)) % self.size
        self.features.index_copy_(0, places, x.to(self.features.dtype))
        self.written += len(x)
