import colorsys
import math

import numpy as np
import pytest
import torch

from setwise.data.few_shot import SimCLRTransform, colour
from setwise.data.few_shot.simclr import blur, draw_crop
from setwise.errors import InvalidInput
from setwise.seeds import generator


def noise(number=3, height=6, width=5) -> torch.Tensor:
    return torch.rand(number, 3, height, width, generator=generator("noise"))


def by_pixel(images, amounts, change) -> torch.Tensor:
    """``change(hsv, amount)`` of every pixel, with Python's own colour conversion."""
    result = torch.empty_like(images)
    for image, out, amount in zip(images, result, amounts.tolist(), strict=True):
        for y in range(images.shape[2]):
            for x in range(images.shape[3]):
                hsv = change(colorsys.rgb_to_hsv(*image[:, y, x].tolist()), amount)
                out[:, y, x] = torch.tensor(colorsys.hsv_to_rgb(*hsv))
    return result


def test_hue_turns_as_pythons_colour_conversion_does():
    images = noise()
    images[0, :, 0, :3] = torch.tensor([[0.0, 0.4, 1.0], [0.0, 0.4, 0.2], [0.0, 0.4, 1.0]])  # black, grey, two largest
    turn = torch.tensor([0.2, -0.13, 0.0])
    expected = by_pixel(images, turn, lambda hsv, amount: ((hsv[0] + amount) % 1, hsv[1], hsv[2]))
    torch.testing.assert_close(colour.hue(images, turn), expected, atol=2e-6, rtol=0)


def test_saturation_is_multiplied_up_to_1_as_pythons_colour_conversion_does():
    images = noise()
    images[0, :, 0, :2] = torch.tensor([[0.0, 0.4], [0.0, 0.4], [0.0, 0.4]])
    factor = torch.tensor([1.8, 0.2, 0.0])
    expected = by_pixel(images, factor, lambda hsv, amount: (hsv[0], min(1, hsv[1] * amount), hsv[2]))
    torch.testing.assert_close(colour.saturation(images, factor), expected, atol=2e-6, rtol=0)


def test_brightness_and_contrast_follow_their_formulas():
    images, amount = noise(), torch.tensor([0.5, 1.7, 0.2])
    for number, image in enumerate(images.numpy()):
        mean = image.reshape(3, -1).mean(1)[:, None, None]
        expected = mean + (image - mean) * amount[number].item()
        np.testing.assert_allclose(colour.contrast(images, amount)[number], expected, atol=1e-6)
        np.testing.assert_allclose(colour.brightness(images, amount)[number], image + amount[number].item(), atol=1e-6)


def test_grey_is_the_weighted_sum_of_the_channels():
    images = noise()
    expected = 0.2989 * images[:, 0] + 0.587 * images[:, 1] + 0.114 * images[:, 2]
    for channel in colour.to_grey(images).unbind(1):
        torch.testing.assert_close(channel, expected)


def test_blur_is_a_sum_over_neighbours_with_gaussian_weights_and_zeros_outside():
    images, sigma = noise(2, 42, 40), torch.tensor([0.3, 1.9])
    radius = 42 // 10 // 2
    weights = [[math.exp(-(d**2) / (2 * s**2)) for d in range(-radius, radius + 1)] for s in sigma.tolist()]
    blurred = blur(images, sigma)
    for number, (y, x) in ((0, (20, 20)), (1, (20, 21)), (1, (0, 0)), (1, (41, 39)), (0, (1, 39))):
        taps = [w / sum(weights[number]) for w in weights[number]]
        total = torch.zeros(3)
        for dy in range(-radius, radius + 1):
            for dx in range(-radius, radius + 1):
                if 0 <= y + dy < 42 and 0 <= x + dx < 40:
                    total += taps[dy + radius] * taps[dx + radius] * images[number, :, y + dy, x + dx]
        torch.testing.assert_close(blurred[number, :, y, x], total, atol=1e-6, rtol=1e-5)


def test_the_kernel_has_23_taps_at_224_pixels():
    spot = torch.zeros(1, 3, 224, 224)
    spot[..., 112, 112] = 1
    rows = (blur(spot, torch.tensor([2.0])) > 0)[0, 0].any(1)
    assert int(rows.sum()) == 23


