"""What several recipes of published long-tailed sets have in common: their lists, and how numbers are reported."""

from dataclasses import replace
from typing import Any

from setwise.recipes.schema import Data, Reported, Variant

__all__ = ["IMAGENET_LT", "INATURALIST_2018", "PLACES_LT", "of_groups"]

IMAGENET_LT = Data(
    name="image-list",
    root="data/imagenet",
    train_list="ImageNet_LT_train.txt",
    val_list="ImageNet_LT_val.txt",
    test_list="ImageNet_LT_test.txt",
    image_size=224,
    augment="random-resized-crop",
    batch_size=128,
)

PLACES_LT = replace(
    IMAGENET_LT,
    root="data/places",
    train_list="Places_LT_train.txt",
    val_list="Places_LT_val.txt",
    test_list="Places_LT_test.txt",
)

# Its validation part is what everybody tests on; ours is held out of train.
INATURALIST_2018: dict[str, Any] = {
    "data.root": "data/inaturalist2018",
    "data.train_list": "iNaturalist18_train.txt",
    "data.val_list": None,
    "data.test_list": "iNaturalist18_val.txt",
    "data.normalise": "inaturalist2018",
}
"""What makes a recipe of ImageNet-LT one of iNaturalist."""


def of_groups(source: str, *, plain: tuple[float, ...], related: tuple[float, ...]) -> tuple[Reported, ...]:
    """Accuracy of all, many-, medium- and few-shot classes in percent, without and with BatchFormer."""
    variants: dict[Variant, tuple[float, ...]] = {"plain": plain, "related": related}
    return tuple(
        Reported(metric=metric, variant=variant, value=round(value / 100, 4), source=source)
        for variant, values in variants.items()
        for metric, value in zip(("accuracy", "many", "medium", "few"), values, strict=True)
    )
