"""Balanced Softmax, and features first, classifier second, on ImageNet-LT, iNaturalist 2018 and Places-LT.

Settings are those of Balanced Softmax's files, where all norms begin at 1. What none of them says is ours: that cRT,
LWS and tau have the settings of their decoupled Balanced Softmax, and the network of Places-LT has ImageNet's weights,
where theirs came from a file of their own.
"""

from dataclasses import replace

from setwise.recipes.long_tailed import BALANCED_SOFTMAX, BATCHFORMER, SECOND_STAGE, SMOKE_BEFORE, SMOKE_TIMM, TAU
from setwise.recipes.published import IMAGENET_LT, INATURALIST_2018, PLACES_LT
from setwise.recipes.schema import Backbone, Before, Criterion, Optimizer, Recipe, Trainer

__all__ = ["BALANCED"]

NORMS_AT_ONE = {"zero_init_last": False}
"""timm's ResNets begin with the last norm of each block at 0."""
RESNET_10 = Backbone(name="resnet10t", options={"stem_type": "", "stem_width": 64, "avg_down": False} | NORMS_AT_ONE)
"""timm's, whose stem and shortcuts are others, with those of a plain ResNet."""

IMAGENET_10 = Recipe(
    name="imagenet-lt-balanced-softmax-resnet10",
    summary="ImageNet-LT, Balanced Softmax, ResNet-10, 90 epochs",
    data=IMAGENET_LT,
    backbone=RESNET_10,
    criterion=Criterion(name="balanced-softmax"),
    optimizer=Optimizer(lr=0.05, weight_decay=5e-4),
    trainer=Trainer(epochs=90),
    num_seeds=3,
    paper=f"{BATCHFORMER}; {BALANCED_SOFTMAX}",
    smoke=SMOKE_TIMM,
)
IMAGENET_50 = IMAGENET_10.override(
    {
        "name": "imagenet-lt-balanced-softmax-resnet50",
        "summary": "ImageNet-LT, Balanced Softmax, ResNet-50, 90 epochs",
        "backbone": Backbone(name="resnet50", options=NORMS_AT_ONE),
    }
)
INATURALIST_50 = IMAGENET_50.override(
    {
        "name": "inaturalist-balanced-softmax-resnet50",
        "summary": "iNaturalist 2018, Balanced Softmax, ResNet-50, 90 epochs",
        **INATURALIST_2018,
        "data.augment": "resized-crop",
        "optimizer.weight_decay": 1e-4,
    }
)
# The classifier alone, on a network that is named with --backbone.weights or --backbone.pretrained; their file's
# class-aware sampler with batches of 128 is a slip by its authors' word.
PLACES_152 = IMAGENET_50.override(
    {
        "name": "places-lt-balanced-softmax-resnet152",
        "summary": "Places-LT, Balanced Softmax, a classifier on a frozen ResNet-152 with --backbone.pretrained",
        "data": replace(PLACES_LT, batch_size=256),
        "backbone": Backbone(name="resnet152.tv_in1k", frozen=True),
        "optimizer.lr": 0.02,
        "smoke": SMOKE_TIMM | {"backbone.frozen": False},  # the tests have no weights to start from
    }
)

FEATURES = {"criterion.name": "cross-entropy", "optimizer.lr": 0.2, "data.batch_size": 512}
"""Of their first stage, beside what it has in common with Balanced Softmax's own run."""

IMAGENET_CRT = IMAGENET_10.override(
    {
        **SECOND_STAGE,
        "name": "imagenet-lt-crt",
        "summary": "ImageNet-LT, ResNet-10, in two stages: cross-entropy, then a fresh classifier, drawn evenly (cRT)",
        "before": Before(recipe=IMAGENET_10.name, options=FEATURES),
        "criterion": Criterion(),
        "optimizer": Optimizer(lr=0.4, weight_decay=5e-4),
        "trainer": Trainer(epochs=10),
        "smoke": IMAGENET_10.smoke | SMOKE_BEFORE,
    }
)
IMAGENET_LWS = IMAGENET_CRT.override(
    {
        "name": "imagenet-lt-lws",
        "summary": "ImageNet-LT, ResNet-10, in two stages: cross-entropy, then a factor a class (LWS)",
        "head.name": "lws",
    }
)
IMAGENET_TAU = IMAGENET_CRT.override(
    {
        "name": "imagenet-lt-tau",
        "summary": "ImageNet-LT, ResNet-10, in two stages: cross-entropy, then class weights made more alike (tau)",
        **TAU,
    }
)

# Their own second stage: Balanced Softmax on images as they occur.
IMAGENET_DECOUPLED = IMAGENET_CRT.override(
    {
        "name": "imagenet-lt-decoupled-balanced-softmax",
        "summary": "ImageNet-LT, ResNet-10, in two stages: cross-entropy, then a classifier with Balanced Softmax",
        "data.sampler": "shuffle",
        "criterion": IMAGENET_10.criterion,
        "paper": IMAGENET_10.paper,
    }
)

# The learned sampler takes batches of 1,024, halved; a step learns from 128 images of one half. 20 epochs of 905 steps
# are 160 of 113.
IMAGENET_META = IMAGENET_DECOUPLED.override(
    {
        "name": "imagenet-lt-balms",
        "summary": "ImageNet-LT, ResNet-10, in two stages: cross-entropy, then a learned sampler (BALMS)",
        "data.sampler": "meta",
        "data.batch_size": 1024,
        "data.meta_pool": 8,
        "optimizer": Optimizer(lr=0.125, weight_decay=5e-4),
        "trainer": Trainer(epochs=160, val_every=20),
        "smoke": IMAGENET_10.smoke | SMOKE_BEFORE | {"data.batch_size": 64},  # of which a step learns from eight
    }
)

BALANCED = (
    IMAGENET_10,
    IMAGENET_50,
    INATURALIST_50,
    PLACES_152,
    IMAGENET_CRT,
    IMAGENET_LWS,
    IMAGENET_TAU,
    IMAGENET_DECOUPLED,
    IMAGENET_META,
)
