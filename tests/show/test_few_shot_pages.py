"""What is drawn of few-shot networks: whom a query looked at, and what its neighbours are."""

import io
from dataclasses import replace

import numpy as np
import torch
from matplotlib.colors import to_rgb

from setwise.collapse import Found, Gallery
from setwise.metrics import collapse
from setwise.show.neighbours import FRAME, MARK, neighbours_figure
from setwise.show.patches import COLOURS
from setwise.show.support import STRONGEST, Attended, support_figure


def attended(weights, highest=None):
    places, images = weights.shape[:2]
    return Attended(
        query=np.zeros((8, 8, 3)),
        support=np.zeros((images, 8, 8, 3)),
        weights=weights,
        highest=weights.max((1, 2, 3)) if highest is None else highest,
        places=((0, 0), (3, 2))[:places],
        grid=(4, 4),
        label=0,
        predicted=0,
        name="owl",
    )


def test_a_class_may_be_called_by_a_price():
    figure = support_figure(replace(attended(np.full((1, 1, 2, 2), 0.25, dtype=np.float32)), name="$100_$200"))
    figure.savefig(io.BytesIO())


def test_opacity_over_a_support_image_is_the_weight_over_the_highest_of_all_images():
    weights = np.zeros((1, 2, 2, 2), dtype=np.float32)
    weights[0, 0, 0, 1], weights[0, 1, 1, 0] = 0.8, 0.2
    _, first, second = support_figure(attended(weights)).axes
    colour = np.array(to_rgb(COLOURS[0]))
    expected = np.zeros((2, 8, 8, 3))
    expected[0, :4, 4:] = STRONGEST * colour
    expected[1, 4:, :4] = STRONGEST * colour * 0.25
    for panel, picture in zip((first, second), expected, strict=True):
        np.testing.assert_allclose(panel.images[0].get_array(), picture, atol=1e-6)
    assert (first.get_title(), second.get_title()) == ("weight 80 %", "weight 20 %")


def test_a_place_that_looks_at_an_image_that_is_not_shown_is_faint_on_those_that_are():
    weights = np.zeros((1, 1, 2, 2), dtype=np.float32)
    weights[0, 0, 0, 0] = 0.01
    _, shown = support_figure(attended(weights, highest=np.array([0.5], dtype=np.float32))).axes
    strongest = shown.images[0].get_array().max()
    np.testing.assert_allclose(strongest, STRONGEST * 0.02 * max(to_rgb(COLOURS[0])), rtol=1e-5)


def test_places_of_the_query_have_their_colours():
    query = support_figure(attended(np.full((2, 1, 4, 4), 1 / 16, dtype=np.float32))).axes[0].images[0].get_array()
    np.testing.assert_allclose(query[:2, :2], np.broadcast_to(to_rgb(COLOURS[0]), (2, 2, 3)))
    np.testing.assert_allclose(query[6:, 4:6], np.broadcast_to(to_rgb(COLOURS[1]), (2, 2, 3)))
    assert not query[2:6].any()


def test_neighbours_of_the_commonest_wrong_class_are_framed_and_test_classes_marked():
    target = torch.tensor([2, 2, 0, 0, 1, 3])  # 0 and 1 were trained on
    gallery = Gallery(
        images=torch.zeros(6, 3, 4, 4, dtype=torch.uint8),
        target=target,
        class_names=("ant", "bee", "cat", "dog"),
        num_trained=2,
        mean=(0.5,) * 3,
        std=(0.2,) * 3,
    )
    query, neighbours = torch.tensor([0]), torch.tensor([[1, 2, 3, 4, 5]])
    shares = collapse(neighbours, query, target, gallery.trained)
    axes = neighbours_figure(Found("net", shares, shares, query, neighbours, "trained"), gallery).axes
    framed = [panel.spines["top"].get_visible() for panel in axes]
    assert framed == [False, False, True, True, False, False]  # both ants; one bee and one dog are no commonest class
    assert [panel.get_xlabel() for panel in axes] == ["cat", "cat", "ant", "ant", "bee", "dog"]
    assert [panel.xaxis.label.get_color() == MARK for panel in axes] == [True, True, False, False, False, True]
    assert [bool(panel.lines) for panel in axes] == [True, True, False, False, False, True]
    assert axes[2].spines["top"].get_edgecolor()[:3] == to_rgb(FRAME)
