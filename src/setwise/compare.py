"""Run plain, related and control over the same seeds, and continue where it was broken off."""

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from setwise.build import WITHOUT_RELATION, Say
from setwise.errors import InvalidInput, RunError, choose
from setwise.jobs import Job, Progress, run_jobs
from setwise.judge import Arm, Plan, read_plan, write_plan
from setwise.launch import started
from setwise.machine import at_home
from setwise.metrics import lower_is_better
from setwise.nn.attend import ATTEND
from setwise.recipes import Recipe
from setwise.recipes.stages import stage_before
from setwise.run import rehearse
from setwise.run_folder import RunFolder, read_lines, write_whole
from setwise.work import say_nothing

__all__ = ["compare", "make_plan"]

TUNING_SEED = 100_000
"""Tuning runs have seeds of their own, so that no seed of the comparison has been chosen for."""

TUNABLE_GROUPS = ("optimizer.", "criterion.", "head.")
TUNABLE = (
    "data.augment",
    "data.batch_size",
    "data.cutmix",
    "data.mixup",
    "relation.attention_dropout",
    "relation.dropout",
    "relation.lr_multiplier",
    "relation.mlp_ratio",
    "relation.num_heads",
    "relation.num_layers",
    "relation.related_weight",
    "relation.weight_decay",
    "trainer.epochs",
    "trainer.gradient_clip",
)


def make_plan(recipe: Recipe, *, attend: Sequence[str] = (), tune: Mapping[str, Sequence[Any]] | None = None) -> Plan:
    """Fix arms and seeds before the first run.

    Args:
        recipe: the related recipe; its ``num_seeds`` seeds start at its ``seed``.
        attend: kinds of neighbours; the first is that of the related arm, each further one an arm of its own. None
            given: the recipe's.
        tune: recipe fields and the values that every arm tries, each with a seed of its own, judged on validation.

    Raises:
        UnknownName: if there is no such kind of neighbour.
        InvalidInput: if there is no seed, or a field is to be tuned that would make the arms incomparable.
        RunError: if the recipe has no relation to compare.
    """
    if started(recipe.trainer.devices, recipe.trainer.num_nodes) != (1, 1):
        raise RunError(
            "A comparison trains each run in one process, several runs side by side (--workers). Train runs of several "
            "devices one by one with `setwise train`."
        )
    if recipe.variant != "related":
        raise RunError(
            f"A comparison needs a related recipe, but {recipe.name!r} is {recipe.variant} (relation.name "
            f"{recipe.relation.name}, relation.attend {recipe.relation.attend}): plain and control are made from it."
        )
    for kind in attend:
        choose(kind, ATTEND, "kind of neighbour (--attend)")
    if "self" in attend:
        raise RunError("--attend self is the control, which every comparison runs anyway; name other kinds.")
    kinds = tuple(dict.fromkeys(attend)) or (recipe.relation.attend,)
    if recipe.num_seeds < 1:
        raise InvalidInput(f"A comparison needs at least one seed, but `num_seeds` is {recipe.num_seeds}.")
    for name in tune or ():
        if not name.startswith(TUNABLE_GROUPS) and name not in TUNABLE:
            raise InvalidInput(
                f"`{name}` cannot be tuned: an arm may differ from the others in how it learns, not in what it learns "
                f"from. Fields: {', '.join(f'{group}*' for group in TUNABLE_GROUPS)}, {', '.join(TUNABLE)}."
            )
    if recipe.head.name in WITHOUT_RELATION and stage_before(recipe) is None:
        raise InvalidInput(
            f"--head.name {recipe.head.name} has no relation of its own, so all arms would be alike on the features in "
            "backbone.weights: leave that out, and each arm trains the stage before (before.recipe) by itself."
        )
    if tune and recipe.head.name == "tau":
        raise InvalidInput("--head.name tau trains nothing, so there is nothing to tune: tune the stage before.")
    if tune and recipe.select_on == "test":
        raise InvalidInput("`select_on` is test, and nothing is tuned on test: leave out --tune or --select-on test.")
    recipe = recipe.override({"relation.attend": kinds[0]})
    arms = [Arm("plain", "plain", {}), Arm("control", "control", {}), Arm("related", "related", {})]
    arms += [Arm(f"related-{kind}", "related", {"relation.attend": kind}) for kind in kinds[1:]]
    seeds = tuple(range(recipe.seed, recipe.seed + recipe.num_seeds))
    if tune and TUNING_SEED in seeds:
        raise InvalidInput(f"Tuning has the seed {TUNING_SEED} to itself: take seeds of the comparison without it.")
    return Plan(recipe, tuple(arms), seeds, {name: list(values) for name, values in (tune or {}).items()})


