"""The pictures of who acts on whom: for few classes, for many, and where something was never seen."""

import csv
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from setwise.errors import RunError
from setwise.metrics import Influence
from setwise.show.influence import Measured, between_groups, in_order
from setwise.show.influence_page import DRAWN, LISTED, NAMED, gradient_figure, matrix_figure, write_influence

sys.path.append(str(Path(__file__).parents[1] / "report"))
from html_pages import Page, is_self_contained


def measured(number, *, attention=True, empty=False):
    draw = torch.Generator().manual_seed(0)
    gradient, between, weights = (
        torch.rand(*shape, generator=draw, dtype=torch.float64) for shape in ((number,), *[(number, number)] * 2)
    )
    gradient[-1] = float("nan")
    between[:, -1] = float("nan")
    third = max(1, number // 3)
    found = Influence(
        gradient=gradient * float("nan") if empty else gradient,
        gradient_between=between * float("nan") if empty else between,
        attention=weights if attention else None,
        samples=torch.full((number,), 5),
        uniform=0.25,
    )
    return Measured(
        found,
        names=tuple(f"$class$ <{k}>" for k in range(number)),
        counts=tuple(range(1000 + number, 1000, -1)),
        group=tuple(min(k // third, 2) for k in range(number)),
        part="test",
        batch_size=4,
        attend="all",
        criterion="balanced-softmax, as in training",
    )


def test_classes_and_all_that_was_measured_of_them_are_put_in_one_order():
    one = measured(4)
    found = replace(
        one.found,
        gradient=torch.arange(4.0).double(),
        gradient_between=torch.arange(16.0).double().view(4, 4),
        attention=torch.arange(16.0, 32).double().view(4, 4),
        samples=torch.arange(10, 14),
    )
    mixed = replace(one, found=found, counts=(3, 500, 40, 7), group=(2, 0, 1, 2), names=tuple("abcd"))
    order = [1, 2, 3, 0]
    now = in_order(mixed)
    assert (now.names, now.counts, now.group) == (tuple("bcda"), (500, 40, 7, 3), (0, 1, 2, 2))
    assert now.found.gradient.tolist() == order
    assert now.found.samples.tolist() == [10 + k for k in order]
    assert now.found.gradient_between.tolist() == [[4 * row + column for column in order] for row in order]
    assert now.found.attention.tolist() == [[16 + 4 * row + column for column in order] for row in order]


@pytest.mark.parametrize("number", [4, NAMED + 5, LISTED + 60])
def test_any_number_of_classes_is_drawn_and_listed(tmp_path, number):
    page = Page(write_influence(measured(number), tmp_path, title="t").read_text())
    assert is_self_contained(page)
    assert sum(tag == "img" for tag, _ in page.addresses) == 3
    assert page.headings[0] == "Gradient on the other samples"
    assert "The loss of one sample (balanced-softmax, as in training), of its related feature, is" in page.text
    assert f"Measured on {5 * number} images".replace("1300", "1,300") in page.text
    table = list(csv.DictReader((tmp_path / "influence.csv").open()))
    assert len(table) == number
    assert table[0]["class"] == "$class$ <0>"
    assert table[-1]["gradient"] == ""
    assert ("influence.csv has all" in page.text) == (number > LISTED)
    groups = [row for row in page.rows if row[0] in ("many", "medium", "few")]
    assert [row[0] for row in groups] == ["many", "medium", "few"]
    assert groups[0][4] == "1.00"


def test_what_was_never_seen_and_what_cannot_be_recorded_leave_no_gap_in_the_page(tmp_path):
    page = Page(write_influence(measured(4, attention=False, empty=True), tmp_path, title="t").read_text())
    assert "no attention from sample to sample" in page.text
    assert not (tmp_path / "attention.png").exists()
    assert (tmp_path / "gradient-between.png").exists()


def test_classes_are_marked_by_their_group_and_few_of_them_are_named():
    axes = gradient_figure(measured(6)).axes[0]
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert [label.split(" classes: ")[0] for label in labels[:3]] == ["many, 2", "medium, 2", "few, 2"]
    assert len(axes.get_xticklabels()) == 6
    left = matrix_figure(measured(6), np.ones((6, 6)), "what").axes[0]
    assert [text.get_text() for text in left.get_yticklabels()][1] == "$class$ <1>"
    many = matrix_figure(measured(600), np.arange(360000.0).reshape(600, 600), "what").axes[0]
    assert many.images[0].get_array().shape == (DRAWN, DRAWN)
    assert "600 classes, the largest first, 3 in a cell" in many.get_xlabel()
    assert not many.get_yticklabels()


def test_attention_departs_from_one_in_both_directions_and_a_little_of_it_looks_little():
    for spread, ends in ((0.01, (0.9, 1.1)), (4.0, (-3.0, 5.0))):
        values = np.ones((6, 6))
        values[:3] += spread
        figure = matrix_figure(measured(6), values, "what", centre=1.0)
        assert figure.axes[0].images[0].get_clim() == pytest.approx(ends)
        assert figure.axes[1].images[0].get_clim() == pytest.approx(ends)
        assert [text.get_text() for text in figure.axes[1].texts][-1] == "1.00"


def test_means_of_groups_count_each_pair_of_classes_that_was_seen_once():
    values = np.array([[1.0, 2.0, np.nan], [3.0, 4.0, 5.0], [6.0, np.nan, np.nan]])
    found = between_groups(values, (0, 0, 2))
    assert found[0, 0] == 2.5
    assert found[0, 2] == 5
    assert found[2, 0] == 6
    assert np.isnan(found[1]).all()
    assert np.isnan(found[2, 2])


def test_a_folder_that_holds_something_is_refused(tmp_path):
    (tmp_path / "mine.txt").write_text("")
    with pytest.raises(RunError, match="nothing is overwritten"):
        write_influence(measured(4), tmp_path, title="t")
