import pickle

import pytest
import torch

from setwise.data.transforms import TRANSFORMS, crop_and_flip, fit_to, normalise
from setwise.errors import DataError
from setwise.seeds import generator

KEYS = {"seed": 0, "epoch": 3, "step": 5}


def some_images(number: int = 6, channels: int = 3, height: int = 32, width: int = 32) -> torch.Tensor:
    return torch.randint(1, 256, (number, channels, height, width), dtype=torch.uint8, generator=generator(0))


def apply(name: str, images, image_size=None, **changes):
    index = changes.pop("index", torch.arange(len(images)))
    return TRANSFORMS[name](images, image_size=image_size, index=index, **(KEYS | changes))


@pytest.mark.parametrize(("pad", "height", "width"), [(4, 32, 32), (1, 8, 8), (3, 7, 5)])
def test_crop_and_flip_equals_a_loop_over_images_and_pixels(pad, height, width):
    images = some_images(20, 2, height, width)
    rng = generator(1)
    top = torch.randint(0, 2 * pad + 1, (20,), generator=rng)
    left = torch.randint(0, 2 * pad + 1, (20,), generator=rng)
    flip = torch.rand(20, generator=rng) < 0.5
    result = crop_and_flip(images, pad=pad, top=top, left=left, flip=flip)
    for number in range(20):
        for row in range(height):
            for column in range(width):
                source_column = width - 1 - column if flip[number] else column
                y, x = row + int(top[number]) - pad, source_column + int(left[number]) - pad
                inside = 0 <= y < height and 0 <= x < width
                expected = images[number, :, y, x] if inside else torch.zeros(2, dtype=torch.uint8)
                assert torch.equal(result[number, :, row, column], expected)


def test_crop_flip_reaches_every_shift_and_both_directions():
    marker = torch.zeros(4000, 1, 9, 9, dtype=torch.uint8)
    marker[:, :, 4, 4] = 1
    marker[:, :, 4, 5] = 2
    changed = apply("crop-flip", marker).flatten(1)
    spots = changed.argmax(1).unique()
    assert len(spots) > 80
    there = (changed == 1).any(1) & (changed == 2).any(1)
    right = (changed == 2).int().argmax(1)[there] > (changed == 1).int().argmax(1)[there]
    assert 0.45 < right.float().mean() < 0.55


def test_shift_moves_by_at_most_one_pixel_and_never_mirrors():
    marker = torch.zeros(500, 1, 8, 8, dtype=torch.uint8)
    marker[:, :, 3, 3] = 1
    marker[:, :, 3, 4] = 2
    changed = apply("shift", marker).flatten(1)
    ones = changed.argmax(1) - 1
    assert {(int(spot) // 8, int(spot) % 8) for spot in ones} == {(y, x) for y in (2, 3, 4) for x in (2, 3, 4)}


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_transform_keeps_shape_and_type_and_repeats_itself(name, channels):
    images = some_images(channels=channels)
    before = images.clone()
    state = torch.get_rng_state()
    first = apply(name, images)
    assert first.shape == images.shape
    assert first.dtype == torch.uint8
    assert torch.equal(first, apply(name, images))
    assert torch.equal(images, before)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", [name for name in TRANSFORMS if name != "none"])
@pytest.mark.parametrize("change", [{"seed": 1}, {"epoch": 4}, {"view": 1}])
def test_augmentation_differs_between_seeds_epochs_and_views(name, change):
    images = some_images(16)
    assert not torch.equal(apply(name, images), apply(name, images, **change))


@pytest.mark.parametrize("name", [name for name, entry in TRANSFORMS.items() if entry.batched is None])
def test_per_image_augmentation_does_not_depend_on_the_batch(name):
    images = some_images(6)
    whole = apply(name, images)
    alone = apply(name, images[4:5], step=9, index=torch.tensor([4]))
    assert torch.equal(whole[4:5], alone)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_images_of_different_sizes_become_one_batch_of_the_wanted_size(name):
    images = [some_images(1, 3, height, width)[0] for height, width in ((20, 30), (40, 24), (16, 16))]
    assert apply(name, images, image_size=16).shape == (3, 3, 16, 16)


def test_a_fifth_of_simclrs_views_is_grey():
    images = some_images(300, height=16, width=16)
    for name in ("simclr", "simclr-cifar"):
        views = apply(name, images)
        grey = ((views[:, 0] == views[:, 1]) & (views[:, 1] == views[:, 2])).flatten(1).all(1)
        assert 0.1 < grey.float().mean() < 0.3


def test_images_of_the_right_size_are_not_touched_in_evaluation():
    images = some_images(3)
    assert fit_to(images, 32) is images
    assert fit_to(images, None) is images
    assert torch.equal(fit_to(list(images), 32), images)


def test_evaluation_takes_the_centre_of_the_resized_image():
    image = torch.zeros(1, 3, 256, 512, dtype=torch.uint8)
    image[:, :, :, 128:384] = 200  # the central square
    fitted = fit_to(image, 224)
    assert fitted.shape == (1, 3, 224, 224)
    assert (fitted == 200).all()


def test_different_sizes_without_image_size_are_refused():
    with pytest.raises(DataError, match=r"--data.image-size"):
        fit_to([some_images(1, 3, 8, 8)[0], some_images(1, 3, 9, 8)[0]], None)


def test_normalise_follows_the_formula():
    images = some_images(2)
    mean, std = (0.1, 0.5, 0.3), (0.2, 0.3, 0.4)
    expected = (images.double() / 255 - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    torch.testing.assert_close(normalise(images, mean=mean, std=std), expected.float(), rtol=1e-5, atol=1e-5)


def test_grey_images_are_normalised_as_three_equal_channels():
    images, numbers = some_images(2)[:, :1], {"mean": (0.1, 0.5, 0.3), "std": (0.2, 0.3, 0.4)}
    assert torch.equal(normalise(images, **numbers), normalise(images.expand(-1, 3, -1, -1).clone(), **numbers))


def test_cutout_blackens_at_most_16_by_16_pixels():
    from setwise.data.transforms import cutout

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        black = [int((cutout(torch.ones(3, 32, 32, dtype=torch.uint8)) == 0).sum()) // 3 for _ in range(200)]
    assert max(black) == 256
    assert 64 <= min(black) < 256


@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms_can_be_sent_to_a_spawned_worker(name):
    images = some_images()
    sent = pickle.loads(pickle.dumps(TRANSFORMS[name]))
    assert torch.equal(sent(images, image_size=32, index=torch.arange(6), **KEYS), apply(name, images))


@pytest.mark.parametrize("name", ["resized-crop", "random-resized-crop"])
def test_an_image_that_is_shown_again_in_an_epoch_looks_another_way(name):
    images = some_images(1).expand(3, -1, -1, -1)
    index, turns = torch.tensor([4, 4, 4]), torch.tensor([0, 1, 2])
    first, second, third = apply(name, images, 32, index=index, turns=turns)
    assert not torch.equal(first, second)
    assert not torch.equal(second, third)
    alone = apply("random-resized-crop", images, 32, index=index, turns=turns)
    assert torch.equal(alone[0], apply("random-resized-crop", images[:1], 32, index=index[:1])[0])
