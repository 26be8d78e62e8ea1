"""Training augmentations: 8-bit images in, one 8-bit batch out.

A transform has up to two steps. The batched step moves a whole batch with a few tensor operations, which is what keeps
two cores ahead of a small network; the per-image step is torchvision's, one image at a time. Neither touches the
global random state: a batch is drawn from a generator keyed by (seed, "augment", epoch, step), an image by
(seed, "augment", epoch, index) and how often it has been shown in the epoch. Further views of the same images have a
purpose of their own in the key.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Bool, Float32, Int64, UInt8
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from setwise.errors import DataError
from setwise.seeds import generator, key

__all__ = ["TRANSFORMS", "Transform", "crop_and_flip", "fit_image", "fit_to", "fit_whole", "normalise", "to_grey"]

Size = tuple[int, int]
"""Height and width."""

CIFAR_PAD = 4
ROTATION_DEGREES = 15
CUTOUT_SIDE = 16

BLUR_SIGMA = (0.1, 2.0)
BLUR_TAPS = 13
"""In pixels; the kernel reaches three times the widest deviation."""
GREY_PROBABILITY = 0.2
BLUR_PROBABILITY = 0.5
"""Of SimCLR's views."""

RESIZE_OVER_CROP = 256 / 224
"""ImageNet's evaluation: shorter side to 256 pixels, then the central 224."""


@dataclass(frozen=True, kw_only=True)
class Transform:
    """An entry of the table ``TRANSFORMS``: how training images vary."""

    summary: str
    source: str
    batched: Callable[[Tensor, torch.Generator], Tensor] | None = None
    """``[B, C, H, W] -> [B, C, H, W]``."""
    per_image: Callable[[Size], Callable[[Tensor], Tensor]] | None = None
    """From the height and width that the network sees to a function of one image."""
    chooses_crop: bool = False
    """The per-image step takes images of any size and crops them itself."""

    def __call__(
        self,
        images: UInt8[Tensor, "b c _ _"] | list[UInt8[Tensor, "_ _ _"]],
        *,
        image_size: int | None,
        seed: int,
        epoch: int,
        step: int,
        index: Int64[Tensor, "b"],
        turns: Int64[Tensor, "b"] | None = None,
        view: int = 0,
    ) -> UInt8[Tensor, "b c h w"]:
        """Augment the images of one batch.

        Args:
            images: stacked, or of different sizes.
            image_size: side of what the network sees; None: the images' own size.
            seed: of the run.
            epoch: 0-based.
            step: number of the batch in its epoch.
            index: places of the images in their split.
            turns: how often each has been shown before in the epoch; None: never.
            view: number of the view, for images that are seen in several ways; each draws by itself.

        Raises:
            DataError: if the images differ in size and no ``image_size`` is given.
        """
        purpose = f"augment, view {view}" if view else "augment"
        if not self.chooses_crop or image_size is None:  # without one all must be of one size already
            images = fit_to(images, image_size)
        if self.batched is not None:
            assert isinstance(images, Tensor), "a batched step needs images of one size"
            images = self.batched(images, generator(seed, purpose, epoch, step))
        if self.per_image is None:
            assert isinstance(images, Tensor)
            return images
        height, width = images[0].shape[-2:]
        change = self.per_image((image_size or height, image_size or width))
        changed = []
        with torch.random.fork_rng(devices=[]):
            # The first showing has the key that it has where nothing is repeated.
            again = [[turn] if turn else [] for turn in ([0] * len(index) if turns is None else turns.tolist())]
            for image, place, turn in zip(images, index.tolist(), again, strict=True):
                drawn_by = key(seed, purpose, epoch, place, *turn)
                torch.default_generator.manual_seed(drawn_by)  # torch's manual_seed would reseed GPUs
                changed.append(change(image))
        return torch.stack(changed)


