import io
import re
from dataclasses import replace

import pytest
from rich.console import Console

from setwise.judge import Arm, judge
from setwise.recipes import RECIPES
from setwise.report import comparison_table, run_table
from setwise.report.literature import departures, reported_lines
from setwise.report.numbers import comparison_data
from setwise.report.wording import P_LEGEND, interval, p_value, percent, points


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
    assert any(line.startswith("all (primary)") for line in text.splitlines())


@pytest.mark.parametrize("width", [80, 120])
def test_the_legend_says_which_p_values_are_corrected_under_both_tables(comparison, width):
    text = " ".join(printed(comparison_table(comparison), width).split())
    assert text.count(P_LEGEND) == 2
    assert "p (Holm)" not in text
    assert text.count("Of calibration error less is better.") == 1


def test_reported_numbers_stand_with_their_source(comparison_folder):
    recipe = RECIPES["cifar100-lt"]
    found = judge(comparison_folder(recipe=recipe, num_seeds=2, images_per_class=3))
    text = " ".join(printed(comparison_table(found), 100).split())
    for number in recipe.reported:
        assert f"reported: {number.metric}, {number.variant}: {100 * number.value:.1f} ({number.source})" in text


@pytest.mark.parametrize(
    ("changes", "fields"),
    [
        ({"num_seeds": 9, "seed": 3, "data.root": "/data", "data.num_workers": 4, "data.cache": "files"}, []),
        ({"trainer.accelerator": "cpu", "trainer.logger": ("csv",), "trainer.val_every": 5}, []),
        ({"relation.attend": "same-class", "trainer.checkpoint_every": 9, "ran": ()}, []),
        (
            {"relation.official_replace": True, "relation.num_heads": 8},
            ["relation.num_heads", "relation.official_replace"],
        ),
        ({"trainer.epochs": 30, "optimizer.lr": 0.2}, ["optimizer.lr", "trainer.epochs"]),
        ({"primary": "accuracy", "trainer.select": "best", "data.val_fraction": 0.02}, []),
        ({"data.train_list": "lists/train.txt", "data.val_list": "lists/val.txt", "data.test_list": "lists/t.txt"}, []),
        ({"select_on": "test", "trainer.select": "best", "primary": "accuracy"}, []),
        ({"trainer.select": "early-stopping", "data.val_fraction": 0.2}, ["data.val_fraction", "trainer.select"]),
    ],
)
def test_reported_numbers_stand_only_beside_the_recipe_they_belong_to(comparison, changes, fields):
    plan = replace(comparison.plan, recipe=RECIPES["cifar100-lt"].override(changes))
    found = replace(comparison, plan=plan)
    assert departures(plan) == fields
    if fields:
        assert reported_lines(found.plan) == [
            f"reported numbers are left out: this run differs from the recipe in {', '.join(fields)}"
        ]
        assert comparison_data(found)["reported"] == []
    else:
        assert len(reported_lines(found.plan)) == len(RECIPES["cifar100-lt"].reported)
        assert len(comparison_data(found)["reported"]) == len(RECIPES["cifar100-lt"].reported)


def test_reported_numbers_do_not_stand_beside_tuned_arms(comparison):
    arms = (Arm("plain", "plain", {"optimizer.lr": 0.1}), Arm("related", "related", {"optimizer.lr": 0.2}))
    plan = replace(comparison.plan, recipe=RECIPES["cifar100-lt"], arms=arms)
    assert departures(plan) == ["optimizer.lr"]
    as_it_was = (Arm("related", "related", {"relation.attend": "same-class", "optimizer.milestones": ()}),)
    assert departures(replace(plan, arms=as_it_was)) == []


def test_reported_numbers_do_not_stand_beside_a_recipe_of_another_name(comparison):
    plan = replace(comparison.plan, recipe=replace(RECIPES["cifar100-lt"], name="mine"))
    (line,) = reported_lines(plan)
    assert line == "reported numbers are left out: no recipe of setwise has the name mine"
    own = replace(plan, recipe=replace(plan.recipe, reported=()))
    assert reported_lines(own) == []


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
