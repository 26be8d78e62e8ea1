"""What a comparison says: paired differences with intervals, from what its runs left on disk.

The estimand is related - control on the recipe's one primary metric: the control has the same parameters and the same
two streams, but every sample attends to itself alone, so what remains is what samples learned from *others*. Both arms
are adjusted for class bias first, each at the strength that its own validation part chose.

P values are corrected (Holm) in two families, what a reader looks through together: all metrics and pairs of arms but
the primary, and the classes. One family of both would let a data set of many classes hide what the metrics say.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from setwise.errors import RunError
from setwise.machine import at_home
from setwise.metrics import (
    Interval,
    Verdict,
    contributions,
    holm,
    instance_contributions,
    lower_is_better,
    paired_interval,
    seed_interval,
    verdict,
)
from setwise.recipes import Recipe, yaml_file
from setwise.run_folder import PLAN, RunFolder, read_classes, read_lines, write_whole

__all__ = ["Arm", "Comparison", "Curve", "Difference", "Plan", "judge", "read_plan", "write_plan"]


@dataclass(frozen=True)
class Arm:
    """One kind of run in a comparison."""

    name: str
    """plain, control, related; further kinds of neighbours as related-<kind>."""
    variant: str
    settings: dict[str, Any]
    """Recipe fields that make this arm differ from the recipe, tuned ones among them."""


@dataclass(frozen=True)
class Plan:
    """What was fixed before the first run."""

    recipe: Recipe
    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]
    tune: dict[str, list[Any]] = field(default_factory=dict)
    """Grid that every arm was tuned over, on validation."""

    def folder(self, root: Path, arm: Arm, seed: int) -> Path:
        """Where the run of one arm and seed stands."""
        return root / "runs" / arm.name / f"seed-{seed}"


def write_plan(plan: Plan, root: Path) -> None:
    """Write the plan beside the runs: recipe.yaml and plan.json."""
    yaml_file.write(plan.recipe, root / "recipe.yaml")
    saved = {"arms": [asdict(arm) for arm in plan.arms], "seeds": plan.seeds, "tune": plan.tune}
    write_whole(root / PLAN, json.dumps(saved, indent=2) + "\n")


def read_plan(root: Path) -> Plan:
    """The plan of a comparison folder.

    Raises:
        RunError: if the folder holds no comparison.
    """
    try:
        saved = json.loads((root / PLAN).read_text(encoding="utf-8"))
        arms = tuple(Arm(arm["name"], arm["variant"], _read(arm["settings"])) for arm in saved["arms"])
        tune = {path: [yaml_file.read_field(path, value) for value in values] for path, values in saved["tune"].items()}
        seeds = tuple(saved["seeds"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:  # whatever a damaged file leads to
        raise RunError(f"{root} is no folder of `setwise compare`: its plan.json cannot be read ({error}).") from error
    return Plan(yaml_file.read(root / "recipe.yaml"), arms, seeds, tune)


def _read(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings read from JSON, which has lists for tuples."""
    return {path: yaml_file.read_field(path, value) for path, value in settings.items()}


@dataclass(frozen=True)
class Difference:
    """One metric, one pair of arms."""

    metric: str
    arm: str
    against: str
    interval: Interval
    p_holm: float
    """p after Holm's correction in its family (metrics and pairs of arms, or classes); the primary's own p."""


@dataclass(frozen=True)
class Curve:
    """Accuracy of the groups of one arm over the strength of logit adjustment, mean over seeds."""

    arm: str
    taus: tuple[float, ...]
    values: dict[str, tuple[float, ...]]
    chosen: tuple[float, ...]
    """What validation chose, one a seed."""


