"""Energy inside boxes and the pointing game, against plain loops."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from setwise.errors import InvalidInput
from setwise.metrics import box_mask, energy_inside, points_inside, to_pixels

SIZE = (7, 9)


def mask_by_loops(boxes, size):
    return [
        [any(x0 <= x + 0.5 < x1 and y0 <= y + 0.5 < y1 for x0, y0, x1, y1 in boxes) for x in range(size[1])]
        for y in range(size[0])
    ]


def pointing_by_loops(map_, inside, tolerance):
    cells = [(y, x) for y in range(len(map_)) for x in range(len(map_[0]))]
    top = max(map_[y][x] for y, x in cells)
    hits = []
    for y, x in cells:
        if map_[y][x] == top:
            hits.append(any(math.dist((y, x), cell) <= tolerance for cell in cells if inside[cell[0]][cell[1]]))
    return sum(hits) / len(hits)


coordinate = st.integers(-4, 24).map(lambda number: number / 2)
box = st.tuples(coordinate, coordinate, st.integers(0, 8), st.integers(0, 8)).map(
    lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3])
)


@given(st.lists(box, min_size=1, max_size=3), st.integers(0, 1000), st.integers(0, 5))
@settings(max_examples=60)
def test_masks_energy_and_pointing_are_what_loops_find(boxes, seed, tolerance):
    inside = box_mask(torch.tensor(boxes), SIZE)
    assert inside.tolist() == mask_by_loops(boxes, SIZE)
    map_ = torch.randint(0, 4, SIZE, generator=torch.Generator().manual_seed(seed)).float() + 0.25
    held = sum(map_[y, x].item() for y in range(SIZE[0]) for x in range(SIZE[1]) if inside[y, x])
    assert energy_inside(map_, inside) == pytest.approx(held / map_.sum().item())
    expected = pointing_by_loops(map_.tolist(), inside.tolist(), tolerance)
    assert points_inside(map_, inside, tolerance=tolerance) == pytest.approx(expected)


def test_a_uniform_map_scores_the_share_of_the_area_in_both():
    inside = box_mask(torch.tensor([[0.0, 0.0, 3.0, 2.0]]), SIZE)
    share = 6 / 63
    assert energy_inside(torch.ones(SIZE), inside) == pytest.approx(share)
    assert points_inside(torch.ones(SIZE), inside) == pytest.approx(share)


def test_the_factor_of_a_map_does_not_matter_and_a_map_of_nothing_has_no_energy():
    inside = box_mask(torch.tensor([[0.0, 0.0, 3.0, 2.0]]), SIZE)
    map_ = torch.rand(SIZE)
    assert energy_inside(map_, inside) == pytest.approx(energy_inside(1000 * map_, inside))
    assert math.isnan(energy_inside(torch.zeros(SIZE), inside))


def test_the_papers_tolerance_of_15_pixels_is_a_disc():
    map_, inside = torch.zeros(40, 40), torch.zeros(40, 40, dtype=torch.bool)
    inside[0, 0] = True
    for y, x, hit in ((0, 15, 1.0), (0, 16, 0.0), (9, 12, 1.0), (11, 11, 0.0)):
        peak = map_.clone()
        peak[y, x] = 1
        assert points_inside(peak, inside, tolerance=15) == hit


def test_maps_come_to_the_size_of_the_image_whatever_stands_before():
    assert to_pixels(torch.rand(3, 5), (30, 20)).shape == (30, 20)
    assert to_pixels(torch.rand(2, 4, 3, 5), (30, 20)).shape == (2, 4, 30, 20)
    ramp = to_pixels(torch.tensor([[0.0, 1.0]]), (1, 4))  # centres of the cells at 1 and 3 pixels, those of pixels .5
    torch.testing.assert_close(ramp, torch.tensor([[0.0, 0.25, 0.75, 1.0]]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: box_mask(torch.zeros(0, 4), SIZE), "must hold at least one box"),
        (lambda: box_mask(torch.tensor([[3.0, 0.0, 1.0, 1.0]]), SIZE), "ends before it begins"),
        (lambda: energy_inside(-torch.ones(SIZE), torch.ones(SIZE, dtype=torch.bool)), "must not be negative"),
        (lambda: energy_inside(torch.ones(2, 2), torch.ones(SIZE, dtype=torch.bool)), "of one image"),
        (lambda: points_inside(torch.full(SIZE, math.nan), torch.ones(SIZE, dtype=torch.bool)), "no finite numbers"),
        (lambda: points_inside(torch.ones(SIZE), torch.ones(SIZE, dtype=torch.bool), tolerance=-1), "0 or more"),
    ],
)
def test_what_cannot_be_judged_is_one_sentence(call, message, unchecked):
    with pytest.raises(InvalidInput, match=message):
        call()
