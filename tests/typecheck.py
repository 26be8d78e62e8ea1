"""The checker behind jaxtyping's import hook, and a way to do without it for a while."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jaxtyping
from beartype import BeartypeConf, beartype

HOOKED = ["setwise.nn", "setwise.losses", "setwise.metrics", "setwise.models", "setwise.data"]
"""The layers whose shapes are checked: everything a tensor passes before it reaches a task."""

_CONF = BeartypeConf(is_pep484_tower=True)  # an int is a float, as type checkers have it: `dropout=0`


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    return beartype(function, conf=_CONF)


def install() -> None:
    jaxtyping.install_import_hook(HOOKED, f"{__name__}.checked")


@contextmanager
def shapes_unchecked() -> Iterator[None]:
    """What a user has: no hook, so that a wrong shape meets the library's own sentence."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", before)
