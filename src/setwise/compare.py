"""Run plain, related and control over the same seeds, in parallel processes, and continue where it was broken off."""

import itertools
import json
import multiprocessing
import queue
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.callbacks import Callback

from setwise.build import WITHOUT_RELATION
from setwise.data.images import num_cores
from setwise.errors import InvalidInput, RunError, SetwiseError, Stopped, choose
from setwise.judge import Arm, Plan, read_plan, write_plan
from setwise.launch import end_with_parent, started, stopped_by_sigterm
from setwise.metrics import lower_is_better
from setwise.nn.attend import ATTEND
from setwise.recipes import Recipe
from setwise.recipes.stages import stage_before, stages
from setwise.run import fit, rehearse
from setwise.run_folder import RunFolder, read_lines, write_whole

__all__ = ["Progress", "compare", "make_plan"]

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

Say = Callable[[str], None]
Progress = Callable[[str, float], None]
"""Told which run moved, and how many of the epochs of all runs are done, 0..1."""


@dataclass(frozen=True)
class _Job:
    name: str
    recipe: Recipe
    folder: Path


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
        workers: processes that train at a time; None: one a core on a CPU, one on anything else.
        progress: told about every epoch.
        say: told what a person should know.

    Returns:
        The plan that was carried out; its runs are complete and ``root/results.jsonl`` holds their lines.

    Raises:
        RunError: if runs failed; the others are complete and ``--resume`` continues.
    """
    root = Path(root)
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
    if not begun:
        _start(plan, root)
    progress = progress or _silent
    settings, runs = len(_grid(plan)), len(plan.seeds)
    tuning = settings / (settings + runs)  # its part of all runs; every arm has as many
    plan = _tune(plan, root, workers, lambda name, done: progress(name, done * tuning), say)
    jobs = [
        _Job(f"{arm.name}, seed {seed}", _recipe(plan, arm, seed), plan.folder(root, arm, seed))
        for seed in plan.seeds
        for arm in plan.arms
    ]
    _work(jobs, workers, lambda name, done: progress(name, tuning + done * (1 - tuning)))
    lines = [read_lines(RunFolder(job.folder).results)[-1] for job in jobs]
    for line, (_, arm) in zip(lines, itertools.product(plan.seeds, plan.arms), strict=True):
        line["recipe"] += "".join(f" --{name} {value}" for name, value in arm.settings.items())
    write_whole(root / "results.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    return plan


def _start(plan: Plan, root: Path) -> None:
    if root.exists() and any(root.iterdir()):
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
            _Job(
                f"tuning {arm.name}, setting {number + 1} of {len(grid)}",
                _recipe(plan, replace(arm, settings=arm.settings | setting), TUNING_SEED),
                root / "tuning" / arm.name / f"setting-{number}",
            )
            for number, setting in enumerate(grid)
        ]
        for arm in plan.arms
    }
    _work([job for jobs in trials.values() for job in jobs], workers, progress)
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


def _validation(job: _Job) -> float:
    with np.load(RunFolder(job.folder).predictions, allow_pickle=False) as saved:
        return float(saved[f"val_{job.recipe.primary}"])


def _silent(name: str, done: float) -> None:
    pass


def _work(jobs: Sequence[_Job], workers: int | None, progress: Progress) -> None:
    """Run all jobs that are not complete; those already begun continue from their checkpoints."""
    todo = [job for job in jobs if not RunFolder(job.folder).complete]
    if not todo:
        return
    asked = workers or _default_workers(todo[0].recipe)
    # Of all workers, also where few runs are left: sums round otherwise with more threads, and a resumed comparison
    # is to end as an unbroken one.
    threads = max(1, num_cores() // asked)
    workers = min(len(todo), asked)
    share = 1 / len(jobs)
    finished = len(jobs) - len(todo)
    if asked == 1:
        failed: dict[str, BaseException] = {}
        for number, job in enumerate(todo):
            base = (finished + number) * share
            try:
                _train(job, _EpochReport(job, partial(_move, progress, base, share)))
            except Stopped:
                raise
            except SetwiseError as error:
                failed[job.name] = error
            progress(job.name, base + share)
        _raise_failures(failed, len(todo))
        return
    with stopped_by_sigterm():
        _work_in_parallel(todo, workers, threads, _Share(finished, share), progress)


def _move(progress: Progress, base: float, share: float, name: str, part: float) -> None:
    progress(name, base + part * share)


@dataclass(frozen=True)
class _Share:
    """Jobs that were complete before, and the part that one job is of all."""

    finished: int
    of_one: float


def _work_in_parallel(todo: Sequence[_Job], workers: int, threads: int, share: _Share, progress: Progress) -> None:
    context = multiprocessing.get_context("spawn")  # a forked child would inherit torch's threads in any state
    messages = context.Queue()
    parts = {job.name: 0.0 for job in todo}
    failed: dict[str, BaseException] = {}
    with ProcessPoolExecutor(workers, context, _start_worker, (messages, threads)) as pool:
        try:
            futures: dict[Future[None], str] = {pool.submit(_train_in_worker, job): job.name for job in todo}
            pending = set(futures)
            while pending:
                done, pending = wait(pending, timeout=0.2, return_when=FIRST_COMPLETED)
                for name, part in [*_drain(messages), *((futures[future], 1.0) for future in done)]:
                    parts[name] = max(parts[name], part)
                    progress(name, (share.finished + sum(parts.values())) * share.of_one)
                failed |= {futures[future]: error for future in done if (error := future.exception()) is not None}
        except (KeyboardInterrupt, Stopped):
            pool.shutdown(wait=False, cancel_futures=True)
            for child in multiprocessing.active_children():
                child.kill()  # Lightning answers a mere SIGTERM when its epoch is over; checkpoints are written whole
            raise
    _raise_failures(failed, len(todo))


def _raise_failures(failed: Mapping[str, BaseException], number: int) -> None:
    if not failed:
        return
    name, error = next(iter(failed.items()))
    if isinstance(error, BrokenProcessPool):
        reason = "a worker process was ended from outside; if memory ran out, lower --workers or --data.batch-size"
    else:
        reason = f"{name}: {error}"
    raise RunError(
        f"{len(failed)} of {number} runs did not finish ({reason}). The others are kept; --resume continues."
    ) from error


def _drain(messages: "multiprocessing.Queue[tuple[str, float]]") -> Iterator[tuple[str, float]]:
    while True:
        try:
            yield messages.get_nowait()
        except queue.Empty:
            return


def _default_workers(recipe: Recipe) -> int:
    on_cpu = recipe.trainer.accelerator == "cpu" or (
        recipe.trainer.accelerator == "auto" and not torch.accelerator.is_available()
    )
    return num_cores() if on_cpu else 1


class _EpochReport(Callback):
    """Says after every epoch which part of a run is done; its stages count alike."""

    def __init__(self, job: _Job, tell: Callable[[str, float], None]) -> None:
        self.name, self.tell = job.name, tell
        self.stages, self.begun, folder = len(stages(job.recipe)), 0, RunFolder(job.folder)
        for _ in range(self.stages - 1):  # those that a broken comparison has finished already
            folder = RunFolder(folder.before)
            self.begun += folder.complete

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        self.begun += 1

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        part = (trainer.current_epoch + 1) / (trainer.max_epochs + 1)
        self.tell(self.name, (self.begun - 1 + part) / self.stages)


def _train(job: _Job, report: _EpochReport) -> None:
    fit(job.recipe, job.folder, resume=True, progress=False, say=_mute, callbacks=(report,))


def _mute(sentence: str) -> None:
    """What a run has to say was said once, at the rehearsal."""


_messages: Any = None


def _start_worker(messages: Any, threads: int) -> None:
    global _messages
    _messages = messages
    end_with_parent()
    torch.set_num_threads(threads)


def _train_in_worker(job: _Job) -> None:
    _train(job, _EpochReport(job, lambda name, part: _messages.put((name, part))))
