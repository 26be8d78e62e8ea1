"""mixup and CutMix against plain loops: what is mixed with what, and that labels say the same shares as pixels."""

import pytest
import torch

from setwise.data.mix import make_mix

CLASSES = 5


@pytest.fixture
def batch():
    torch.manual_seed(0)
    return torch.rand(6, 3, 8, 8, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 4, 0])


def share_of(row, own, other):
    """Part of an image's own class in its label; the rest is its partner's."""
    share = float(row[own])
    assert 0.05 < share < 0.95  # or nothing is seen
    expected = [0.0] * CLASSES
    expected[own] += share
    expected[other] += 1 - share
    assert row.tolist() == pytest.approx(expected)
    return share


def test_mixup_blends_each_image_with_the_one_before_it(batch):
    images, target = batch
    mixed, shares = make_mix(mixup=0.5, cutmix=0.0, num_classes=CLASSES)(images, target)
    for place in range(1, 5):
        own = share_of(shares[place], int(target[place]), int(target[place - 1]))
        for channel, row, column in ((0, 0, 0), (1, 3, 5), (2, 7, 7)):
            at = (channel, row, column)
            expected = own * float(images[place][at]) + (1 - own) * float(images[place - 1][at])
            assert float(mixed[place][at]) == pytest.approx(expected)


def test_cutmix_pastes_a_box_whose_area_is_the_share(batch):
    images, target = batch
    mixed, shares = make_mix(mixup=0.0, cutmix=1.0, num_classes=CLASSES)(images, target)
    for place in range(1, 5):
        own = share_of(shares[place], int(target[place]), int(target[place - 1]))
        kept = pasted = 0
        for row in range(8):
            for column in range(8):
                pixel = mixed[place, :, row, column]
                if torch.equal(pixel, images[place, :, row, column]):
                    kept += 1
                else:
                    assert torch.equal(pixel, images[place - 1, :, row, column])
                    pasted += 1
        assert kept + pasted == 64
        assert own == pytest.approx(kept / 64)