def fit_to(
    images: UInt8[Tensor, "b c _ _"] | Sequence[UInt8[Tensor, "_ _ _"]], image_size: int | None
) -> UInt8[Tensor, "b c h w"]:
    """Bring images to one size without chance: what evaluation does.

    An image that has the size already is not touched. Any other is resized until its shorter side has 256/224 of
    ``image_size``, and its centre cropped.

    Raises:
        DataError: if the images differ in size and no ``image_size`` is given.
    """
    if isinstance(images, Tensor):
        return fit_image(images, image_size)
    fitted = [fit_image(image, image_size) for image in images]
    shapes = sorted({tuple(image.shape[-2:]) for image in fitted})
    if len(shapes) > 1:
        raise DataError(
            f"Images of one batch differ in size ({shapes[0]} and {shapes[-1]}, height and width); give the side that "
            "the network shall see, for instance --data.image-size 224."
        )
    return torch.stack(fitted)


def fit_image(image: UInt8[Tensor, "*b c _ _"], image_size: int | None) -> UInt8[Tensor, "*b c h w"]:
    """Evaluation's resize and centre crop of an image, or of several of one size."""
    if image_size is None or image.shape[-2:] == (image_size, image_size):
        return image
    resized = tv.resize(image, [round(image_size * RESIZE_OVER_CROP)], antialias=True)
    return tv.center_crop(resized, [image_size, image_size])


def fit_whole(image: UInt8[Tensor, "c _ _"], image_size: int) -> UInt8[Tensor, "c h w"]:
    """An image whose shorter side has ``image_size`` pixels, nothing cut off; for networks that take any size."""
    return tv.resize(image, [image_size], antialias=True)


def to_grey(image: UInt8[Tensor, "3 _ _"], image_size: int | None) -> UInt8[Tensor, "1 h w"]:
    """One channel of ``image_size`` pixels a side (None: as it is), for networks that were trained on grey images."""
    return fit_image(tv.rgb_to_grayscale(image), image_size)


def normalise(
    images: UInt8[Tensor, "b _ h w"], *, mean: Sequence[float], std: Sequence[float]
) -> Float32[Tensor, "b c h w"]:
    """From bytes to zero mean and unit deviation; ``mean`` and ``std`` are of pixels in 0..1, one for each channel.

    Images of one channel get as many equal ones as there are means: those of grey sets stay small until here.
    """
    shift = torch.tensor(mean)[:, None, None] * 255
    scale = 1 / (torch.tensor(std)[:, None, None] * 255)
    return images.expand(-1, len(mean), -1, -1).float().sub_(shift).mul_(scale)


def crop_and_flip(
    images: UInt8[Tensor, "b c h w"],
    *,
    pad: int,
    top: Int64[Tensor, "b"],
    left: Int64[Tensor, "b"],
    flip: Bool[Tensor, "b"],
) -> UInt8[Tensor, "b c h w"]:
    """Pad every image with zeros, cut its old size out again, and mirror some: one gather for the whole batch.

    Args:
        images: a batch.
        pad: pixels added on every side.
        top: first row of every crop, in ``0..2*pad``.
        left: first column of every crop, in ``0..2*pad``.
        flip: which crops to mirror left to right.
    """
    height, width = images.shape[-2:]
    column = torch.arange(width)
    columns = left[:, None] + torch.where(flip[:, None], width - 1 - column, column)  # [B, W]
    rows = top[:, None] + torch.arange(height)  # [B, H]
    pixel = rows[:, :, None] * (width + 2 * pad) + columns[:, None, :]  # [B, H, W]
    padded = torch.nn.functional.pad(images, (pad, pad, pad, pad)).flatten(2)  # [B, C, (H+2p)*(W+2p)]
    return padded.gather(2, pixel.flatten(1)[:, None].expand(-1, images.shape[1], -1)).view_as(images)


def random_crop(images: Tensor, rng: torch.Generator, *, pad: int, mirror: bool) -> Tensor:
    """Draw what :func:`crop_and_flip` does."""
    number = (len(images),)
    return crop_and_flip(
        images,
        pad=pad,
        top=torch.randint(0, 2 * pad + 1, number, generator=rng),
        left=torch.randint(0, 2 * pad + 1, number, generator=rng),
        flip=torch.rand(number, generator=rng) < (0.5 if mirror else 0),
    )


