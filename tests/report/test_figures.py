import numpy as np
import pytest
from matplotlib.colors import to_rgba
from matplotlib.legend import Legend

from setwise.judge import judge
from setwise.report import comparison_figure
from setwise.report.curves import curves_figure
from setwise.report.figures import COLOURS, save_png, svg
from setwise.report.records import training_curves
from setwise.report.wording import interval


def dots(axes):
    """Face colour and place of every single dot."""
    return [
        (to_rgba(line.get_markerfacecolor()), line.get_xydata()[0]) for line in axes.lines if len(line.get_xdata()) == 1
    ]


def test_the_forest_shows_both_differences_of_the_primary_metric(comparison):
    forest = comparison_figure(comparison).axes[0]
    beside = comparison.find(comparison.primary.metric, "related", "plain").interval
    first = comparison.primary.interval
    (filled, at), (hollow, other), *_ = dots(forest)
    assert filled == to_rgba(COLOURS["related"])
    assert hollow == to_rgba("white")
    assert at[0] == pytest.approx(100 * first.estimate)
    assert other[0] == pytest.approx(100 * beside.estimate)
    segments = [line.get_xdata() for line in forest.lines if len(line.get_xdata()) == 2]
    assert any(np.allclose(ends, [100 * first.low, 100 * first.high]) for ends in segments)
    assert any(interval(first) in text.get_text() for text in forest.texts)


def test_raw_and_adjusted_metrics_have_a_row_each(comparison):
    texts = [text.get_text() for text in comparison_figure(comparison).axes[0].texts]
    for name in ("balanced accuracy", "many-shot", "medium-shot", "few-shot"):
        assert texts.count(name) == 2
    assert texts.index("adjusted for class bias") < texts.index("raw scores")


def test_the_trade_off_has_a_line_for_each_arm_and_dots_at_no_and_at_the_chosen_strength(comparison):
    trade = comparison_figure(comparison).axes[1]
    lines = {line.get_label(): line for line in trade.lines if line.get_label() in COLOURS}
    assert list(lines) == ["plain", "control", "related"]
    curve = next(curve for curve in comparison.curves if curve.arm == "related")
    many, few = (100 * np.array(curve.values[name]) for name in ("many", "few"))
    expected = [
        (np.interp(tau, curve.taus, many), np.interp(tau, curve.taus, few)) for tau in (0.0, np.mean(curve.chosen))
    ]
    drawn = [place for _, place in dots(trade)]
    for place in expected:
        assert any(np.allclose(place, other) for other in drawn)


def test_the_verdict_is_the_title_and_can_be_left_out(comparison):
    titled, bare = comparison_figure(comparison), comparison_figure(comparison, titled=False)
    assert titled.texts[0].get_text().replace("\n", " ") == comparison.verdict.sentence
    assert not bare.texts


@pytest.mark.parametrize(
    "how",
    [
        {"num_seeds": 1},
        {"num_seeds": 2, "images_per_class": 4, "empty_groups": True},
        {"num_seeds": 3, "images_per_class": 6, "effect": -2.0, "bias": 0.5},
    ],
    ids=["one seed", "no groups", "worse"],
)
def test_no_text_leaves_the_figure_or_covers_another(comparison_folder, how):
    figure = comparison_figure(judge(comparison_folder(**how)))
    assert_texts_are_apart(figure)


def test_several_labels_have_a_forest_alone(multi_label_folder):
    figure = comparison_figure(judge(multi_label_folder))
    assert len(figure.axes) == 1
    assert_texts_are_apart(figure)


def assert_texts_are_apart(figure):
    figure.draw_without_rendering()
    texts = [
        *figure.texts,
        *(text for axes in figure.axes for text in [*axes.texts, axes.xaxis.label, axes.yaxis.label]),
    ]
    keys = [key for axes in figure.axes for key in axes.get_children() if isinstance(key, Legend)]
    boxes = [thing.get_window_extent() for thing in [*keys, *(text for text in texts if text.get_text())]]
    for number, box in enumerate(boxes):
        assert box.x0 >= 0
        assert box.y0 >= 0
        assert box.x1 <= figure.bbox.x1
        assert box.y1 <= figure.bbox.y1
        assert not any(box.overlaps(other) for other in boxes[:number])


def test_a_picture_is_written_whole_and_the_same_every_time(comparison, tmp_path):
    save_png(comparison_figure(comparison), tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    assert svg(comparison_figure(comparison)) == svg(comparison_figure(comparison))


def test_training_curves_are_means_over_seeds_and_continue_over_versions(judged_folder):
    folders = [judged_folder / "runs" / "related" / f"seed-{seed}" for seed in range(4)]
    curves = training_curves(folders)
    assert list(curves["train/related_loss"]) == list(range(20))
    each = [training_curves([folder])["train/plain_loss"][11] for folder in folders]
    assert curves["train/plain_loss"][11] == pytest.approx(np.mean(each))
    figure = curves_figure({"related": curves}, "adjusted_balanced_accuracy")
    assert sum(axes.axison for axes in figure.axes) == 5


def test_runs_without_logs_have_no_training_figure(tmp_path):
    assert curves_figure({"plain": training_curves([tmp_path])}, "accuracy") is None
