import io
import json
import math
import shlex
import shutil
from dataclasses import dataclass, replace

import pytest
from html_pages import Page, is_self_contained
from rich.console import Console

from setwise.cli.options import parse_with_recipe
from setwise.errors import MissingFile, RunError
from setwise.judge import judge
from setwise.metrics import holm
from setwise.recipes import RECIPES
from setwise.report import comparison_page, comparison_table, selection_warning, write_report, write_run_report
from setwise.report.method import how_judged
from setwise.report.parts import command
from setwise.report.wording import P_LEGEND, interval, percent, points
from setwise.run_folder import RunFolder

ALL_PARTS = ["Metrics", "How it was judged", "Who is learned from", "Classes", "Confusion, related - control"]
ALL_PARTS += ["Tuning", "Training", "Make it again"]


@pytest.fixture(scope="module")
def html(comparison, judged_folder):
    return write_report(comparison, judged_folder).read_text(encoding="utf-8")


def test_the_page_is_well_formed_and_needs_nothing_outside_itself(html, judged_folder):
    page = Page(html)
    assert is_self_contained(page)
    assert page.headings == ALL_PARTS
    assert str(judged_folder) not in html
    assert {tag for tag, _ in page.addresses} == {"a", "img"}


def test_weights_that_the_test_part_chose_are_warned_of_wherever_their_numbers_stand(comparison):
    chosen = {"trainer.select": "best", "select_on": "test"}
    other = replace(comparison, plan=replace(comparison.plan, recipe=comparison.plan.recipe.override(chosen)))
    told = "weights and logit adjustment were selected on the test part, so every number of it is too good"
    assert told in selection_warning(other.plan.recipe)
    assert not selection_warning(comparison.plan.recipe)
    staged = RECIPES["cifar100-lt-tau"].override({"select_on": "test", "before.options": {"trainer.select": "best"}})
    assert "weights, class weights' exponent and logit adjustment were selected" in selection_warning(staged)
    for shown, warned in ((comparison, False), (other, True)):
        console = Console(width=120, file=io.StringIO())
        console.print(comparison_table(shown))
        assert (told in console.file.getvalue()) is warned
        points_told = " ".join(how_judged(shown))
        assert ("were selected on the test part" in points_told) is warned
        assert ("the test part chooses nothing" in points_told) is not warned


def test_a_class_name_cannot_become_markup(html):
    assert "<script" not in html
    assert any(row and row[0] == "<script>alert(1)</script>" for row in Page(html).rows)


def test_verdict_and_primary_numbers_are_those_of_the_comparison(html, comparison):
    page = Page(html)
    assert comparison.verdict.sentence in page.text
    row = next(row for row in page.rows if row and row[0] == "balanced accuracy, adjusted (primary)")
    means = [percent(comparison.means[arm]["adjusted_balanced_accuracy"][0]) for arm in ("plain", "control", "related")]
    found = comparison.primary.interval
    assert row[1:4] == means
    assert row[4:6] == [points(found.estimate), interval(found)]


def test_p_values_are_headed_by_what_they_are(html):
    page = Page(html)
    heads = {row[0]: row for row in page.rows if row[0] in ("metric", "a sample may attend to", "class")}
    assert [heads[first].count("p") for first in ("metric", "a sample may attend to", "class")] == [1, 1, 0]
    assert "p (Holm)" in heads["class"]  # where all are corrected
    assert page.text.count(P_LEGEND) == 2
    assert any(row[0] == "all (primary)" for row in page.rows)


def test_classes_are_a_family_of_their_own(comparison, html):
    own = holm({found.metric: found.interval.p for found in comparison.classes})
    assert {found.metric: found.p_holm for found in comparison.classes} == own
    others = holm({str(number): found.interval.p for number, found in enumerate(comparison.others)})
    assert [found.p_holm for found in comparison.others] == list(others.values())
    assert "classes are corrected among themselves" in html


def test_the_method_says_that_the_control_has_no_dropout_and_untrained_queries_and_keys(comparison):
    (said,) = (sentence for sentence in how_judged(comparison) if sentence.startswith("The control"))
    assert "no dropout" in said
    assert "query and key weights are not trained" in said
    assert "one weight of one" in said


