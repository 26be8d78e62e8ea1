"""The report of a single run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from setwise.recipes import yaml_file
from setwise.report.literature import reported_of_variant
from setwise.report.markup import Html, document, element, linked, section, table
from setwise.report.parts import command, curves_part, fold, heat_table, recipe_part, verdict_part
from setwise.report.records import confusion, run_notes
from setwise.report.wording import (
    ADJUSTED,
    duration,
    names_of,
    percent,
    selecting_part,
    selection_warning,
)
from setwise.run_folder import RunFolder, read_classes, read_lines, write_whole

__all__ = ["write_run_report"]

MOST_CONFUSED = 30
"""Classes up to which the confusion fits on a page."""


def write_run_report(root: Path) -> Path:
    """Write ``report.html`` into a run folder: metrics, classes, confusion, curves, recipe.

    Raises:
        MissingFile: if the folder holds no finished run.
    """
    folder = RunFolder(root)
    line = read_lines(folder.require(folder.results, "result"))[-1]
    recipe = yaml_file.read(folder.require(folder.recipe, "recipe"))
    primary, classes = line["primary"], read_classes(folder.path)
    over_episodes = line["metrics"].get(f"{primary}_interval")
    half = "" if over_episodes is None else f" ± {percent(over_episodes)}"
    value = f"{percent(line['metrics'].get(primary))}{half} % {names_of(line['metrics'])(primary)}."
    value = f"{value} {selection_warning(recipe)}".rstrip()
    page = document(
        f"{recipe.name}, {line['variant']}, seed {line['seed']}",
        verdict_part("Run", f"{recipe.name}, {line['variant']}, seed {line['seed']}", "", value),
        _metrics(line["metrics"], primary, selecting_part(recipe), reported_of_variant(recipe)),
        _classes(classes),
        _confusion(folder, classes, adjusted=primary.startswith(ADJUSTED)),
        curves_part({line["variant"]: [folder.path]}, recipe),
        recipe_part(folder.recipe, _facts(line), command("train", recipe), recipe.paper, notes=run_notes(folder.path)),
    )
    path = folder.path / "report.html"
    write_whole(path, page)
    return path


def _metrics(metrics: dict[str, float], primary: str, part: str, reported: Sequence[str]) -> Html | None:
    raw = list(dict.fromkeys(metric.removeprefix(ADJUSTED) for metric in metrics))
    both = any(metric.startswith(ADJUSTED) for metric in metrics)
    rows = [
        [names_of([])(metric), percent(metrics.get(metric)), *([percent(metrics.get(ADJUSTED + metric))] * both)]
        for metric in raw
    ]
    heads = ["metric", "raw", "adjusted"] if both else ["metric", "percent"]
    said = "Percent of the test part."
    if any(metric.endswith("_interval") for metric in metrics):
        said = "Percent, mean over the test episodes. The interval is over episodes of this one trained network."
    if both:
        said += f" Adjusted: class bias taken out by logit adjustment, at the strength that the {part} part prefers."
    name = primary.removeprefix(ADJUSTED)
    shown = table(heads, rows, marked=[raw.index(name)] if name in raw else [])
    literature = (element("p", linked(line), class_="faint") for line in reported)
    return section("Metrics", shown, element("p", said, class_="faint"), *literature)


def _classes(classes: list[dict[str, Any]]) -> Html | None:
    if not classes:
        return None
    columns = ("accuracy", "adjusted_accuracy")
    rows = [
        [row["class"], str(row["train_images"]), row["group"], *(percent(row[column]) for column in columns)]
        for row in sorted(classes, key=lambda row: -row["train_images"])
    ]
    shown = table(["class", "training images", "group", "accuracy, raw", "accuracy, adjusted"], rows)
    return section("Classes", fold(rows, shown, "all classes"))


def _confusion(folder: RunFolder, classes: list[dict[str, Any]], *, adjusted: bool) -> Html | None:
    if not 0 < len(classes) <= MOST_CONFUSED or not folder.predictions.is_file():
        return None
    matrix = confusion([folder.path], adjusted=adjusted)
    if matrix is None:
        return None
    order = sorted(range(len(classes)), key=lambda k: -classes[k]["train_images"])
    kind = "adjusted" if adjusted else "raw"
    return section(
        "Confusion",
        element("p", f"Percent of each true class (row) predicted as each class, {kind}.", class_="faint"),
        heat_table(matrix[order][:, order], [classes[k]["class"] for k in order], difference=False),
    )


def _facts(line: dict[str, Any]) -> dict[str, str]:
    return {
        "seed": str(line["seed"]),
        "time": duration(line["seconds"]),
        "versions": ", ".join(f"{name} {version}" for name, version in line["versions"].items()),
        "commit of setwise": line["commit"] or "none (installed from a package)",
    }
