"""Arguments -> recipe and the verb's own options. The recipe's dataclasses are the parser: nothing is listed twice."""

import dataclasses
import inspect
import itertools
import re
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro
import yaml

from setwise.errors import InvalidInput, MissingFile, choose
from setwise.machine import at_home
from setwise.recipes import RECIPES, Recipe, yaml_file

__all__ = ["NAMELESS", "find_recipe", "named_value", "parse", "parse_with_recipe", "take_name"]

T = TypeVar("T")

GROUPS = (
    "data",
    "before",
    "backbone",
    "relation",
    "head",
    "episodes",
    "criterion",
    "contrast",
    "optimizer",
    "trainer",
    "groups",
)
SINGLE = {
    "seed": "Seed of a run, and the first seed of a comparison.",
    "primary": "The one metric that selection (on validation) and verdict (on test) look at.",
    "select_on": "Part that chooses weights (--trainer.select best) and the strength of the logit adjustment. test, as "
    "in several official codes, holds nothing out of train; its numbers are too good, and the report says so.",
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
OPEN = ("backbone", "before")
"""Groups with ``options``, whose names the schema does not know."""


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
    return _at_home(tyro.cli(own, args=list(args), prog=f"setwise {verb}", description=inspect.getdoc(own)))


def _at_home(own: T) -> T:
    """The options of a verb, with ~ in their paths read as in a shell."""
    named: Any = own
    values = {field.name: getattr(own, field.name) for field in dataclasses.fields(named)}
    for name, value in values.items():
        if isinstance(value, Path):
            values[name] = at_home(value)
        elif isinstance(value, tuple):
            values[name] = tuple(at_home(each) if isinstance(each, Path) else each for each in value)
    return dataclasses.replace(named, **values)


def parse_with_recipe(verb: str, name: str, own: type[T], recipe: Recipe, args: Sequence[str]) -> tuple[T, Recipe]:
    """Parse a verb's own options and the fields of ``recipe``, which are the defaults.

    Returns:
        The own options, and the recipe with the fields that were given. A backbone of another name begins without the
        options of the recipe's.

    Raises:
        InvalidInput: if an option of the backbone has no value.
        SystemExit: after the parser's own message about a wrong option (status 2), or its help (0).
    """
    args, given = _take_open_options(_spell_flags(args))
    hints = typing.get_type_hints(Recipe)
    # Without a name of its own the verb's group has no prefix; its fields keep the help under them.
    fields: list[Any] = [("own", Annotated[own, tyro.conf.arg(name="")], _default(own()))]
    for field, text in SINGLE.items():
        fields.append((field, Annotated[hints[field], tyro.conf.arg(help=text)], _default(getattr(recipe, field))))
    # tyro has no arguments for a dictionary without keys; these options are taken off before it.
    bare = recipe.override({f"{group}.options": {} for group in OPEN})
    fields += [(group, hints[group], _default(getattr(bare, group))) for group in GROUPS]
    options_type = dataclasses.make_dataclass("Options", fields, kw_only=True)
    about = (
        f"{own.__doc__} The backbone's own options: --backbone.options.NAME VALUE; --backbone.name of another "
        "network leaves the recipe's behind. Fields of the stage before, where "
        "there is one: --before.options.GROUP.FIELD VALUE."
    )
    parsed: Any = tyro.cli(options_type, args=args, prog=f"setwise {verb} {name}", description=about)
    values = {field: getattr(parsed, field) for field in (*GROUPS, *SINGLE)}
    kept = {group: getattr(recipe, group).options for group in OPEN}
    if parsed.backbone.name != recipe.backbone.name:
        kept["backbone"] = {}  # another network knows nothing of them
    options = {f"{group}.options": kept[group] | given[group] for group in OPEN}
    return _at_home(parsed.own), dataclasses.replace(recipe, **values).override(options)


def named_value(text: str) -> tuple[str, Any]:
    """``NAME=VALUE`` of an argument of a model; the value is read as in YAML.

    Raises:
        InvalidInput: if it is not of that form, or the value cannot be read.

    >>> named_value("norm-layer=batchnorm2d"), named_value("depth=12")
    (('norm_layer', 'batchnorm2d'), ('depth', 12))
    """
    name, given, value = text.partition("=")
    if not given or not name or not value:
        raise InvalidInput(f"--options takes NAME=VALUE, such as depth=12, but it was given {text!r}.")
    return name.replace("-", "_"), _value("--options", value)


def _value(option: str, text: str) -> Any:
    """A value as in YAML, but for numbers such as 1e-3, which YAML takes for words.

    >>> _value("--options", "1e-3"), _value("--options", "[1e2, 2]"), _value("--options", "none")
    (0.001, [100.0, 2], 'none')
    """
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InvalidInput(f"{option}: the value {text!r} cannot be read.") from error
    return _numbers(value)


def _numbers(value: Any) -> Any:
    if isinstance(value, list):
        return [_numbers(item) for item in value]
    scientific = isinstance(value, str) and re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+", value)
    return float(value) if scientific else value


def _take_open_options(args: Sequence[str]) -> tuple[list[str], dict[str, dict[str, Any]]]:
    """Split off ``--GROUP.options.NAME VALUE`` of the groups in ``OPEN``; values are read as in YAML."""
    rest: list[str] = []
    options: dict[str, dict[str, Any]] = {group: {} for group in OPEN}
    waiting = iter(args)
    for arg in waiting:
        group = next((group for group in OPEN if arg.startswith(f"--{group}.options.")), None)
        if group is None:
            rest.append(arg)
            continue
        option, is_given, value = arg.partition("=")
        value = value if is_given else next(waiting, "")
        if not value:
            raise InvalidInput(f"{option} needs a value: {option} VALUE.")
        name = option.removeprefix(f"--{group}.options.")
        options[group][name.replace("-", "_")] = _value(option, value)
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