@dataclass(frozen=True)
class Comparison:
    """The result of `setwise compare`."""

    plan: Plan
    means: dict[str, dict[str, tuple[float, float]]]
    """Arm -> metric -> mean and standard deviation over the seeds."""
    primary: Difference
    others: tuple[Difference, ...]
    classes: tuple[Difference, ...]
    """related - control for every class; the metric is the class's name. A Holm family of their own."""
    curves: tuple[Curve, ...]
    verdict: Verdict
    seconds: float
    """Of all runs together."""
    versions: dict[str, str]
    commit: str | None

    def find(self, metric: str, arm: str, against: str) -> Difference | None:
        """One of the differences, None where the metric does not exist."""
        wanted = (metric, arm, against)
        return next((d for d in (self.primary, *self.others) if (d.metric, d.arm, d.against) == wanted), None)


@dataclass(frozen=True)
class _Runs:
    """All seeds of one arm, in the order of the plan."""

    lines: list[dict[str, Any]]
    files: list[dict[str, np.ndarray]]

    def metric(self, name: str) -> np.ndarray:
        return np.array([line["metrics"].get(name, np.nan) for line in self.lines])

    def correct(self, adjusted: bool) -> np.ndarray:
        """Whether each test image is right, ``[S, N]``."""
        rows = []
        for file in self.files:
            tau = float(file["tau"]) if adjusted else 0.0
            rows.append(file["predicted"][np.abs(file["taus"] - tau).argmin()] == file["target"])
        return np.stack(rows)

    def groups(self, name: str) -> list[np.ndarray] | None:
        key = f"group_{name}"
        return [file[key] for file in self.files] if key in self.files[0] else None


def judge(root: str | Path) -> Comparison:
    """Compare the arms of a finished comparison folder.

    Raises:
        RunError: if a run of the plan is missing or they were not tested on the same images.
    """
    root = at_home(root)
    plan = read_plan(root)
    runs = {arm.name: _read_runs(plan, root, arm) for arm in plan.arms}
    first = runs["plain"].lines[0]
    names = list(first["metrics"])
    pairs = [("related", "control"), ("related", "plain"), ("control", "plain")]
    pairs += [(arm.name, "control") for arm in plan.arms if arm.name.startswith("related-")]
    judged = {(m, a, b): _difference(runs[a], runs[b], m) for a, b in pairs for m in names}
    found = {key: interval for key, interval in judged.items() if interval is not None}
    class_names = [row["class"] for row in read_classes(plan.folder(root, plan.arms[0], plan.seeds[0]))]
    adjusted = plan.recipe.primary.startswith("adjusted_")
    classes = _class_differences(runs["related"], runs["control"], class_names, adjusted=adjusted)
    primary_key = (plan.recipe.primary, "related", "control")
    if primary_key not in found:
        raise RunError(
            f"The primary metric {plan.recipe.primary} is no number in some run of {root}: its test part has no image "
            "that counts. Compare with another --primary."
        )
    of_others = holm({str(key): interval.p for key, interval in found.items() if key != primary_key})
    of_classes = holm({name: interval.p for name, interval in classes.items()})
    many = found.get((f"{'adjusted_' * adjusted}many", "related", "control"))
    return Comparison(
        plan=plan,
        means={name: _means(arm, names) for name, arm in runs.items()},
        primary=Difference(*primary_key, found[primary_key], found[primary_key].p),
        others=tuple(Difference(*key, i, of_others[str(key)]) for key, i in found.items() if key != primary_key),
        classes=tuple(Difference(name, "related", "control", i, of_classes[name]) for name, i in classes.items()),
        curves=tuple(_curve(name, arm) for name, arm in runs.items() if "predicted" in arm.files[0]),
        verdict=verdict(found[primary_key], many, lower_is_better=lower_is_better(plan.recipe.primary)),
        seconds=sum(line["seconds"] for arm in runs.values() for line in arm.lines),
        versions=_all_of([line["versions"] for arm in runs.values() for line in arm.lines]),
        commit=_all_of([{"commit": line["commit"]} for arm in runs.values() for line in arm.lines])["commit"],
    )


