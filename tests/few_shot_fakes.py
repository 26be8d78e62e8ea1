"""Tiny pools, and tiny copies of every few-shot data set in its real layout, so that the tests need no download."""

import os
from pathlib import Path

import torch

from setwise.data.few_shot import Pool
from setwise.data.images import StackedImages
from setwise.seeds import generator

__all__ = ["DATA", "pool_of"]

DATA = Path(os.environ.get("SETWISE_DATA", Path(__file__).parents[2] / "shared" / "data"))
"""Where real data sets are, if they are."""


def pool_of(counts: list[int], *, side: int = 1, **changes) -> Pool:
    """A pool of noise with ``counts[c]`` images of class ``c``."""
    number = sum(counts)
    options = {
        "images": StackedImages(
            torch.randint(0, 256, (number, 3, side, side), dtype=torch.uint8, generator=generator("noise"))
        ),
        "target": torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)),
        "class_names": tuple(f"class {label:02d}" for label in range(len(counts))),
        "names": tuple(map(str, range(number))),
    }
    return Pool(**(options | changes))
