"""Tables for the terminal; wide ones wrap their words and never cut a number."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from setwise.judge import Arm, Comparison, Difference
from setwise.report.literature import reported_lines
from setwise.report.wording import (
    ADJUSTED,
    P_LEGEND,
    direction,
    interval,
    names_of,
    ordered,
    p_value,
    percent,
    points,
    selecting_part,
    selection_warning,
)

__all__ = ["comparison_table", "kinds_of_neighbours", "run_table"]

VERDICT_STYLES = {"gain": "bold green", "loss": "bold red"}
OTHER_VERDICT = "bold yellow"
MARK = "▸"
ROOM = 104
"""Columns of a terminal from which a difference and its interval fit on one line."""
LISTED = 10
"""Classes shown from either end of a long table."""


def comparison_table(comparison: Comparison) -> Group:
    """The verdict, every metric with its paired differences, kinds of neighbours, and what the literature reports."""
    verdict = comparison.verdict
    word, _, numbers = verdict.sentence.partition(":")
    head = Text.assemble((word, VERDICT_STYLES.get(verdict.word, OTHER_VERDICT)), f":{numbers}")
    parts: list[RenderableType] = [head, Text(), _MetricTable(comparison), _legend(comparison)]
    if warning := selection_warning(comparison.plan.recipe):
        parts.insert(1, Text(warning, style="bold red"))
    if kinds := kinds_of_neighbours(comparison):
        parts += [Text(), _kinds_table(comparison, kinds), Text(P_LEGEND, style="dim")]
    parts += [Text(line) for line in reported_lines(comparison.plan)]
    return Group(*parts)


class _MetricTable:
    """Differences and their intervals stand side by side where there is room, else one above the other."""

    def __init__(self, comparison: Comparison) -> None:
        self.comparison = comparison

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield _metric_table(self.comparison, narrow=options.max_width < ROOM)


def _metric_table(comparison: Comparison, *, narrow: bool) -> Table:
    names, primary = names_of(ordered(comparison)), comparison.plan.recipe.primary
    table = _table()
    table.add_column("metric", overflow="fold")
    for head in ("plain", "control", "related", "related -\ncontrol [95 %]", "p", "related -\nplain [95 %]"):
        table.add_column(Text(head), justify="right", no_wrap=True)
    for metric in ordered(comparison):
        first = comparison.find(metric, "related", "control")
        table.add_row(
            Text(f"{MARK} {names(metric)} (primary)" if metric == primary else names(metric)),
            *(Text(percent(_mean(comparison, arm, metric))) for arm in ("plain", "control", "related")),
            Text(_with_interval(first, narrow=narrow)),
            Text(_p(first)),
            Text(_with_interval(comparison.find(metric, "related", "plain"), narrow=narrow)),
            style="bold" if metric == primary else "",
        )
    return table


def _legend(comparison: Comparison) -> Text:
    seeds = len(comparison.plan.seeds)
    lines = [
        f"Percent, mean over {seeds} seed{'s' * (seeds > 1)}; differences in percentage points.",
        P_LEGEND,
    ]
    if any(metric.startswith(ADJUSTED) for metric in ordered(comparison)):
        part = selecting_part(comparison.plan.recipe)
        lines.append(f"adjusted: class bias taken out first, at the strength that each arm's {part} part prefers.")
    lines.append(direction(ordered(comparison)))
    return Text(" ".join(lines).rstrip(), style="dim")


def kinds_of_neighbours(comparison: Comparison) -> list[tuple[Arm, str, Difference]]:
    """Arm, whom its samples attend to, and its effect against the control on the primary metric.

    Empty where the comparison had one kind alone.
    """
    recipe = comparison.plan.recipe
    found = []
    for arm in comparison.plan.arms:
        difference = comparison.find(recipe.primary, arm.name, "control")
        if arm.variant == "related" and difference is not None:
            found.append((arm, str(arm.settings.get("relation.attend", recipe.relation.attend)), difference))
    return found if len(found) > 1 else []


def _kinds_table(comparison: Comparison, kinds: Sequence[tuple[Arm, str, Difference]]) -> Table:
    primary = comparison.plan.recipe.primary
    table = _table()
    table.add_column("may attend to", min_width=11)
    table.add_column(names_of([primary])(primary), justify="right")
    table.add_column(Text("- control [95 %]"), justify="right", no_wrap=True)
    table.add_column("p", justify="right", no_wrap=True)
    for arm, kind, difference in kinds:
        mean = percent(_mean(comparison, arm.name, primary))
        told = f"{kind} (primary)" if difference is comparison.primary else kind
        table.add_row(Text(told), Text(mean), Text(_with_interval(difference)), Text(_p(difference)))
    return table


def run_table(metrics: Mapping[str, float], classes: Sequence[Mapping[str, Any]]) -> Group:
    """Metrics of one run and its classes, of more than twenty the ten worst and the ten best.

    Args:
        metrics: name -> fraction, as in ``results.jsonl``.
        classes: rows of the class table; none for several labels per image.
    """
    parts: list[RenderableType] = [_run_metrics(metrics)]
    if classes:
        parts += [Text(), _class_table(classes)]
    return Group(*parts)


def _run_metrics(metrics: Mapping[str, float]) -> Table:
    raw = list(dict.fromkeys(metric.removeprefix(ADJUSTED) for metric in metrics))
    both = any(metric.startswith(ADJUSTED) for metric in metrics)
    table = _table()
    table.add_column("metric")
    for head in ("raw", "adjusted") if both else ("percent",):
        table.add_column(head, justify="right")
    for metric in raw:
        values = [metrics.get(metric)] + [metrics.get(ADJUSTED + metric)] * both
        table.add_row(Text(names_of([])(metric)), *(Text(percent(value)) for value in values))
    return table


def _class_table(classes: Sequence[Mapping[str, Any]]) -> Table:
    key = "adjusted_accuracy" if "adjusted_accuracy" in classes[0] else "accuracy"
    tested = sorted((row for row in classes if not math.isnan(float(row[key]))), key=lambda row: float(row[key]))
    long, cut = len(classes) > 2 * LISTED, len(tested) > 2 * LISTED
    shown: Iterable[Mapping[str, Any]] = tested[:LISTED] + tested[-LISTED:] if cut else tested if long else classes
    table = _table()
    table.add_column("class", overflow="fold")
    for head in ("training images", "group", "accuracy", "adjusted"):
        table.add_column(head, justify="left" if head == "group" else "right", min_width=5)
    for number, row in enumerate(shown):
        if cut and number == LISTED:
            table.add_row(Text(f"... {len(tested) - 2 * LISTED} classes between ...", style="dim"))
        values = (percent(float(row[name])) if name in row else "" for name in ("accuracy", "adjusted_accuracy"))
        table.add_row(*(Text(str(value)) for value in (row["class"], row["train_images"], row["group"], *values)))
    return table


def _table() -> Table:
    return Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)


def _mean(comparison: Comparison, arm: str, metric: str) -> float | None:
    found = comparison.means.get(arm, {}).get(metric)
    return None if found is None else found[0]


def _with_interval(found: Difference | None, *, narrow: bool = False) -> str:
    if found is None:
        return ""
    between = "\n" if narrow else " "
    return f"{points(found.interval.estimate)}{between}{interval(found.interval)}"


def _p(found: Difference | None) -> str:
    return "" if found is None else p_value(found.p_holm)
