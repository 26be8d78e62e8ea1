"""Recipes in stages: which one is trained before another."""

from pathlib import Path

from setwise.errors import InvalidInput, choose
from setwise.recipes import RECIPES, yaml_file
from setwise.recipes.schema import Recipe

__all__ = ["stage_before", "stages", "starts_from_weights"]

GROUPS = ("relation", "groups")
"""What both stages have in common, whole."""
FIELDS = {
    "data": (
        "name",
        "root",
        "train_list",
        "val_list",
        "test_list",
        "multi_label",
        "imbalance_factor",
        "val_fraction",
        "image_size",
        "normalise",
        "on_error",
        "cache",
        "num_workers",
        "micro_batch",
    ),
    "backbone": ("name", "pretrained", "pool", "options"),
    "trainer": ("max_steps", "on_nan", "precision", "channels_last", "accelerator", "devices", "num_nodes", "logger"),
}
"""What they have in common of other groups: images, network and machine. Which parts train is each one's own."""
OF_A_STAGE = ("data", "head", "criterion", "contrast", "optimizer", "trainer")
"""Groups that ``before.options`` may change."""
OF_NETWORK = "backbone.options."


def starts_from_weights(recipe: Recipe) -> bool:
    """Whether the backbone begins with a file's weights, or will after the stage before; a teacher gives none."""
    return recipe.backbone.weights is not None or (recipe.before.use == "start" and stage_before(recipe) is not None)


def stage_before(recipe: Recipe) -> Recipe | None:
    """What is trained before ``recipe``, so that this starts from its backbone; None where nothing is.

    Raises:
        UnknownName: if ``before.recipe`` or a field of ``before.options`` is unknown; the nearest are listed.
        InvalidInput: if ``before.options`` holds a field that both stages share, or a value of another type.

    >>> stage_before(RECIPES["cifar100-lt-crt"].override({"seed": 3})).seed
    3
    """
    part = recipe.before
    given = recipe.backbone.weights if part.use == "start" else recipe.criterion.teacher
    if part.recipe is None or given is not None:
        return None
    values = {f"{group}.{name}": getattr(getattr(recipe, group), name) for group in FIELDS for name in FIELDS[group]}
    values |= {group: getattr(recipe, group) for group in GROUPS}
    if recipe.episodes.sources:
        values["data.root"] = _source_of(recipe)
    before = choose(part.recipe, RECIPES, "recipe (before.recipe)").override(values)
    network = dict(recipe.backbone.options)
    own = {"backbone.options": network, "seed": recipe.seed, "select_on": recipe.select_on}
    if before.task == recipe.task:
        own["primary"] = recipe.primary
    for path, value in part.options.items():
        if path.startswith(OF_NETWORK) and part.use == "teacher":  # which may be another network
            network[path.removeprefix(OF_NETWORK)] = value
        else:
            own[path] = yaml_file.read_field(_checked(path, recipe), value)
    if recipe.head.name == "routed":  # asks the classifiers of that stage, which know no scale of their own
        own["head.scale"] = recipe.head.scale
    return before.override(own)


def stages(recipe: Recipe) -> list[Recipe]:
    """All stages of ``recipe`` in their order, itself the last."""
    before = stage_before(recipe)
    return [recipe] if before is None else [*stages(before), recipe]


def _source_of(recipe: Recipe) -> str:
    """Folder of the one set that the episodes are drawn from, whose classes a classifier can learn."""
    sources, root = recipe.episodes.sources, recipe.data.root
    if len(sources) > 1 or root is None:
        raise InvalidInput(
            f"`before.recipe` ({recipe.before.recipe}) learns the classes of one data set in `data.root`, but "
            f"`episodes.sources` names {', '.join(sources)}: train the trunk by itself, and name it with "
            "--backbone.weights."
        )
    return str(Path(root) / sources[0])


def _checked(path: str, recipe: Recipe) -> str:
    group, _, name = path.partition(".")
    if group not in OF_A_STAGE or name in FIELDS.get(group, ()):
        raise InvalidInput(
            f"`before.options` of {recipe.name} cannot set {path!r}: it takes fields of {', '.join(OF_A_STAGE)} that "
            "are the stage's own (trainer.epochs, optimizer.lr ...); set what both stages share without `before.`."
        )
    return path
