"""The report of a comparison: one HTML file that needs nothing else, the picture beside it, the numbers as data."""

import json
from collections.abc import Sequence
from pathlib import Path
from shlex import quote
from typing import Any

from setwise.judge import Comparison, Difference, Plan
from setwise.machine import at_home
from setwise.metrics import lower_is_better
from setwise.report.figures import comparison_figure, save_png, svg
from setwise.report.literature import reported_lines
from setwise.report.markup import Html, document, element, image, linked, section, table
from setwise.report.method import how_judged
from setwise.report.numbers import comparison_data
from setwise.report.parts import command, curves_part, fold, heat_table, recipe_part, verdict_part
from setwise.report.records import ClassRow, class_rows, confusion, run_notes, tuning_log
from setwise.report.terminal import kinds_of_neighbours
from setwise.report.wording import (
    ADJUSTED,
    P_LEGEND,
    direction,
    duration,
    interval,
    names_of,
    ordered,
    p_value,
    percent,
    points,
    selection_warning,
)
from setwise.run_folder import write_whole

__all__ = ["write_report"]

ARMS = ("plain", "control", "related")
MOST_CONFUSED = 20
"""Classes up to which the confusion fits on a page."""
LEVEL = 0.05


def write_report(comparison: Comparison, root: Path) -> Path:
    """Write ``report.html``, ``comparison.png`` and ``comparison.json`` into the folder of the comparison.

    Each file is replaced as a whole, so that an interrupted report leaves the former one.

    Args:
        comparison: what :func:`setwise.judge.judge` found in ``root``.
        root: folder of the comparison.

    Returns:
        The path of the HTML file.
    """
    root = at_home(root)
    save_png(comparison_figure(comparison), root / "comparison.png")
    data = json.dumps(comparison_data(comparison), indent=1, allow_nan=False)
    write_whole(root / "comparison.json", data + "\n")
    rows = class_rows(comparison.plan, root, adjusted=_adjusted(comparison))
    alt = f"Paired differences with intervals. {comparison.verdict.sentence}"
    sentence = f"{comparison.verdict.sentence} {selection_warning(comparison.plan.recipe)}".rstrip()
    page = document(
        f"{comparison.plan.recipe.name}: {comparison.verdict.word}",
        verdict_part("Comparison", comparison.plan.recipe.name, comparison.verdict.word, sentence),
        image("image/svg+xml", svg(comparison_figure(comparison, titled=False)), alt=alt),
        _metrics(comparison),
        section("How it was judged", element("ol", *(element("li", said) for said in how_judged(comparison)))),
        _kinds(comparison),
        _classes(comparison, rows),
        _confusion(comparison, rows, root),
        _tuning(root, comparison.plan.recipe.primary),
        curves_part(_folders(comparison, root), comparison.plan.recipe),
        _again(comparison, root),
    )
    path = root / "report.html"
    write_whole(path, page)
    return path


def _adjusted(comparison: Comparison) -> bool:
    return comparison.plan.recipe.primary.startswith(ADJUSTED)


def _folders(comparison: Comparison, root: Path) -> dict[str, list[Path]]:
    plan = comparison.plan
    return {arm.name: [plan.folder(root, arm, seed) for seed in plan.seeds] for arm in plan.arms}


def _metrics(comparison: Comparison) -> Html | None:
    metrics = ordered(comparison)
    names, seeds = names_of(metrics), len(comparison.plan.seeds)
    heads = ["metric", *ARMS, "related - control", "95 % interval", "p", "related - plain", "95 % interval"]
    rows = []
    for metric in metrics:
        first, second = (comparison.find(metric, "related", against) for against in ("control", "plain"))
        means = [percent(comparison.means.get(arm, {}).get(metric, (None, None))[0]) for arm in ARMS]
        cells = [*_estimate(first), "" if first is None else p_value(first.p_holm), *_estimate(second)]
        mark = " (primary)" if metric == metrics[0] else ""
        rows.append([names(metric) + mark, *means, *cells])
    said = f"Percent, mean over {seeds} seed{'s' * (seeds > 1)}; differences in percentage points. {P_LEGEND} "
    said += direction(metrics)
    return section(
        "Metrics",
        table(heads, rows, marked=[0]),
        element("p", said.rstrip(), class_="faint"),
        *(element("p", linked(line), class_="faint") for line in reported_lines(comparison.plan)),
    )


def _estimate(found: Difference | None) -> tuple[str, str]:
    return ("", "") if found is None else (points(found.interval.estimate), interval(found.interval))


def _kinds(comparison: Comparison) -> Html | None:
    kinds = kinds_of_neighbours(comparison)
    if not kinds:
        return None
    primary = comparison.plan.recipe.primary
    rows = [
        [
            f"{kind} (primary)" if found is comparison.primary else kind,
            percent(comparison.means[arm.name][primary][0]),
            *_estimate(found),
            p_value(found.p_holm),
        ]
        for arm, kind, found in kinds
    ]
    heads = ["a sample may attend to", names_of([primary])(primary), "- control", "95 % interval", "p"]
    return section("Who is learned from", table(heads, rows, marked=[0]), element("p", P_LEGEND, class_="faint"))