def _all_of(versions: Sequence[Mapping[str, str | None]]) -> dict[str, str]:
    """Package -> its version, or all of them where a comparison was resumed after an update."""
    names = dict.fromkeys(name for of_run in versions for name in of_run)
    return {name: " and ".join(filter(None, dict.fromkeys(run.get(name) for run in versions))) for name in names}


def _read_runs(plan: Plan, root: Path, arm: Arm) -> _Runs:
    lines, files = [], []
    for seed in plan.seeds:
        folder = RunFolder(plan.folder(root, arm, seed))
        if not folder.complete:
            raise RunError(f"{folder.path} is not complete; `setwise compare {root} --resume` finishes it.")
        lines.append(read_lines(folder.results)[-1])
        if lines[-1]["primary"] != plan.recipe.primary:
            raise RunError(
                f"{folder.path} was trained with {lines[-1]['primary']} as its primary metric, which is fixed before "
                f"the first run; recipe.yaml of {root} now has {plan.recipe.primary}: put the old one back."
            )
        with np.load(folder.predictions, allow_pickle=False) as saved:
            files.append({name: saved[name] for name in saved.files})
    if any(not np.array_equal(file["target"], files[0]["target"]) for file in files):
        raise RunError(f"The seeds in {root} were tested on different images, so they cannot be compared.")
    return _Runs(lines, files)


def _difference(a: _Runs, b: _Runs, metric: str) -> Interval | None:
    """Interval of one metric, None where a group is empty."""
    if np.isnan(a.metric(metric)).any() or np.isnan(b.metric(metric)).any():
        return None
    adjusted, name = metric.startswith("adjusted_"), metric.removeprefix("adjusted_")
    target = a.files[0]["target"]
    groups = a.groups(name)
    if "predicted" not in a.files[0] or (groups is None and name not in ("accuracy", "balanced_accuracy")):
        return seed_interval(a.metric(metric), b.metric(metric))
    if name == "accuracy":
        parts = [instance_contributions(runs.correct(adjusted)) for runs in (a, b)]
    else:
        parts = [contributions(runs.correct(adjusted), target, groups_of_seed=groups) for runs in (a, b)]
    return paired_interval(parts[0], parts[1], target)


def _class_differences(a: _Runs, b: _Runs, names: list[str], *, adjusted: bool) -> dict[str, Interval]:
    if "predicted" not in a.files[0]:
        return {}
    target = a.files[0]["target"]
    correct = [runs.correct(adjusted).astype(float) for runs in (a, b)]
    found = {}
    for k, name in enumerate(names):
        images = target == k
        if images.any():
            weight = 1 / images.sum()
            found[name] = paired_interval(
                correct[0][:, images] * weight, correct[1][:, images] * weight, target[images]
            )
    return found


def _means(runs: _Runs, names: list[str]) -> dict[str, tuple[float, float]]:
    table = {}
    for name in names:
        values = runs.metric(name)
        if not np.isnan(values).any():
            table[name] = (float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else 0.0)
    return table


def _curve(name: str, runs: _Runs) -> Curve:
    """Mean over seeds of balanced and group accuracies at every strength."""
    sums: dict[str, np.ndarray] = {}
    for file in runs.files:
        target, num_classes = file["target"], len(file["counts"])
        images = np.bincount(target, minlength=num_classes)
        right = file["predicted"] == target
        hits = np.stack([np.bincount(target, weights=row, minlength=num_classes) for row in right])  # [T, K]
        per_class = hits / np.maximum(images, 1)
        groups = {key.removeprefix("group_"): file[key] for key in file if key.startswith("group_")}
        for group, members in (groups | {"balanced_accuracy": np.ones(num_classes, bool)}).items():
            present = members & (images > 0)
            if present.any():
                sums[group] = sums.get(group, 0) + per_class[:, present].mean(1) / len(runs.files)
    taus = tuple(float(tau) for tau in runs.files[0]["taus"])
    chosen = tuple(float(file["tau"]) for file in runs.files)
    return Curve(name, taus, {group: tuple(values.tolist()) for group, values in sums.items()}, chosen)
