import io
import re

import pytest
from rich.console import Console

from setwise.judge import judge
from setwise.report import comparison_table, run_table
from setwise.report.wording import interval, p_value, percent, points


def printed(renderable, width):
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(renderable)
    return console.file.getvalue()


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_holds_every_number_whole_at_any_usual_width(comparison, width):
    text = printed(comparison_table(comparison), width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    for found in (comparison.primary, *comparison.others):
        if (found.arm, found.against) in (("related", "control"), ("related", "plain")):
            for number in (points(found.interval.estimate), interval(found.interval)):
                assert number in text
    for arm in ("plain", "control", "related"):
        for mean, _ in comparison.means[arm].values():
            assert percent(mean) in text


def test_the_verdict_comes_first_and_the_primary_metric_leads_the_table(comparison):
    lines = printed(comparison_table(comparison), 120).splitlines()
    assert lines[0].startswith(comparison.verdict.sentence[:60])
    rows = [line for line in lines if re.match(r".*\d\.\d.*\[", line)]
    assert rows[0].startswith("▸ balanced accuracy, adjusted (primary)")
    assert p_value(comparison.primary.p_holm) in rows[0]


def test_kinds_of_neighbours_have_a_table_of_their_own(comparison):
    text = printed(comparison_table(comparison), 120)
    kind = comparison.find(comparison.primary.metric, "related-same-class", "control")
    row = next(line for line in text.splitlines() if line.startswith("same-class"))
    assert interval(kind.interval) in row
    assert p_value(kind.p_holm) in row


def test_reported_numbers_stand_with_their_source(comparison_folder):
    from setwise.recipes import RECIPES

    recipe = RECIPES["cifar100-lt"]
    found = judge(comparison_folder(recipe=recipe, num_seeds=2, images_per_class=3))
    text = " ".join(printed(comparison_table(found), 100).split())
    for number in recipe.reported:
        assert f"reported: {number.metric}, {number.variant}: {100 * number.value:.1f} ({number.source})" in text


def test_one_seed_says_so_instead_of_an_interval(comparison_folder):
    text = printed(comparison_table(judge(comparison_folder(num_seeds=1))), 120)
    assert text.startswith("Undecided")
    assert "one seed" in text
    assert "nan" not in text.lower()


def test_several_labels_have_no_adjusted_metrics(multi_label_folder):
    text = printed(comparison_table(judge(multi_label_folder)), 120)
    assert "mean average precision (primary)" in text
    assert "adjusted" not in text


def test_a_run_of_many_classes_shows_its_ten_worst_and_ten_best():
    classes = [
        {"class": f"[red]class {k}", "train_images": 9, "group": "few", "accuracy": 0.5, "adjusted_accuracy": k / 100}
        for k in range(50)
    ]
    text = printed(run_table({"accuracy": 0.5, "adjusted_accuracy": 0.25}, classes), 80)
    shown = [int(number) for number in re.findall(r"\[red\]class (\d+)", text)]
    assert shown == [*range(10), *range(40, 50)]
    assert "30 classes between" in text


def test_a_class_without_test_images_is_neither_worst_nor_best():
    row = {"class": "a", "train_images": 9, "group": "few", "accuracy": 0.5, "adjusted_accuracy": 0.5}
    untested = {"accuracy": float("nan"), "adjusted_accuracy": float("nan")}
    text = printed(run_table({"accuracy": 0.5}, [row, row | untested]), 80)
    assert "nan" not in text
    assert text.count("–") == 2