def cutout(image: Tensor) -> Tensor:
    """Blacken one square of 16 pixels whose centre lies anywhere in the image, so that it may be cut by the border."""
    height, width = image.shape[-2:]
    row, column = int(torch.randint(height, ())), int(torch.randint(width, ()))
    image = image.clone()
    half = CUTOUT_SIDE // 2
    image[:, max(row - half, 0) : row + half, max(column - half, 0) : column + half] = 0
    return image


def rotate(size: Size) -> Callable[[Tensor], Tensor]:
    """Rotation by up to 15 degrees either way."""
    return v2.RandomRotation(ROTATION_DEGREES)


def autoaugment(size: Size) -> Callable[[Tensor], Tensor]:
    """AutoAugment's policy for CIFAR-10, then Cutout."""
    return v2.Compose([v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10), cutout])


def resized_crop(size: Size, *extra: Callable[[Tensor], Tensor], smallest: float = 0.08) -> Callable[[Tensor], Tensor]:
    """A random part of the image, brought to the size the network sees and mirrored in half of the cases.

    Args:
        size: of the result.
        extra: what follows.
        smallest: part of the area that is kept at least.
    """
    crop = v2.RandomResizedCrop(size, scale=(smallest, 1.0), antialias=True)
    return v2.Compose([crop, v2.RandomHorizontalFlip(), *extra])


def jitter(hue: float = 0.0) -> Callable[[Tensor], Tensor]:
    """Other brightness, contrast and saturation, by up to 0.4, and another hue."""
    return v2.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=hue)


def simclr_view(size: Size) -> Callable[[Tensor], Tensor]:
    """A random part in other colours, grey or not, blurred or not: the views of large images."""
    return resized_crop(size, jitter(), *grey_and_blur())


def simclr_view_of_cifar(size: Size) -> Callable[[Tensor], Tensor]:
    """A random part of at least a fifth of the area, mostly in other colours, grey or not, blurred or not."""
    return resized_crop(size, v2.RandomApply([jitter(hue=0.1)], p=0.8), *grey_and_blur(), smallest=0.2)


def grey_and_blur() -> list[Callable[[Tensor], Tensor]]:
    """Grey in a fifth of the cases, blurred in half of them."""
    blur = v2.RandomApply([v2.GaussianBlur(BLUR_TAPS, BLUR_SIGMA)], p=BLUR_PROBABILITY)
    return [v2.RandomGrayscale(GREY_PROBABILITY), blur]


def strong_operations(number: int) -> Callable[[Tensor], Tensor]:
    """So many random operations of RandAugment's, at the largest of torchvision's 31 strengths."""
    return v2.RandAugment(num_ops=number, magnitude=30)


def jittered_crop(size: Size) -> Callable[[Tensor], Tensor]:
    """A random part, mirrored or not, in other colours."""
    return resized_crop(size, jitter())


def randaugment(size: Size) -> Callable[[Tensor], Tensor]:
    """A random part, mirrored or not, and two random operations."""
    return resized_crop(size, v2.RandAugment(num_ops=2, magnitude=9))


def strong_jittered_crop(size: Size, *, number: int) -> Callable[[Tensor], Tensor]:
    """A random part, mirrored or not, in other colours, and so many random operations."""
    return resized_crop(size, jitter(), strong_operations(number))


def strong_simclr_view(size: Size, *, number: int) -> Callable[[Tensor], Tensor]:
    """SimCLR's view of a large image, and so many random operations."""
    return v2.Compose([simclr_view(size), strong_operations(number)])


crop_flip = partial(random_crop, pad=CIFAR_PAD, mirror=True)

