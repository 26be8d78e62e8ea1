"""Feature maps of images that come again and again, as those of test classes do over hundreds of episodes.

Letters: ``n`` images of an episode, ``C`` channels, ``h w`` map size.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

__all__ = ["KeptMaps"]

KEPT_BYTES = 1 << 30
"""Maps of 224-pixel images (512 x 14 x 14) have 0.4 MB: some 2,600 of them."""


class KeptMaps:
    """What a trunk made of each image, the oldest forgotten first.

    Only right while the trunk stays as it is and makes of every image the same, whatever stands beside it.

    Args:
        most_bytes: of all kept maps together.
    """

    def __init__(self, most_bytes: int = KEPT_BYTES) -> None:
        self.most_bytes = most_bytes
        self._maps: dict[int, Tensor] = {}
        self._bytes = 0

    def __call__(
        self, numbers: Sequence[int], images: Shaped[Tensor, "n ..."], trunk: Callable[[Tensor], Tensor]
    ) -> Float[Tensor, "n C h w"]:
        """The maps of ``images``, which ``trunk`` makes of those alone that it has not seen.

        Args:
            numbers: of each image; the same number is the same image.
            images: as the trunk takes them.
            trunk: images -> maps.
        """
        new = {number: place for place, number in enumerate(numbers) if number not in self._maps}
        if new:
            made = trunk(images[list(new.values())])
            for number, one in zip(new, made, strict=True):
                self._maps[number] = one.clone()  # a view would keep all of them alive
                self._bytes += one.nbytes
        maps = torch.stack([self._maps[number] for number in numbers])
        while self._bytes > self.most_bytes:
            self._bytes -= self._maps.pop(next(iter(self._maps))).nbytes
        return maps
