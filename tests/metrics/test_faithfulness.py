"""Deletion and insertion, against loops over steps and pixels written from the paper."""

import math

import pytest
import torch

from setwise.errors import InvalidInput
from setwise.metrics import area, blurred, deletion, insertion

SIDE = 6


def setting():
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(3, SIDE, SIDE, generator=generator)
    map_ = torch.randperm(SIDE * SIDE, generator=generator).view(SIDE, SIDE).float()
    weights = torch.randn(3, SIDE, SIDE, generator=generator)
    return image, map_, lambda x: (x * weights).sum((1, 2, 3)).sigmoid()


def by_loops(score, start, end, map_, num_steps):
    """One image after the other; after step s the pixels of rank below s / S of all are those of the end."""
    cells = sorted(((y, x) for y in range(SIDE) for x in range(SIDE)), key=lambda cell: -map_[cell].item())
    scores = []
    for step in range(num_steps + 1):
        now = start.clone()
        for rank, (y, x) in enumerate(cells):
            if rank * num_steps < step * len(cells):
                now[:, y, x] = end[:, y, x]
        scores.append(float(score(now[None])))
    return scores


@pytest.mark.parametrize("num_steps", [1, 4, 7, 36])
def test_the_curves_are_those_of_the_loops_for_any_number_of_steps(num_steps):
    image, map_, score = setting()
    gone = by_loops(score, image, torch.zeros_like(image), map_, num_steps)
    assert deletion(score, image, map_, num_steps=num_steps, batch_size=3).tolist() == pytest.approx(gone, abs=1e-6)
    come = by_loops(score, blurred(image), image, map_, num_steps)
    assert insertion(score, image, map_, num_steps=num_steps).tolist() == pytest.approx(come, abs=1e-6)
    mean = (gone[0] + gone[-1]) / 2 + sum(gone[1:-1])
    assert area(deletion(score, image, map_, num_steps=num_steps)) == pytest.approx(mean / num_steps, abs=1e-6)


def test_the_blur_is_a_gaussian_of_eleven_pixels_with_nothing_behind_the_border():
    image = setting()[0]
    weight = [math.exp(-0.5 * (d / 5) ** 2) for d in range(-5, 6)]
    total = sum(weight)
    for y, x in ((0, 0), (2, 5), (3, 3)):
        near = [(j, i) for j in range(SIDE) for i in range(SIDE) if abs(j - y) <= 5 and abs(i - x) <= 5]
        expected = sum(weight[j - y + 5] * weight[i - x + 5] * image[1, j, i].item() for j, i in near) / total**2
        assert blurred(image)[1, y, x].item() == pytest.approx(expected, abs=1e-6)


def test_a_map_of_the_truth_deletes_and_inserts_better_than_its_reverse():
    image, map_ = torch.ones(3, SIDE, SIDE), torch.zeros(SIDE, SIDE)
    map_[:3] = 1

    def score(x):
        return x[:, :, :3].mean((1, 2, 3))  # rests on the upper half alone

    assert area(deletion(score, image, map_, num_steps=12)) < area(deletion(score, image, -map_, num_steps=12))
    black = torch.zeros_like(image)
    up, down = (area(insertion(score, image, m, num_steps=12, baseline=black)) for m in (map_, -map_))
    assert up == pytest.approx(1 - 0.25)
    assert down == pytest.approx(0.25)


def test_pixels_of_one_value_go_in_an_order_of_the_seed_not_from_a_corner():
    image, flat = torch.ones(3, SIDE, SIDE), torch.ones(SIDE, SIDE)

    def upper(x):
        return x[:, :, :3].mean((1, 2, 3))

    first, second = (deletion(upper, image, flat, num_steps=6, seed=seed) for seed in (0, 1))
    assert torch.equal(first, deletion(upper, image, flat, num_steps=6))
    assert not torch.equal(first, second)
    assert 0.2 < float(first[3]) < 0.8  # from a corner on, the upper half would be gone


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"map_": torch.ones(3, 3)}, "must have one size"),
        ({"map_": torch.full((SIDE, SIDE), math.inf)}, "no finite numbers"),
        ({"num_steps": 0}, "between 1 and the 36 pixels"),
        ({"num_steps": 37}, "between 1 and the 36 pixels"),
        ({"baseline": torch.ones(3, 2, 2)}, "must have one size"),
    ],
)
def test_what_has_no_curve_is_one_sentence(options, message, unchecked):
    image, map_, score = setting()
    arguments = {"map_": map_, "num_steps": 4, **options}
    for measure in (deletion, insertion):
        with pytest.raises(InvalidInput, match=message):
            measure(score, image, **arguments)
