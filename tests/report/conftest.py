"""Comparison folders as `setwise compare` leaves them, made up without any training."""

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from setwise.judge import Arm, Comparison, Plan, judge, write_plan
from setwise.recipes import RECIPES, Recipe
from setwise.recipes.yaml_file import write as write_recipe
from setwise.run_folder import RunFolder

TAUS = np.arange(-5, 26) / 10
SIGNAL = 2.6
HARDER = 1.1
"""By how much less the rarest class is seen."""


def make_comparison(
    root: Path,
    *,
    effect: float = 0.1,
    bias: float = 0.0,
    num_seeds: int = 4,
    class_names: list[str] | None = None,
    images_per_class: int = 30,
    kinds: tuple[str, ...] = (),
    tuned: bool = False,
    logs: bool = False,
    empty_groups: bool = False,
    notes: tuple[str, ...] = (),
    recipe: Recipe = RECIPES["digits-lt"],
) -> Path:
    """Write the folder of a comparison.

    Args:
        root: where to.
        effect: what the related arm sees more of few-shot classes.
        bias: how much more the related arm leans towards large classes.
        num_seeds: runs of every arm.
        class_names: ten digits if not given.
        images_per_class: test images.
        kinds: further kinds of neighbours, one arm each.
        tuned: whether a tuning log stands there.
        logs: whether the runs left CSV logs.
        empty_groups: no class is many- or few-shot.
        notes: what the data had to say to every run.
        recipe: of the comparison.
    """
    names = class_names or [str(digit) for digit in range(10)]
    arms = [Arm(name, name, {}) for name in ("plain", "control", "related")]
    arms += [Arm(f"related-{kind}", "related", {"relation.attend": kind}) for kind in kinds]
    recipe = replace(recipe, num_seeds=num_seeds)
    plan = Plan(recipe, tuple(arms), tuple(range(num_seeds)), {"optimizer.weight_decay": [1e-4, 5e-4]} if tuned else {})
    root.mkdir(parents=True)
    write_plan(plan, root)
    counts = np.maximum(2, 200 * 0.02 ** (np.arange(len(names)) / (len(names) - 1))).astype(int)
    groups = groups_of(counts, empty=empty_groups)
    target = np.repeat(np.arange(len(names)), images_per_class)
    for seed in plan.seeds:
        rng = np.random.default_rng(seed)
        shared = rng.normal(size=(len(target), len(names)))
        for arm in arms:
            scores = 0.9 * shared + 0.45 * rng.normal(size=shared.shape)
            gain = effect * (arm.variant == "related") * (arm.name == "related" or 0.5)
            lean = 1.0 + bias * (arm.variant == "related") + 0.15 * (arm.name == "plain")
            rank = np.arange(len(names)) / (len(names) - 1)
            scores[np.arange(len(target)), target] += SIGNAL - (HARDER - gain) * rank[target]
            scores += lean * np.log(counts / counts.sum())
            folder = RunFolder(plan.folder(root, arm, seed))
            write_run(folder, scores, target, counts, groups, names, plan, arm, seed)
            if notes:
                folder.environment.write_text(json.dumps({"notes": notes}), encoding="utf-8")
            if logs:
                write_logs(folder, rng, related=arm.name != "plain")
    if tuned:
        grid = [(arm.name, {"optimizer.weight_decay": decay}) for arm in arms for decay in (1e-4, 5e-4)]
        lines = [{"arm": name, "setting": setting, "validation": 0.7} for name, setting in grid]
        (root / "tuning.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return root


def groups_of(counts: np.ndarray, *, empty: bool) -> dict[str, np.ndarray]:
    rank = np.arange(len(counts)) / len(counts)
    if empty:
        nobody = np.zeros(len(counts), bool)
        return {"many": nobody, "medium": ~nobody, "few": nobody}
    return {"many": rank < 0.3, "medium": (rank >= 0.3) & (rank < 0.7), "few": rank >= 0.7}


def write_run(
    folder: RunFolder,
    scores: np.ndarray,
    target: np.ndarray,
    counts: np.ndarray,
    groups: dict[str, np.ndarray],
    names: list[str],
    plan: Plan,
    arm: Arm,
    seed: int,
) -> None:
    log_prior = np.log(counts / counts.sum())
    predicted = np.stack([(scores - tau * log_prior).argmax(1) for tau in TAUS]).astype(np.int32)
    balanced = [np.mean([(row == target)[target == k].mean() for k in range(len(names))]) for row in predicted]
    tau = float(TAUS[np.argmax(balanced)])
    accuracy = {prefix: class_accuracies(predicted, target, at) for prefix, at in (("", 0.0), ("adjusted_", tau))}
    metrics = {}
    for prefix, values in accuracy.items():
        metrics |= {f"{prefix}accuracy": values.mean(), f"{prefix}balanced_accuracy": values.mean()}
        metrics |= {f"{prefix}{name}": values[group].mean() for name, group in groups.items() if group.any()}
        metrics[f"{prefix}ece"] = 0.1 + 0.01 * np.random.default_rng((seed, len(arm.name))).random()
    folder.path.mkdir(parents=True)
    np.savez_compressed(
        folder.predictions,
        tau=tau,
        counts=counts,
        target=target,
        index=np.arange(len(target)),
        taus=TAUS,
        predicted=predicted,
        val_adjusted_balanced_accuracy=0.7,
        **{f"group_{name}": g for name, g in groups.items()},
    )
    group_of = [next(name for name, group in groups.items() if group[k]) for k in range(len(names))]
    with folder.per_class.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["class", "train_images", "group", "accuracy", "adjusted_accuracy"])
        table.writerows(zip(names, counts, group_of, accuracy[""], accuracy["adjusted_"], strict=True))
    write_line(folder, {name: float(value) for name, value in metrics.items()}, plan, arm, seed)


