"""A tiny copy of any data set, of classification or few-shot, in its real layout."""

from pathlib import Path

import fakes
import few_shot_fakes


def write(name: str, root: Path) -> dict[str, object]:
    """Write the data set ``name`` below ``root`` in its first layout, and return the options that load it."""
    kind = few_shot_fakes if name in few_shot_fakes.LAYOUTS else fakes
    return kind.write(name, root)
