"""Numbers of the literature beside a comparison, where it ran the recipe that they belong to."""

from dataclasses import replace

from setwise.judge import Plan
from setwise.recipes import RECIPES, Recipe
from setwise.recipes.schema import Reported
from setwise.report.parts import NOT_SAID, flat
from setwise.report.wording import names_of, percent

__all__ = ["departures", "reported_lines", "reported_of", "reported_of_variant"]

OF_THE_ARMS = ("relation.name", "relation.attend")
"""These fields make the arms of a comparison: without a relation, or with one that attends to itself alone."""
OF_THE_MACHINE = (
    "seed",
    "num_seeds",
    "data.root",
    "data.train_list",
    "data.val_list",
    "data.test_list",
    "data.num_workers",
    "data.cache",
    "trainer.accelerator",
    "trainer.logger",
    "trainer.checkpoint_every",
    "trainer.val_every",
)
"""Where and how often a recipe runs; what it is stays the same."""


def reported_lines(plan: Plan) -> list[str]:
    """What the literature reports for this recipe, one line a number, with its source.

    One line says why, where the plan has another recipe than the one of its name; none where nothing is reported.
    """
    if plan.recipe.reported and not reported_of(plan):
        if plan.recipe.name not in RECIPES:
            return [f"reported numbers are left out: no recipe of setwise has the name {plan.recipe.name}"]
        return [f"reported numbers are left out: this run differs from the recipe in {', '.join(departures(plan))}"]
    return [
        f"reported: {names_of([])(number.metric)}, {number.variant}: {percent(number.value)} ({number.source})"
        for number in reported_of(plan)
    ]


def reported_of_variant(recipe: Recipe) -> list[str]:
    """The same of one run: the lines of its variant."""
    own = tuple(number for number in recipe.reported if number.variant == recipe.variant)
    return reported_lines(Plan(replace(recipe, reported=own), (), ()))


def reported_of(plan: Plan) -> tuple[Reported, ...]:
    """Numbers of the literature that may stand beside what the plan measures; none for another recipe than its name's.

    >>> recipe = RECIPES["cifar100-lt"]
    >>> short = recipe.override({"trainer.epochs": 30})
    >>> len(reported_of(Plan(recipe, (), (0,)))), len(reported_of(Plan(short, (), (0,))))
    (1, 0)
    """
    same = plan.recipe.name in RECIPES and not departures(plan)
    return plan.recipe.reported if same else ()


def departures(plan: Plan) -> list[str]:
    """Fields ("group.field") in which a run of the plan differs from the recipe of its name, tuned ones among them.

    What makes the arms does not count, nor where and how often the recipe runs, nor that its best epoch is chosen, on
    validation or on test, nor a smaller part that is held out. Empty for a name that no recipe has.
    """
    known = RECIPES.get(plan.recipe.name)
    if known is None:
        return []
    then = flat(known)
    # Published numbers are of the best epoch, chosen on test or on images beside all that are trained on, so a run that
    # does so is nearer to them, not farther. A metric that is watched changes nothing else; stopping early would.
    nearer = ["select_on", "primary", *["trainer.select"] * (plan.recipe.trainer.select == "best")]
    nearer += ["data.val_fraction"] * (plan.recipe.data.val_fraction <= known.data.val_fraction)
    found = []
    for field, value in flat(plan.recipe).items():
        if field in (*NOT_SAID, *OF_THE_MACHINE, *OF_THE_ARMS, *nearer):
            continue
        tuned = [arm.settings[field] for arm in plan.arms if field in arm.settings]
        if any(one != then[field] for one in (value, *tuned)):
            found.append(field)
    return found