def compare(
    plan: Plan | None,
    root: str | Path,
    *,
    workers: int | None = None,
    progress: Progress | None = None,
    say: Say = print,
) -> Plan:
    """Carry out ``plan`` in the folder ``root``, or finish the plan that stands there.

    Args:
        plan: what to run; None continues the folder's own plan.
        root: folder of the comparison.
        workers: processes that train at a time; None: one a core on a CPU, one a GPU.
        progress: told about every epoch.
        say: told what a person should know.

    Returns:
        The plan that was carried out; its runs are complete and ``root/results.jsonl`` holds their lines.

    Raises:
        RunError: if runs failed; the others are complete and ``--resume`` continues.
    """
    root = at_home(root)
    if workers is not None and workers < 1:
        raise InvalidInput(f"`workers` must be at least 1, but it is {workers}.")
    begun = plan is None
    plan = plan or read_plan(root)
    *others, last = (
        _recipe(plan, replace(arm, settings=arm.settings | setting), plan.seeds[0])
        for setting in _grid(plan) or [{}]
        for arm in plan.arms
    )
    rehearse(last, others=others, say=say)
    if plan.recipe.criterion.teacher is not None:  # which may not fit another seed
        for seed in (plan.seeds[-1], *[TUNING_SEED] * bool(plan.tune)):
            rehearse(last.override({"seed": seed}), say=say_nothing)
    if not begun:
        _start(plan, root)
    progress = progress or _silent
    settings, runs = len(_grid(plan)), len(plan.seeds)
    tuning = settings / (settings + runs)  # its part of all runs; every arm has as many
    plan = _tune(plan, root, workers, lambda name, done: progress(name, done * tuning), say)
    jobs = [
        Job(f"{arm.name}, seed {seed}", _recipe(plan, arm, seed), plan.folder(root, arm, seed))
        for seed in plan.seeds
        for arm in plan.arms
    ]
    run_jobs(jobs, workers, lambda name, done: progress(name, tuning + done * (1 - tuning)))
    lines = [read_lines(RunFolder(job.folder).results)[-1] for job in jobs]
    for line, (_, arm) in zip(lines, itertools.product(plan.seeds, plan.arms), strict=True):
        line["recipe"] += "".join(f" --{name} {value}" for name, value in arm.settings.items())
    write_whole(root / "results.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    return plan


def _start(plan: Plan, root: Path) -> None:
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise RunError(f"{root} is not empty, and a comparison never overwrites. Choose another --out, or --resume.")
    try:
        root.mkdir(parents=True, exist_ok=True)
        write_plan(plan, root)
    except OSError as error:
        raise RunError(f"The folder {root} cannot be written: {error.strerror}.") from error


def _recipe(plan: Plan, arm: Arm, seed: int) -> Recipe:
    """The recipe of one run; the variant is made last, so that no setting can undo what makes it a control."""
    return plan.recipe.override(arm.settings).as_variant(arm.variant).override({"seed": seed})  # type: ignore[arg-type]


def _grid(plan: Plan) -> list[dict[str, Any]]:
    """The settings that every arm tries."""
    values = itertools.product(*plan.tune.values())
    return [dict(zip(plan.tune, setting, strict=True)) for setting in values] if plan.tune else []


def _tune(plan: Plan, root: Path, workers: int | None, progress: Progress, say: Say) -> Plan:
    """Give every arm the setting that its own validation prefers; the same grid and seed for all."""
    if not (grid := _grid(plan)):
        return plan
    tuned, log = [], []
    trials = {
        arm.name: [
            Job(
                f"tuning {arm.name}, setting {number + 1} of {len(grid)}",
                _recipe(plan, replace(arm, settings=arm.settings | setting), TUNING_SEED),
                root / "tuning" / arm.name / f"setting-{number}",
            )
            for number, setting in enumerate(grid)
        ]
        for arm in plan.arms
    }
    run_jobs([job for jobs in trials.values() for job in jobs], workers, progress)
    for arm in plan.arms:
        scores = [_validation(job) for job in trials[arm.name]]
        best = grid[int(np.argmin(scores) if lower_is_better(plan.recipe.primary) else np.argmax(scores))]
        log += [{"arm": arm.name, "setting": s, "validation": v} for s, v in zip(grid, scores, strict=True)]
        say(f"{arm.name}: of {len(grid)} settings validation prefers {best}")
        tuned.append(replace(arm, settings=arm.settings | best))
    write_whole(root / "tuning.jsonl", "".join(json.dumps(line) + "\n" for line in log))
    plan = replace(plan, arms=tuple(tuned))
    write_plan(plan, root)
    return plan


def _validation(job: Job) -> float:
    with np.load(RunFolder(job.folder).predictions, allow_pickle=False) as saved:
        if (name := f"val_{job.recipe.primary}") not in saved:
            raise RunError(
                f"Nothing can be tuned by {job.recipe.primary}: the validation part has no image of its classes. "
                "Choose another metric with --primary."
            )
        return float(saved[name])


def _silent(name: str, done: float) -> None:
    pass
