"""A recipe as a YAML file that a person reads, edits and runs again."""

import dataclasses
import re
import reprlib
import types
import typing
from pathlib import Path
from typing import Any

import yaml

from setwise.errors import InvalidInput, MissingFile, UnknownName, choose
from setwise.recipes.schema import Recipe
from setwise.run_folder import write_whole

__all__ = ["from_dict", "read", "read_field", "write"]

NOT_OF_A_RUN = ("smoke", "ran")

SHORT = reprlib.Repr()
"""Shows a value as far as a person reads it: what a few lines of YAML refer to again and again is endless."""
SHORT.maxstring = SHORT.maxother = 200
SHORT.maxdict = SHORT.maxlist = SHORT.maxtuple = 20
SHORT.maxlevel = 3


def write(recipe: Recipe, path: Path) -> None:
    """Write the fields of ``recipe``, groups as blocks, in the order of the schema.

    What belongs to the named recipe and not to this file (``smoke``, ``ran``) is left out.
    """
    recipe = dataclasses.replace(recipe, smoke={}, ran=())
    fields = {name: value for name, value in _plain(dataclasses.asdict(recipe)).items() if name not in NOT_OF_A_RUN}
    summary = " ".join(recipe.summary.split())  # one line, or the rest of it would be no comment
    header = f"# {summary}\n# Run it again: setwise train {path.name} (what the fields mean: --help)\n"
    body = yaml.safe_dump(fields, sort_keys=False, width=100, allow_unicode=True)
    write_whole(path, header + body)


def read(path: Path) -> Recipe:
    """Read a recipe; fields that are left out keep the schema's defaults.

    Raises:
        MissingFile: if there is no such file.
        InvalidInput: if it is not YAML, or a field is unknown or of another type, naming file and field.
    """
    if not path.is_file():
        raise MissingFile(f"There is no recipe file {path}.")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except Exception as error:  # a month 13, a lone sign, a thousand brackets: each ends in an error of its own
        if isinstance(error, OSError):
            raise
        raise InvalidInput(
            f"{path} is not a YAML file: {' '.join(str(error).split()) or type(error).__name__}"
        ) from error
    if not isinstance(values, dict):
        raise InvalidInput(
            f"{path} must hold the fields of a recipe (`name: ...`), but it holds {type(values).__name__}."
        )
    try:
        recipe: Recipe = from_dict(Recipe, {"name": path.stem, "summary": "", **values})
        if not re.fullmatch(r"\w[\w.+-]*", recipe.name):
            raise InvalidInput(f"`name` names folders: letters, digits and -+._ in one word, not {recipe.name!r}.")
        return recipe
    except (InvalidInput, UnknownName) as error:
        raise type(error)(f"{path}: {error}") from error


def read_field(path: str, value: Any) -> Any:
    """The value of one field as it stands in a recipe, from what YAML made of it.

    Args:
        path: ``group.field``.
        value: plain value.

    Raises:
        InvalidInput: if the value is not of the field's type.
        UnknownName: if there is no such field.

    >>> read_field("optimizer.lr", "5e-2")
    0.05
    """
    group, _, name = path.partition(".")
    recipe = from_dict(Recipe, {"name": "", "summary": "", group: {name: value}})
    return getattr(getattr(recipe, group), name)


def from_dict(kind: Any, values: Any, where: str = "") -> Any:
    """Turn plain YAML values into a dataclass (or any annotated type), checking every field.

    >>> from setwise.recipes.schema import Data
    >>> from_dict(Data, {"batch_size": 64}).batch_size
    64
    """
    if dataclasses.is_dataclass(kind):
        return _dataclass(kind, values, where)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return _union(arguments, values, where)
    if origin is typing.Literal:
        if values not in arguments:
            raise InvalidInput(
                f"`{where}` must be one of {', '.join(map(str, arguments))}, but it is {SHORT.repr(values)}."
            )
        return values
    if origin in (tuple, list):
        if not isinstance(values, list | tuple):
            raise InvalidInput(f"`{where}` must be a list, but it is {SHORT.repr(values)}.")
        return origin(from_dict(arguments[0], value, f"{where}[{i}]") for i, value in enumerate(values))
    if origin is dict:
        if not isinstance(values, dict):
            raise InvalidInput(f"`{where}` must be a block of names and values, but it is {SHORT.repr(values)}.")
        return values
    if kind is Any:
        return values
    return _scalar(kind, values, where)


def _dataclass(kind: Any, values: Any, where: str) -> Any:
    if not isinstance(values, dict):
        raise InvalidInput(f"`{where}` must be a block of fields, but it is {SHORT.repr(values)}.")
    hints = typing.get_type_hints(kind)
    prefix = f"{where}." if where else ""
    for name in values:
        choose(str(name), hints, f"field of `{where}`" if where else "recipe field")
    try:
        return kind(**{name: from_dict(hints[name], value, prefix + name) for name, value in values.items()})
    except TypeError as error:  # a field without a default was left out
        raise InvalidInput(f"`{where or 'the recipe'}` is not whole: {error}.") from error


def _union(kinds: tuple[Any, ...], values: Any, where: str) -> Any:
    if values is None and type(None) in kinds:
        return None
    error: InvalidInput | None = None
    for kind in kinds:
        if kind is not type(None):
            try:
                return from_dict(kind, values, where)
            except InvalidInput as caught:
                error = caught
    raise error or InvalidInput(f"`{where}` cannot be {SHORT.repr(values)}.")


def _scalar(kind: Any, value: Any, where: str) -> Any:
    # YAML 1.1 reads 5e-4 (no point) as a string; a person means the number.
    if kind is float and isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            return float(value)
        except (ValueError, OverflowError):
            pass
    elif isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
        return value
    raise InvalidInput(f"`{where}` must be of type {kind.__name__}, but it is {SHORT.repr(value)}.")


def _plain(value: Any) -> Any:
    """Tuples as lists: YAML has no tuples."""
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
