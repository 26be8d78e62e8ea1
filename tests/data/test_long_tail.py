import pytest
import torch

from setwise.data.long_tail import exponential_counts, hold_out, largest_long_tail, pick
from setwise.errors import InvalidInput
from setwise.seeds import generator


def test_counts_are_those_of_cifar100_lt():
    counts = exponential_counts(500, num_classes=100, imbalance_factor=100)
    assert (counts[0], counts[-1], sum(counts)) == (500, 5, 10_847)


def test_a_single_class_has_no_tail():
    assert exponential_counts(7, num_classes=1, imbalance_factor=10) == [7]


@pytest.mark.parametrize("counts", [[50, 50, 50, 50], [3, 40, 11, 100], [1000, 1000, 30]])
def test_the_largest_long_tail_fits_and_one_more_image_would_not(counts):
    factor = 4
    sizes = largest_long_tail(counts, imbalance_factor=factor)
    assert all(1 <= size <= count for size, count in zip(sizes, counts, strict=True))
    order = sorted(range(len(counts)), key=lambda label: -counts[label])
    one_more = exponential_counts(max(sizes) + 1, num_classes=len(counts), imbalance_factor=factor)
    assert any(size > counts[label] for size, label in zip(one_more, order, strict=True))


def test_pick_draws_the_wanted_number_of_every_class_without_repeating():
    target = torch.tensor([2, 0, 1, 1, 0, 2, 2, 1])
    places = pick(target, [1, 2, 3], generator=generator(0))
    assert torch.bincount(target[places]).tolist() == [1, 2, 3]
    assert places.tolist() == sorted(set(places.tolist()))


def test_hold_out_takes_at_least_one_image_of_every_class_that_has_two():
    target = torch.repeat_interleave(torch.arange(4), torch.tensor([1, 2, 3, 40]))
    kept, held = hold_out(target, 0.1, generator=generator(0))
    assert torch.bincount(target[held], minlength=4).tolist() == [0, 1, 1, 4]
    assert sorted(kept.tolist() + held.tolist()) == list(range(len(target)))


def test_nothing_is_held_out_for_a_fraction_of_zero():
    kept, held = hold_out(torch.tensor([0, 0, 1]), 0.0, generator=generator(0))
    assert (kept.tolist(), held.tolist()) == ([0, 1, 2], [])


@pytest.mark.parametrize("fraction", [-0.1, 1.0])
def test_an_impossible_fraction_is_refused(fraction):
    with pytest.raises(InvalidInput, match="`val_fraction`"):
        hold_out(torch.tensor([0, 1]), fraction, generator=generator(0))


@pytest.mark.parametrize("seed", range(20))
def test_no_class_loses_its_last_image_when_images_have_several_labels(seed):
    target = (torch.rand(12, 5, generator=generator(seed)) < 0.25).float()
    target[target.sum(1) == 0, 0] = 1
    kept, held = hold_out(target, 0.5, generator=generator(seed))
    assert torch.equal(target[kept].sum(0) > 0, target.sum(0) > 0)
    assert sorted(kept.tolist() + held.tolist()) == list(range(len(target)))


def test_a_long_tail_that_no_classes_of_these_sizes_have_is_a_sentence():
    for factor in (49, 100, float("inf")):
        with pytest.raises(
            InvalidInput, match=rf"No long tail of `imbalance_factor` {factor} fits classes of 5 to 1000"
        ):
            largest_long_tail([1000, 5, 5], imbalance_factor=factor)
