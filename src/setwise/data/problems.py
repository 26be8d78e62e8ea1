"""What is wrong with a data set: collected first, then told in one sentence or skipped and counted."""

from collections.abc import Sequence
from typing import Literal

from setwise.errors import DataError

__all__ = ["MOST_LISTED", "WAY_OUT", "OnError", "settle", "shorten"]

OnError = Literal["raise", "skip"]

MOST_LISTED = 5
"""Problems named in full; ten thousand lines of the same mistake help nobody."""

WAY_OUT = "Repair or remove what is named, or pass --data.on-error skip to go on without it."
"""What a user can do about a problem where ``data.on_error`` is an option."""


def shorten(items: Sequence[str], *, separator: str = "; ") -> str:
    """The first five items, and how many more there are.

    >>> shorten(["a", "b"], separator=", "), shorten(list("abcdefgh"), separator=", ")
    ('a, b', 'a, b, c, d, e and 3 more')
    """
    text = separator.join(items[:MOST_LISTED])
    return text if len(items) <= MOST_LISTED else f"{text} and {len(items) - MOST_LISTED} more"


def settle(problems: Sequence[str], *, on_error: OnError, what: str, way_out: str = WAY_OUT) -> tuple[str, ...]:
    """Raise one error that names the problems, or return the note that says what was skipped.

    Args:
        problems: one clause each, beginning with the file or the line it is about.
        on_error: ``"raise"``, or ``"skip"`` to go on without what is broken.
        what: plural of what is skipped ("images", "lines").
        way_out: sentence that ends the error; another one where there is no such option, or "" for none.

    Returns:
        Sentences for ``Splits.notes``: none without problems.

    Raises:
        DataError: if there are problems and ``on_error`` is ``"raise"``.
    """
    if not problems:
        return ()
    if on_error == "raise":
        raise DataError(f"{shorten(problems)}. {way_out}".rstrip())
    return (f"Skipped {what}: {len(problems)} ({shorten(problems)}).",)