def class_accuracies(predicted: np.ndarray, target: np.ndarray, tau: float) -> np.ndarray:
    right = predicted[np.abs(TAUS - tau).argmin()] == target
    return np.array([right[target == k].mean() for k in range(target.max() + 1)])


def write_line(folder: RunFolder, metrics: dict[str, float], plan: Plan, arm: Arm, seed: int) -> None:
    line = {
        "recipe": plan.recipe.name,
        "variant": arm.variant,
        "seed": seed,
        "metrics": metrics,
        "primary": plan.recipe.primary,
        "seconds": 2.0,
        "versions": {"python": "3.11.9", "torch": "2.11.0"},
        "commit": "0123456789ab",
    }
    write_recipe(plan.recipe.as_variant(arm.variant), folder.recipe)  # type: ignore[arg-type]
    folder.results.write_text(json.dumps(line) + "\n", encoding="utf-8")


def write_logs(folder: RunFolder, rng: np.random.Generator, *, related: bool) -> None:
    """CSV logs in two versions, as of a run that was continued; validation and training in rows of their own."""
    header = ["epoch", "step", "train/plain_accuracy", "train/plain_loss"]
    header += ["train/related_accuracy", "train/related_loss"] * related + ["val/adjusted_balanced_accuracy"]
    for version, epochs in ((0, range(0, 12)), (1, range(10, 20))):
        path = folder.logs / "csv" / f"version_{version}" / "metrics.csv"
        path.parent.mkdir(parents=True)
        with path.open("w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, header)
            table.writeheader()
            for epoch in epochs:
                part = np.exp(-epoch / 6) + 0.02 * rng.random()
                row = {"train/plain_accuracy": 1 - 0.7 * part, "train/plain_loss": 2 * part}
                if related:
                    row |= {"train/related_accuracy": 1 - 0.8 * part, "train/related_loss": 2.2 * part}
                table.writerow({"epoch": epoch, "step": epoch, "val/adjusted_balanced_accuracy": 0.8 - 0.6 * part})
                table.writerow({"epoch": epoch, "step": epoch} | row)


def make_multi_label(root: Path, num_seeds: int = 3) -> Path:
    """A comparison on several labels per image: no predicted classes, no class table, nothing adjusted."""
    recipe = replace(RECIPES["image-list"], primary="mean_average_precision", num_seeds=num_seeds)
    plan = Plan(recipe, tuple(Arm(name, name, {}) for name in ("plain", "control", "related")), tuple(range(num_seeds)))
    root.mkdir(parents=True)
    write_plan(plan, root)
    target = np.random.default_rng(0).integers(0, 2, (20, 5))
    for seed in plan.seeds:
        for place, arm in enumerate(plan.arms):
            folder = RunFolder(plan.folder(root, arm, seed))
            folder.path.mkdir(parents=True)
            np.savez_compressed(folder.predictions, tau=0.0, counts=target.sum(0), target=target, index=np.arange(20))
            value = 0.6 + 0.01 * place + 0.002 * seed * place
            metrics = {"mean_average_precision": value, "many": value + 0.1, "few": value - 0.1}
            write_line(folder, metrics, plan, arm, seed)
    return root


@pytest.fixture(scope="session")
def comparison_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Makes comparison folders; see :func:`make_comparison`."""

    def make(**how: object) -> Path:
        return make_comparison(tmp_path_factory.mktemp("runs") / "made-up", **how)  # type: ignore[arg-type]

    return make


@pytest.fixture
def multi_label_folder(tmp_path: Path) -> Path:
    """A comparison on several labels per image."""
    return make_multi_label(tmp_path / "multi-label")


@pytest.fixture(scope="session")
def judged_folder(comparison_folder: Callable[..., Path]) -> Path:
    """A comparison with everything: kinds of neighbours, a tuning log, training curves, an awkward class name."""
    names = [*map(str, range(9)), "<script>alert(1)</script>"]
    return comparison_folder(class_names=names, kinds=("same-class",), tuned=True, logs=True)


@pytest.fixture(scope="session")
def comparison(judged_folder: Path) -> Comparison:
    """What :func:`judged_folder` says."""
    return judge(judged_folder)