# Functions with names: where worker processes are spawned, a transform is pickled on its way to them.
TRANSFORMS: dict[str, Transform] = {
    "none": Transform(summary="as in evaluation: resized and centre-cropped if the size differs", source="-"),
    "shift": Transform(
        summary="shifted by up to 1 pixel, zeros move in; for digits, which must not be mirrored",
        source="own choice: one pixel of eight is about how differently two hands place a digit",
        batched=partial(random_crop, pad=1, mirror=False),
    ),
    "crop-flip": Transform(
        summary="4 pixels of zeros around, a random crop of the old size, mirrored or not: the CIFAR recipe",
        source="He et al., CVPR 2016, arXiv:1512.03385, section 4.2",
        batched=crop_flip,
    ),
    "crop-flip-rotate": Transform(
        summary="crop-flip, then rotated by up to 15 degrees",
        source="Wang et al., RIDE, ICLR 2021, arXiv:2010.01809: their code for CIFAR-LT",
        batched=crop_flip,
        per_image=rotate,
    ),
    "cifar-autoaugment": Transform(
        summary="crop-flip, AutoAugment's CIFAR-10 policy, Cutout with one square of 16 pixels",
        source="Cubuk et al., CVPR 2019, arXiv:1805.09501; DeVries and Taylor 2017, arXiv:1708.04552",
        batched=crop_flip,
        per_image=autoaugment,
    ),
    "random-resized-crop": Transform(
        summary="a random part at a random scale, mirrored or not, colours jittered by 0.4",
        source="Kang et al., Decoupling, ICLR 2020, arXiv:1910.09217: their code for ImageNet-LT",
        per_image=jittered_crop,
        chooses_crop=True,
    ),
    "resized-crop": Transform(
        summary="a random part at a random scale, mirrored or not",
        source="Szegedy et al., CVPR 2015, arXiv:1409.4842; what long-tailed recognition takes for iNaturalist 2018",
        per_image=resized_crop,
        chooses_crop=True,
    ),
    "randaugment": Transform(
        summary="a random part at a random scale, mirrored or not, two random operations of magnitude 9",
        source="Cubuk et al., RandAugment, NeurIPS 2020, arXiv:1909.13719; as torchvision implements it",
        per_image=randaugment,
        chooses_crop=True,
    ),
    "jitter-randaugment": Transform(
        summary="random-resized-crop, then two random operations at their full strength: PaCo's queries",
        source="Cui et al., PaCo, ICCV 2021, arXiv:2107.12028: their code has timm's rand-n2-m10; torchvision's here",
        per_image=partial(strong_jittered_crop, number=2),
        chooses_crop=True,
    ),
    "simclr": Transform(
        summary="a random part, mirrored or not, colours jittered by 0.4, grey in 1 of 5 cases, blurred in 1 of 2",
        source="Chen et al., SimCLR, ICML 2020, arXiv:2002.05709, in the form of PaCo's code for ImageNet-LT",
        per_image=simclr_view,
        chooses_crop=True,
    ),
    "simclr-cifar": Transform(
        summary="the same of at least a fifth of the area, colours (hue by 0.1, too) jittered in 4 of 5 cases",
        source="Chen et al., SimCLR, ICML 2020, arXiv:2002.05709, in the form of PaCo's code for CIFAR",
        per_image=simclr_view_of_cifar,
        chooses_crop=True,
    ),
    "simclr-randaugment": Transform(
        summary="simclr, then two random operations at their full strength: PaCo's queries for ResNeXt-50",
        source="Cui et al., PaCo, ICCV 2021, arXiv:2107.12028: their code has timm's rand-n2-m10; torchvision's here",
        per_image=partial(strong_simclr_view, number=2),
        chooses_crop=True,
    ),
    "simclr-randaugment3": Transform(
        summary="simclr, then three random operations at their full strength: PaCo's queries for ResNeXt-101",
        source="Cui et al., PaCo, ICCV 2021, arXiv:2107.12028: their code has timm's rand-n3-m10; torchvision's here",
        per_image=partial(strong_simclr_view, number=3),
        chooses_crop=True,
    ),
}
"""Training augmentations by name; evaluation always uses "none"."""
