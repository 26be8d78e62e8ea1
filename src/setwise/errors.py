"""The library's errors: one sentence with the name, the rule, the value and the way out.

Every error a user can cause derives from :class:`SetwiseError` *and* from the built-in kind that fits, so that both
``except SetwiseError`` and ``except ValueError`` work. The command line prints them without a traceback.
"""

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar, overload

__all__ = [
    "DataError",
    "InvalidInput",
    "MissingFile",
    "RunError",
    "SetwiseError",
    "Stopped",
    "UnknownName",
    "choose",
    "out_of_memory",
]


T = TypeVar("T")

OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "bad_alloc")
"""What torch's allocators say, in small letters."""


class SetwiseError(Exception):
    """Base of all errors raised on purpose by setwise."""


class InvalidInput(SetwiseError, ValueError):
    """An argument has a value, a type or a shape that breaks a stated rule."""


class UnknownName(SetwiseError, ValueError):
    """A name is not in the table it was looked up in."""


class MissingFile(SetwiseError, FileNotFoundError):
    """A file or folder that was named is not there."""


class DataError(SetwiseError, ValueError):
    """A data set on disk breaks its layout: a corrupt image, an unreadable line, a label out of range."""


class RunError(SetwiseError, RuntimeError):
    """A run cannot start, continue or be read."""


class Stopped(RunError):
    """A run was told to stop, did, and can continue; the command ends with status 143."""


@overload
def choose(name: str, table: Mapping[str, T], kind: str) -> T: ...  # type: ignore[overload-overlap]
@overload
def choose(name: str, table: Iterable[str], kind: str) -> str: ...
def choose(name: str, table: Mapping[str, T] | Iterable[str], kind: str) -> T | str:
    """Look ``name`` up in ``table``; an unknown name lists the choices, nearest first.

    Args:
        name: what the user wrote.
        table: choices by name, or the names alone (then the name itself comes back).
        kind: what is being chosen, as it stands in the error ("data set").

    Raises:
        UnknownName: if ``name`` is not a choice.
    """
    names = list(table)
    if name in names:
        return table[name] if isinstance(table, Mapping) else name
    near = difflib.get_close_matches(name, names, n=len(names), cutoff=0.5)
    ordered = near + sorted(set(names) - set(near))
    hint = f"; did you mean {near[0]!r}?" if near else "."
    raise UnknownName(f"There is no {kind} {name!r}{hint} Choices: {', '.join(ordered)}.")


def out_of_memory(error: BaseException) -> bool:
    """Whether memory did not suffice, by the words of torch and the system, on whatever device.

    >>> out_of_memory(RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")), out_of_memory(RuntimeError("no"))
    (True, False)
    """
    return isinstance(error, MemoryError) or any(text in str(error).lower() for text in OUT_OF_MEMORY)