def test_a_primary_of_which_less_is_better_is_judged_and_told_the_right_way_round(comparison_folder):
    recipe = replace(RECIPES["digits-lt"], primary="adjusted_ece")
    root = comparison_folder(num_seeds=3, recipe=recipe, tuned=True)
    for arm, shift in (("control", 0.1), ("related", 0.05)):
        for seed in range(3):
            path = root / "runs" / arm / f"seed-{seed}" / "results.jsonl"
            line = json.loads(path.read_text(encoding="utf-8"))
            line["metrics"]["adjusted_ece"] = shift + 0.001 * seed * (arm == "related")
            path.write_text(json.dumps(line) + "\n", encoding="utf-8")
    for seed in range(3):  # all else is equal
        control, related = (root / "runs" / arm / f"seed-{seed}" / "predictions.npz" for arm in ("control", "related"))
        shutil.copy(control, related)
    log = [
        {"arm": "related", "setting": {"optimizer.lr": lr}, "validation": value} for lr, value in ((1, 0.3), (2, 0.1))
    ]
    (root / "tuning.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log), encoding="utf-8")
    found = judge(root)
    assert found.primary.interval.estimate == pytest.approx(-0.049)
    assert found.verdict.word == "gain"
    assert found.verdict.sentence.startswith("Gain: -4.9 points")
    text = write_report(found, root).read_text(encoding="utf-8")
    assert "lies below zero (less is better)" in Page(text).text
    assert '<tr class="primary"><th scope="row">related</th><td>optimizer.lr 2</td>' in text


NOTES = ("Of 3 images in b none was readable.", "<b> is the test part.")


def test_what_the_data_had_to_say_stands_with_the_recipe(comparison_folder, html):
    root = comparison_folder(num_seeds=2, images_per_class=4, notes=NOTES)
    for path in (write_report(judge(root), root), write_run_report(root / "runs" / "related" / "seed-1")):
        page = Page(path.read_text(encoding="utf-8"))
        told = page.text[page.text.index("Make it again") :]
        assert "What the data had to say:" + "".join(NOTES) in told
    assert "What the data had to say" not in html


def test_classes_run_from_many_to_few_with_their_differences(html, comparison):
    rows = [row for row in Page(html).rows if len(row) == 9 and row[2] in ("many", "medium", "few")]
    assert len(rows) == 10
    images = [int(row[1]) for row in rows]
    assert images == sorted(images, reverse=True)
    differences = {found.metric: found.interval for found in comparison.classes}
    for row in rows:
        assert row[7] == interval(differences[row[0]])


def test_what_single_runs_had_to_say_stands_with_their_names(comparison_folder):
    root = comparison_folder(num_seeds=2, images_per_class=3, notes=("a tenth is held out",))
    run = RunFolder(judge(root).plan.folder(root, judge(root).plan.arms[2], 1))
    run.environment.write_text(json.dumps({"notes": ["a tenth is held out", "3 steps were left out"]}))
    page = write_report(judge(root), root).read_text(encoding="utf-8")
    assert page.count("a tenth is held out") == 1
    assert "related, seed 1: 3 steps were left out" in page


def test_runs_of_two_versions_are_all_named_and_another_primary_metric_is_refused(comparison_folder):
    root = comparison_folder(num_seeds=2, images_per_class=3)
    plan = judge(root).plan
    results = RunFolder(plan.folder(root, plan.arms[1], 1)).results
    line = json.loads(results.read_text())
    results.write_text(json.dumps(line | {"commit": "abc", "versions": line["versions"] | {"torch": "9.9"}}) + "\n")
    found = judge(root)
    assert found.commit is not None
    assert found.commit.endswith("abc")
    assert found.versions["torch"].endswith(" and 9.9")
    recipe = root / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace(f"primary: {plan.recipe.primary}", "primary: accuracy"))
    with pytest.raises(RunError, match=r"was trained with .* as its primary metric, which is fixed before"):
        judge(root)


def test_the_diagonal_of_the_confusion_is_the_difference_of_each_class(html, comparison):
    rows = {row[0]: row[1:] for row in Page(html).rows if len(row) == 11}
    for place, found in enumerate(comparison.classes):
        change = found.interval.estimate  # what is nearly zero is left out
        assert rows[found.metric][place] == (points(change) if abs(100 * change) >= 0.005 else "")


def test_the_numbers_beside_the_page_are_those_of_the_comparison(html, comparison, judged_folder):
    data = json.loads((judged_folder / "comparison.json").read_text(encoding="utf-8"))
    found = comparison.primary.interval
    assert data["primary_difference"]["estimate"] == found.estimate
    assert data["primary_difference"]["low"] == found.low
    assert data["verdict"]["sentence"] == comparison.verdict.sentence
    assert data["means"]["plain"]["few"]["mean"] == comparison.means["plain"]["few"][0]
    assert len(data["differences"]) == len(comparison.others)
    assert data["curves"][0]["values"]["many"] == list(comparison.curves[0].values["many"])
    assert (judged_folder / "comparison.png").read_bytes().startswith(b"\x89PNG")


