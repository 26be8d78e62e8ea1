"""What the pages show beyond a :class:`~setwise.judge.Comparison`, read from the files that the runs left.

Letters: ``K`` classes.
"""

import csv
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from setwise.judge import Plan
from setwise.run_folder import RunFolder, read_classes, read_lines

__all__ = ["ClassRow", "Curves", "class_rows", "confusion", "run_notes", "training_curves", "tuning_log"]

Curves = dict[str, dict[int, float]]
"""Quantity -> epoch -> value."""


@dataclass(frozen=True)
class ClassRow:
    """One class over all seeds."""

    name: str
    index: int
    train_images: tuple[int, int]
    """Fewest and most over the seeds: which class is large may differ by seed."""
    mean_train_images: float
    group: str
    """many, medium, few; empty where it differs by seed."""
    accuracy: dict[str, float]
    """Arm -> mean over seeds, NaN for a class without test images."""


def class_rows(plan: Plan, root: Path, *, adjusted: bool) -> list[ClassRow]:
    """Every class with its mean accuracy in each arm, from many training images to few."""
    tables = {arm.name: [read_classes(plan.folder(root, arm, seed)) for seed in plan.seeds] for arm in plan.arms}
    first = next(iter(tables.values()))
    if any(len(table) != len(first[0]) for arm in tables.values() for table in arm):
        return []
    column = "adjusted_accuracy" if adjusted else "accuracy"
    rows = []
    for k, row in enumerate(first[0]):
        counts = [table[k]["train_images"] for table in first]
        groups = {table[k]["group"] for table in first}
        accuracy = {arm: float(np.mean([table[k][column] for table in seeds])) for arm, seeds in tables.items()}
        rows.append(
            ClassRow(
                name=row["class"],
                index=k,
                train_images=(min(counts), max(counts)),
                mean_train_images=sum(counts) / len(counts),
                group=groups.pop() if len(groups) == 1 else "",
                accuracy=accuracy,
            )
        )
    return sorted(rows, key=lambda row: -row.mean_train_images)


def confusion(folders: Iterable[Path], *, adjusted: bool) -> np.ndarray | None:
    """Part of each true class (row) that is predicted as each class (column), mean over runs ``[K, K]``.

    Rows of classes without test images are NaN. None where the runs hold no predicted classes (several labels per
    image).
    """
    matrices = []
    for path in folders:
        with np.load(RunFolder(path).predictions, allow_pickle=False) as saved:
            if "predicted" not in saved.files:
                return None
            num_classes = len(saved["counts"])
            tau = float(saved["tau"]) if adjusted else 0.0
            predicted = saved["predicted"][np.abs(saved["taus"] - tau).argmin()].astype(np.int64)
            pairs = np.bincount(saved["target"] * num_classes + predicted, minlength=num_classes**2)
        counts = pairs.reshape(num_classes, num_classes).astype(float)
        images = counts.sum(1, keepdims=True)
        matrices.append(np.divide(counts, images, out=np.full_like(counts, np.nan), where=images > 0))
    return np.mean(matrices, axis=0) if matrices else None


def run_notes(folder: Path) -> list[str]:
    """What the data had to say in a run, in sentences; none where it said nothing."""
    path = RunFolder(folder).environment
    return list(json.loads(path.read_text(encoding="utf-8")).get("notes", [])) if path.is_file() else []


def tuning_log(root: Path) -> list[dict[str, Any]]:
    """What every arm tried on validation; empty where nothing was tuned."""
    path = root / "tuning.jsonl"
    return read_lines(path) if path.is_file() else []


def training_curves(folders: Sequence[Path]) -> Curves:
    """Curves of Lightning's CSV logs, mean over the runs that reached an epoch; empty without such logs."""
    values: dict[str, dict[int, list[float]]] = {}
    for path in folders:
        for name, curve in _run_curves(RunFolder(path)).items():
            for epoch, value in curve.items():
                values.setdefault(name, {}).setdefault(epoch, []).append(value)
    return {name: {epoch: float(np.mean(curve[epoch])) for epoch in sorted(curve)} for name, curve in values.items()}


def _run_curves(folder: RunFolder) -> Curves:
    """One run's; of a run that was continued, the later log of an epoch counts."""
    logs = sorted((folder.logs / "csv").glob("version_*/metrics.csv"), key=lambda path: _number(path.parent.name))
    curves: Curves = {}
    for log in logs:
        with log.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                for name, text in row.items():
                    value = _float(text)
                    if name and "/" in name and row.get("epoch") and math.isfinite(value):
                        curves.setdefault(name, {})[int(float(row["epoch"]))] = value
    return curves


def _number(version: str) -> int:
    digits = version.removeprefix("version_")
    return int(digits) if digits.isdigit() else -1


def _float(text: object) -> float:
    try:
        return float(str(text))
    except ValueError:
        return math.nan
