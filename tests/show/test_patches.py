"""The pixels of the pictures: what is bright, what is grey, what has which colour."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from setwise.errors import RunError
from setwise.show import Look, write_patches
from setwise.show.patches import COLOURS, LUMINANCE, STRONGEST, colour_of, multiplied, overlaid, smooth, tinted
from setwise.show.patches_page import figure_of


def look(maps, *, per_class=True):
    rng = np.random.default_rng(0)
    names = tuple(f"class {k}" for k in range(len(maps)))
    return Look(
        path=Path("a.png"),
        image=rng.integers(0, 256, (32, 48, 3), dtype=np.uint8),
        classes=names,
        probabilities=(0.5,) * len(maps),
        maps=np.asarray(maps, dtype=np.float32),
        per_class=per_class,
        own=(0.0,) * len(maps),
    )


def corner(row, column, value=1.0):
    map_ = np.zeros((4, 6))
    map_[row, column] = value
    return map_


def test_a_map_is_brought_to_the_picture_with_its_highest_place_one_and_nothing_below_zero():
    large = smooth(corner(1, 4, 0.01), (32, 48))
    assert large.shape == (32, 48)
    assert large.max() == 1
    assert large.min() == 0
    y, x = np.unravel_index(large.argmax(), large.shape)
    assert (y // 8, x // 8) == (1, 4)
    assert not smooth(np.zeros((4, 6)), (32, 48)).any()


def test_where_a_map_is_low_tinted_and_overlaid_are_grey_and_multiplied_is_black():
    seen = look([corner(0, 0), corner(3, 5)])
    grey = (seen.image / 255 @ np.array(LUMINANCE))[16, 24]
    np.testing.assert_allclose(tinted(seen, seen.maps[0])[16, 24], [grey] * 3, atol=1e-6)
    np.testing.assert_allclose(overlaid(seen)[16, 24], [grey] * 3, atol=1e-6)
    assert not multiplied(seen, seen.maps[0])[16, 24].any()


def test_where_a_map_is_highest_the_image_stays_and_the_overlay_has_the_colour_of_its_class():
    seen = look([corner(0, 0), corner(3, 5)])
    for number, map_ in enumerate(seen.maps):
        y, x = np.unravel_index(smooth(map_, (32, 48)).argmax(), (32, 48))
        np.testing.assert_allclose(multiplied(seen, map_)[y, x], seen.image[y, x] / 255)
        grey = (seen.image / 255 @ np.array(LUMINANCE))[y, x]
        expected = (1 - STRONGEST) * grey + STRONGEST * np.array(to_rgb(COLOURS[number]))
        np.testing.assert_allclose(overlaid(seen)[y, x], expected, atol=1e-6)


@pytest.mark.parametrize(("number", "per_class", "panels"), [(3, True, 5), (8, True, 10), (1, False, 2)])
def test_there_is_a_panel_for_the_image_each_class_and_all_of_them(number, per_class, panels):
    figure = figure_of(look([corner(k % 4, k % 6) for k in range(number)], per_class=per_class))
    shown = [axes for axes in figure.axes if axes.images]
    assert len(shown) == panels
    assert not any(axes.axison for axes in figure.axes)
    captions = [axes.get_title() for axes in shown]
    assert captions[1] == "class 0 (50.0 %)"
    assert bool(figure.legends) == per_class


def test_a_folder_that_holds_something_is_refused(tmp_path):
    (tmp_path / "mine.txt").write_text("")
    with pytest.raises(RunError, match="nothing is overwritten"):
        write_patches([look([corner(0, 0)])], tmp_path, title="t")
    with pytest.raises(RunError, match="nothing is overwritten"):
        write_patches([look([corner(0, 0)])], tmp_path / "mine.txt", title="t")


def test_every_map_has_a_colour_of_its_own():
    assert len({tuple(round(part, 2) for part in colour_of(number)) for number in range(20)}) == 20