def test_one_seed_has_no_interval_anywhere(comparison_folder):
    root = comparison_folder(num_seeds=1)
    found = judge(root)
    text = write_report(found, root).read_text(encoding="utf-8")
    assert is_self_contained(Page(text))
    assert "one seed" in text
    assert ">nan<" not in text
    data = json.loads((root / "comparison.json").read_text(encoding="utf-8"))
    assert math.isnan(found.primary.interval.low)
    assert data["primary_difference"]["low"] is None


def test_a_hundred_classes_are_folded_and_have_no_confusion(comparison_folder):
    root = comparison_folder(num_seeds=2, images_per_class=2, class_names=[f"class {k}" for k in range(100)])
    page = Page(write_report(judge(root), root).read_text(encoding="utf-8"))
    assert "details" in page.tags
    assert "Confusion, related - control" not in page.headings
    assert sum(len(row) == 9 and row[0].startswith("class ") for row in page.rows) == 100


def test_several_labels_leave_out_what_they_do_not_have(multi_label_folder):
    page = Page(write_report(judge(multi_label_folder), multi_label_folder).read_text(encoding="utf-8"))
    assert page.headings == ["Metrics", "How it was judged", "Make it again"]
    assert "adjusted (" not in page.text


def test_a_report_that_fails_leaves_the_former_one(comparison, judged_folder, monkeypatch, html):
    def fail(*parts):
        raise OSError("disk full")

    monkeypatch.setattr(comparison_page, "document", fail)
    with pytest.raises(OSError, match="disk full"):
        write_report(comparison, judged_folder)
    assert (judged_folder / "report.html").read_text(encoding="utf-8") == html
    assert not list(judged_folder.glob("*.part"))


def test_writing_a_report_again_gives_the_same_page(comparison, judged_folder, html):
    assert write_report(comparison, judged_folder).read_text(encoding="utf-8") == html


def test_a_single_run_has_a_page_with_its_metrics_classes_confusion_and_curves(judged_folder):
    folder = judged_folder / "runs" / "related" / "seed-0"
    text = write_run_report(folder).read_text(encoding="utf-8")
    page = Page(text)
    assert is_self_contained(page)
    assert page.headings == ["Metrics", "Classes", "Confusion", "Training", "Make it again"]
    metrics = json.loads((folder / "results.jsonl").read_text(encoding="utf-8"))["metrics"]
    row = next(row for row in page.rows if row[0] == "balanced accuracy")
    assert row[1:] == [percent(metrics["balanced_accuracy"]), percent(metrics["adjusted_balanced_accuracy"])]
    assert "<script" not in text


def test_a_single_run_on_several_labels_has_a_page(multi_label_folder):
    folder = multi_label_folder / "runs" / "related" / "seed-0"
    page = Page(write_run_report(folder).read_text(encoding="utf-8"))
    assert page.headings == ["Metrics", "Make it again"]


def test_a_folder_without_a_result_is_named(tmp_path):
    with pytest.raises(MissingFile, match="is no run folder"):
        write_run_report(tmp_path)


@dataclass
class Options:
    """What compare takes beside the recipe's fields."""

    seeds: int | None = None


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_seeds": 4, "optimizer.lr": 0.05, "data.augment": "none"},
        {"trainer.logger": ("csv",), "optimizer.nesterov": True, "relation.attention_dropout": 0.0},
        {"data.imbalance_factor": None, "seed": 7, "primary": "accuracy"},
        {"backbone.name": "cifar_resnet32", "backbone.options": {}},
    ],
)
def test_the_command_in_the_report_makes_the_same_recipe(changes):
    recipe = RECIPES["digits-lt"].override(changes)
    _, verb, name, *rest = shlex.split(command("compare", recipe))
    own, parsed = parse_with_recipe(verb, name, Options, RECIPES[name], rest)
    assert parsed.override({"num_seeds": own.seeds or parsed.num_seeds}) == recipe


def test_a_recipe_that_no_command_line_can_say_is_run_from_its_file():
    assert command("train", replace(RECIPES["digits-lt"], name="mine")) == "setwise train recipe.yaml"
    inherited = RECIPES["omniglot-ctx"].override({"backbone.name": "resnet34"})
    assert command("train", inherited) == "setwise train recipe.yaml"


def test_a_backbone_of_another_name_begins_without_the_options_of_the_recipes():
    name, given = "omniglot-ctx", ["--backbone.name", "resnet34", "--backbone.options.output-stride", "16"]
    assert RECIPES[name].backbone.options
    _, parsed = parse_with_recipe("train", name, Options, RECIPES[name], given)
    assert parsed.backbone.options == {"output_stride": 16}
    _, parsed = parse_with_recipe("train", name, Options, RECIPES[name], given[2:])
    assert parsed.backbone.options == RECIPES[name].backbone.options | {"output_stride": 16}
