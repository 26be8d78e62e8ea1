"""Independent streams of randomness, each keyed by (seed, purpose, epoch, index).

Initialisation, data order, augmentation and dropout never share a generator. So a plain and a related run of one seed
see the same batches although one of them draws more dropout masks, and a resumed run continues bit for bit without any
generator state having been saved.
"""

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["generator", "key", "reseed"]


def key(*parts: int | str) -> int:
    """Map ``(seed, purpose, epoch, index, ...)`` to a 63-bit seed, the same on every machine and Python.

    >>> key(0, "order", 3) == key(0, "order", 3), key(0, "order", 3) == key(0, "augment", 3)
    (True, False)
    """
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(*parts: int | str) -> "torch.Generator":
    """A CPU generator seeded with :func:`key` of ``parts``."""
    import torch

    return torch.Generator().manual_seed(key(*parts))


def reseed(*parts: int | str) -> None:
    """Key the global generators of the CPU and of the current GPU (or Apple's), from which dropout draws.

    ``torch.manual_seed`` does the same and formats a stack trace each time for a GPU that is not in use, which costs a
    tenth of a small network's step.
    """
    import torch

    torch.default_generator.manual_seed(key(*parts))
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed(key(*parts))
    if torch.backends.mps.is_available():
        torch.mps.manual_seed(key(*parts))
