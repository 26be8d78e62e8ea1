"""Arguments -> recipe and the verb's own options. The recipe's dataclasses are the parser: nothing is listed twice."""

import dataclasses
import inspect
import itertools
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro
import yaml

from setwise.errors import InvalidInput, MissingFile, choose
from setwise.recipes import RECIPES, Recipe, yaml_file

__all__ = ["NAMELESS", "find_recipe", "parse", "parse_with_recipe", "take_name"]

T = TypeVar("T")

GROUPS = ("data", "backbone", "relation", "head", "episodes", "criterion", "optimizer", "trainer", "groups")
SINGLE = {
    "seed": "Seed of a run, and the first seed of a comparison.",
    "primary": "The one metric that selection (on validation) and verdict (on test) look at.",
}
NAMELESS = "NAME"
"""Stands for the name in a help that was asked for without one; the options are then the embedded example's."""
SWITCHES = {
    f"__{group}.{field.name}"
    for group in GROUPS
    for field in dataclasses.fields(typing.get_type_hints(Recipe)[group])
    if field.type in (bool, "bool")
}
"""Fields that are on or off, as they look on the command line with underscores."""
FLAG_VALUES = ("=true", "=false")
MODEL_OPTION = "--backbone.options."


def take_name(verb: str, args: Sequence[str], what: str) -> tuple[str, list[str]]:
    """Split off the name that stands first after the verb; help without a name shows the embedded example's options.

    Raises:
        InvalidInput: if there is none.
    """
    if args and args[0] in ("-h", "--help"):
        return NAMELESS, ["--help"]
    if not args or args[0].startswith("-"):
        raise InvalidInput(
            f"`setwise {verb}` takes {what} first: setwise {verb} NAME [options]. `setwise list` shows the recipes; "
            f"`setwise {verb} digits-lt --help` shows every option."
        )
    return args[0], list(args[1:])


def find_recipe(name: str) -> Recipe:
    """A recipe by its name, by the path of a YAML file, or by the folder of a run.

    Raises:
        UnknownName: if it is none of these; the nearest names are listed.
    """
    if name in RECIPES or name == NAMELESS:
        return RECIPES["digits-lt" if name == NAMELESS else name]
    path = Path(name)
    if path.is_dir():
        return yaml_file.read(path / "recipe.yaml")
    if path.suffix in (".yaml", ".yml"):
        return yaml_file.read(path)
    if path.parent != Path():
        raise MissingFile(f"There is no run folder or recipe file {name}.")
    return choose(name, RECIPES, "recipe")


def parse(verb: str, own: type[T], args: Sequence[str]) -> T:
    """Parse the options of a verb that takes no recipe fields."""
    return tyro.cli(own, args=list(args), prog=f"setwise {verb}", description=inspect.getdoc(own))


def parse_with_recipe(verb: str, name: str, own: type[T], recipe: Recipe, args: Sequence[str]) -> tuple[T, Recipe]:
    """Parse a verb's own options and the fields of ``recipe``, which are the defaults.

    Returns:
        The own options, and the recipe with the fields that were given.

    Raises:
        InvalidInput: if an option of the backbone has no value.
        SystemExit: after the parser's own message about a wrong option (status 2), or its help (0).
    """
    args, model_options = _take_model_options(_spell_flags(args))
    hints = typing.get_type_hints(Recipe)
    # Without a name of its own the verb's group has no prefix; its fields keep the help under them.
    fields: list[Any] = [("own", Annotated[own, tyro.conf.arg(name="")], _default(own()))]
    for field, text in SINGLE.items():
        fields.append((field, Annotated[hints[field], tyro.conf.arg(help=text)], _default(getattr(recipe, field))))
    # tyro has no arguments for a dictionary without keys; the model's options are taken off before it.
    bare = dataclasses.replace(recipe, backbone=dataclasses.replace(recipe.backbone, options={}))
    fields += [(group, hints[group], _default(getattr(bare, group))) for group in GROUPS]
    options_type = dataclasses.make_dataclass("Options", fields, kw_only=True)
    about = f"{own.__doc__} The backbone's own options: {MODEL_OPTION}NAME VALUE."
    parsed: Any = tyro.cli(options_type, args=args, prog=f"setwise {verb} {name}", description=about)
    values = {field: getattr(parsed, field) for field in (*GROUPS, *SINGLE)}
    options = {**recipe.backbone.options, **model_options}
    return parsed.own, dataclasses.replace(recipe, **values).override({"backbone.options": options})


def _take_model_options(args: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """Split off ``--backbone.options.NAME VALUE``, whose names only the model knows; values are read as in YAML."""
    rest: list[str] = []
    options: dict[str, Any] = {}
    waiting = iter(args)
    for arg in waiting:
        if not arg.startswith(MODEL_OPTION):
            rest.append(arg)
            continue
        name, given, value = arg.removeprefix(MODEL_OPTION).partition("=")
        value = value if given else next(waiting, "")
        if not value:
            raise InvalidInput(f"{MODEL_OPTION}{name} needs a value: {MODEL_OPTION}{name} VALUE.")
        options[name.replace("-", "_")] = yaml.safe_load(value)
    return rest, options


def _spell_flags(args: Sequence[str]) -> list[str]:
    """Let switches take a value like all other fields: ``--data.multi-label true`` is ``--data.multi-label``."""
    spelled: list[str] = []
    parts = (arg.split("=", 1) if arg.lower().endswith(FLAG_VALUES) else [arg] for arg in args)
    for arg in itertools.chain.from_iterable(parts):
        on = arg.lower() == "true"
        group, _, name = spelled[-1].partition(".") if spelled else ("", "", "")
        if arg.lower() not in ("true", "false") or not name or f"{group}.{name}".replace("-", "_") not in SWITCHES:
            spelled.append(arg)
        elif not on:
            spelled[-1] = f"{group}.no-{name}"
    return spelled


def _default(value: Any) -> Any:
    return dataclasses.field(default_factory=lambda: value)
