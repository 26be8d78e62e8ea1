import pytest
import torch
from sklearn.datasets import load_digits

from setwise.data import DATASETS
from setwise.errors import InvalidInput

load = DATASETS["digits-lt"].load


def places(split) -> list[int]:
    return [int(name.removeprefix("digit ")) for name in split.names]


def test_test_and_validation_are_balanced():
    splits = load(seed=3)
    assert torch.bincount(splits.test.target).tolist() == [50] * 10
    assert torch.bincount(splits.val.target).tolist() == [24] * 10


def test_training_counts_fall_exponentially_from_100_to_2():
    assert sorted(load(seed=0).train_counts.tolist(), reverse=True) == [
        round(100 * 50 ** (-rank / 9)) for rank in range(10)
    ]
    assert load(seed=0).train_counts.max() == 100
    assert load(seed=0).train_counts.min() == 2


def test_the_seed_draws_the_order_of_the_classes_and_validation_but_not_the_test_part():
    one, other = load(seed=0), load(seed=1)
    assert one.train_counts.tolist() != other.train_counts.tolist()
    assert one.val.names != other.val.names
    assert one.test.names == other.test.names
    assert torch.equal(one.test.images.tensor, other.test.images.tensor)


@pytest.mark.parametrize("seed", range(5))
def test_parts_are_disjoint(seed):
    splits = load(seed=seed)
    train, val, test = (set(places(split)) for split in (splits.train, splits.val, splits.test))
    assert len(train | val | test) == len(train) + len(val) + len(test)


def test_pixels_and_labels_are_those_of_scikit_learn():
    digits = load_digits()
    splits = load(seed=0)
    for place, image, label in zip(places(splits.val), splits.val.images.tensor, splits.val.target, strict=True):
        assert torch.equal(image[0], torch.from_numpy((digits.images[place] * 255 / 16).round()).to(torch.uint8))
        assert digits.target[place] == label


def test_mean_and_deviation_are_those_of_the_set():
    pixels = load_digits().images / 16
    splits = load(seed=0)
    assert splits.mean[0] == pytest.approx(pixels.mean(), abs=1e-4)
    assert splits.std[0] == pytest.approx(pixels.std(), abs=1e-4)


def test_imbalance_one_keeps_the_classes_equal():
    assert load(seed=0, imbalance_factor=1).train_counts.tolist() == [100] * 10


@pytest.mark.parametrize(
    ("factor", "message"), [(0.5, r"`imbalance_factor` \(0.5\) must be 1"), (1000, "without an image")]
)
def test_an_impossible_imbalance_is_refused(factor, message):
    with pytest.raises(InvalidInput, match=message):
        load(seed=0, imbalance_factor=factor)