def test_crops_have_the_area_and_aspect_of_the_paper():
    crops = [draw_crop(224, 224, generator(seed)) for seed in range(2000)]
    area = np.array([height * width / 224**2 for _, _, height, width in crops])
    aspect = np.array([width / height for _, _, height, width in crops])
    assert 0.075 < area.min() < 0.1
    assert area.max() > 0.9
    assert 0.73 < aspect.min() < 0.77 < 1.3 < aspect.max() < 1.37
    assert all(0 <= top <= 224 - height and 0 <= left <= 224 - width for top, left, height, width in crops)
    assert {top + height == 224 for top, _, height, _ in crops} == {True, False}


def test_an_image_into_which_no_crop_fits_is_taken_whole():
    assert draw_crop(1, 400, generator(0)) == (0, 0, 1, 400)


def pictures(number=4, channels=3, height=30, width=40) -> torch.Tensor:
    return torch.randint(0, 256, (number, channels, height, width), dtype=torch.uint8, generator=generator("pictures"))


@pytest.mark.parametrize("blur", [False, True])
@pytest.mark.parametrize("size", [5, 20, 32])
def test_views_have_the_size_asked_for_and_stay_between_0_and_1(blur, size):
    views = SimCLRTransform(size, blur=blur)(pictures(20), generator(0))
    assert views.shape == (20, 3, size, size)
    assert views.dtype == torch.float32
    assert 0 <= views.min() < views.max() <= 1
    assert views.isfinite().all()


def test_one_generator_state_gives_the_same_views_and_the_global_state_stays():
    transform, state = SimCLRTransform(20, blur=True), torch.get_rng_state()
    one, same, other = (transform(pictures(), generator(seed)) for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert torch.equal(state, torch.get_rng_state())


def test_one_image_is_a_batch_of_one_and_a_list_is_a_batch():
    transform, images = SimCLRTransform(20, blur=True), pictures()
    assert torch.equal(transform(images[0], generator(0)), transform(images[:1], generator(0))[0])
    assert torch.equal(transform(list(images), generator(0)), transform(images, generator(0)))
    assert transform(images[:0], generator(0)).shape == (0, 3, 20, 20)


def test_copies_of_an_image_become_different_views():
    views = SimCLRTransform(20)(pictures(1).expand(40, -1, -1, -1), generator(0))
    assert len({view.numpy().tobytes() for view in views}) == 40


def test_one_channel_becomes_three():
    views = SimCLRTransform(20, strength=0)(pictures(8, channels=1), generator(0))
    assert views.shape == (8, 3, 20, 20)
    torch.testing.assert_close(views[:, 0], views[:, 1])


def test_a_fifth_of_the_views_is_grey_and_four_fifths_are_jittered():
    images = torch.tensor([200, 100, 50], dtype=torch.uint8)[:, None, None].expand(2000, 3, 12, 12)
    views = SimCLRTransform(8)(images, generator(0)).mean((2, 3))
    grey = (views.amax(1) - views.amin(1)) < 1e-5
    assert 0.15 < grey.float().mean() < 0.27  # jitter alone clips some to one colour
    kept = (views - torch.tensor([200, 100, 50]) / 255).abs().amax(1) < 1e-4
    assert 0.12 < kept.float().mean() < 0.2  # 0.2 not jittered, of which 0.8 are not grey: 0.16


def test_without_strength_and_grey_a_view_is_a_part_of_the_image_or_its_mirror_image():
    ramp = torch.arange(200, dtype=torch.uint8).expand(3, 200, 200)  # brighter to the right
    views = SimCLRTransform(20, strength=0)(ramp.expand(60, -1, -1, -1), generator(0))[:, 0]
    slope = (views[:, :, -1] - views[:, :, 0]).mean(1)
    assert 15 < int((slope > 0).sum()) < 45
    assert (slope.abs() > 0.05).all()


@pytest.mark.parametrize(
    ("options", "message"), [({"image_size": 0}, r"`image_size` \(0\)"), ({"strength": -1.0}, r"`strength` \(-1\)")]
)
def test_senseless_options_are_refused(options, message):
    with pytest.raises(InvalidInput, match=message):
        SimCLRTransform(**({"image_size": 8} | options))