def _classes(comparison: Comparison, rows: Sequence[ClassRow]) -> Html | None:
    if not rows:
        return None
    found = {difference.metric: difference for difference in comparison.classes}
    grouped = all(row.group for row in rows)
    heads = ["class", "training images", *(["group"] if grouped else []), *ARMS]
    heads += ["related - control", "95 % interval", "p (Holm)"]
    cells = []
    for row in rows:
        difference = found.get(row.name)
        tail = [*_estimate(difference), "" if difference is None else p_value(difference.p_holm)]
        cells.append([row.name, _images(row), *([row.group] if grouped else []), *_accuracies(row), *tail])
    kind = "adjusted" if _adjusted(comparison) else "raw"
    said = f"Accuracy in percent, {kind}, mean over seeds; classes with many training images first. "
    said += _significant(comparison)
    if any(row.train_images[0] != row.train_images[1] for row in rows):
        said += " Training images differ by seed: a class is large in some runs and small in others."
    return section("Classes", element("p", said, class_="faint"), fold(rows, table(heads, cells), "all classes"))


def _images(row: ClassRow) -> str:
    low, high = row.train_images
    return str(low) if low == high else f"{low} to {high}"


def _accuracies(row: ClassRow) -> list[str]:
    return [percent(row.accuracy.get(arm)) for arm in ARMS]


def _significant(comparison: Comparison) -> str:
    """How many classes differ after the correction; nothing for one seed."""
    if len(comparison.plan.seeds) == 1:
        return ""
    clear = [d.interval.estimate for d in comparison.classes if d.p_holm < LEVEL]
    better, worse = sum(e > 0 for e in clear), sum(e < 0 for e in clear)
    told = f"Of {len(comparison.classes)} classes {better} are better and {worse} worse with p (Holm) below {LEVEL}"
    return f"{told}; classes are corrected among themselves."


def _confusion(comparison: Comparison, rows: Sequence[ClassRow], root: Path) -> Html | None:
    if not 0 < len(rows) <= MOST_CONFUSED:
        return None
    folders = _folders(comparison, root)
    related, control = (confusion(folders[arm], adjusted=_adjusted(comparison)) for arm in ("related", "control"))
    if related is None or control is None:
        return None
    order = [row.index for row in rows]
    difference = (related - control)[order][:, order]
    said = "Of each true class (row), percentage points more (orange) or less (blue) that are predicted as each class."
    return section(
        "Confusion, related - control",
        element("p", said, class_="faint"),
        heat_table(difference, [row.name for row in rows], difference=True),
    )


def _tuning(root: Path, primary: str) -> Html | None:
    log = tuning_log(root)
    if not log:
        return None
    sign = -1 if lower_is_better(primary) else 1
    best: dict[str, int] = {}  # arm -> first of its lines with the best value
    for number, line in enumerate(log):
        if sign * line["validation"] > sign * log[best.setdefault(line["arm"], number)]["validation"]:
            best[line["arm"]] = number
    settings = [", ".join(f"{name} {value}" for name, value in line["setting"].items()) for line in log]
    rows = [[line["arm"], said, percent(line["validation"])] for line, said in zip(log, settings, strict=True)]
    shown = table(["arm", "setting", "primary metric on validation"], rows, marked=best.values())
    said = "Every arm tried the same settings, with a seed that no run of the comparison has; marked: what it took."
    return section("Tuning", element("p", said, class_="faint"), fold(rows, shown, "all settings"))


def _again(comparison: Comparison, root: Path) -> Html | None:
    plan, recipe = comparison.plan, comparison.plan.recipe
    facts = {
        "seeds": f"{plan.seeds[0]} to {plan.seeds[-1]}" if len(plan.seeds) > 1 else str(plan.seeds[0]),
        "time": f"{duration(comparison.seconds)} of training, all runs together",
        "versions": ", ".join(f"{name} {version}" for name, version in comparison.versions.items()),
        "commit of setwise": comparison.commit or "none (installed from a package)",
    }
    return recipe_part(root / "recipe.yaml", facts, _command(comparison), recipe.paper, notes=_notes(plan, root))


def _notes(plan: Plan, root: Path) -> list[str]:
    """What every run was told, once, and what some were told (of steps left out, say) with their names."""
    of_run = {(arm.name, seed): run_notes(plan.folder(root, arm, seed)) for arm in plan.arms for seed in plan.seeds}
    common = set.intersection(*map(set, of_run.values()))
    own = [f"{arm}, seed {seed}: {n}" for (arm, seed), notes in of_run.items() for n in notes if n not in common]
    return [*(note for note in next(iter(of_run.values())) if note in common), *own]


def _written(value: Any) -> str:
    """A value as --tune reads it."""
    return value if isinstance(value, str) else json.dumps(value)


def _command(comparison: Comparison) -> str:
    """The command line of this comparison."""
    plan = comparison.plan
    kinds = [kind for _, kind, _ in kinds_of_neighbours(comparison)]
    words = [command("compare", plan.recipe, skip=["relation.attend"] if kinds else [])]
    if kinds:
        words += ["--attend", *kinds]
    if plan.tune:
        words += ["--tune", *(quote(f"{name}={','.join(map(_written, v))}") for name, v in plan.tune.items())]
    return " ".join(words)
