"""Imbalanced image classification: the recipes of the main job."""

from setwise.recipes.schema import (
    Backbone,
    Before,
    Criterion,
    Data,
    Groups,
    Optimizer,
    Ran,
    Recipe,
    Reported,
    Trainer,
)

__all__ = ["LONG_TAILED"]

BATCHFORMER = "Hou, Yu, Tao: BatchFormer, CVPR 2022, https://arxiv.org/abs/2203.01522"
BALANCED_SOFTMAX = "Ren et al.: Balanced Meta-Softmax, NeurIPS 2020, https://arxiv.org/abs/2007.10740"
SMOKE = {"data.batch_size": 8, "trainer.max_steps": 2, "trainer.epochs": 1, "trainer.logger": ("csv",)}
SMOKE_BEFORE = {"before.options": {"data.batch_size": 8, "trainer.epochs": 1}}
"""Beside it, of a recipe in stages: those of the first."""
SMOKE_CIFAR = SMOKE | {"backbone.options": {"width": 4, "depth": 1}}
SMOKE_TIMM = SMOKE | {"backbone.name": "test_resnet", "data.image_size": 32}

DIGITS = Recipe(
    name="digits-lt",
    summary="scikit-learn's 8x8 digits made long-tailed (imbalance 50): the embedded example, two seconds a run",
    data=Data(name="digits-lt", imbalance_factor=50.0, augment="shift", batch_size=64),
    backbone=Backbone(name="digits_cnn"),
    optimizer=Optimizer(lr=0.1, weight_decay=5e-4),
    trainer=Trainer(epochs=60, val_every=60, checkpoint_every=20, accelerator="cpu"),
    groups=Groups(by="rank", many=3, few=3),
    num_seeds=50,
    paper=BATCHFORMER,
    ran=(
        Ran(
            command="setwise compare digits-lt",
            commit="e322a1e0b3a0",
            result="+0.6 [+0.1, +1.1], 50 seeds",
            details="benchmarks/results/long_tailed.md",
        ),
    ),
    smoke=SMOKE | {"backbone.options": {"width": 4}},
)

# The settings of BatchFormer's and Balanced Softmax's CIFAR-100-LT runs, over 200 epochs of 128 as most of the
# literature trains (theirs: 13,000 iterations of 512, about 591 epochs, with AutoAugment and Cutout).
CIFAR100 = Recipe(
    name="cifar100-lt",
    summary="CIFAR-100-LT (imbalance 100), ResNet-32, cross-entropy, 200 epochs",
    data=Data(name="cifar100-lt", root="data/cifar100-lt", augment="crop-flip", batch_size=128),
    backbone=Backbone(name="cifar_resnet32"),
    optimizer=Optimizer(lr=0.1, weight_decay=5e-4, warmup_epochs=5),
    trainer=Trainer(epochs=200, val_every=10),
    num_seeds=5,
    paper=BATCHFORMER,
    reported=(
        Reported(
            metric="accuracy",
            variant="plain",
            value=0.385,
            source="long-tailed literature, cross-entropy, ResNet-32: 38 to 39 %, on the whole official test set",
        ),
    ),
    smoke=SMOKE_CIFAR,
)

CIFAR100_BALANCED = CIFAR100.override(
    {
        "name": "cifar100-lt-balanced-softmax",
        "summary": "CIFAR-100-LT (imbalance 100), ResNet-32, Balanced Softmax, 200 epochs",
        "criterion": Criterion(name="balanced-softmax"),
        "paper": f"{BATCHFORMER}; {BALANCED_SOFTMAX}",
        "reported": (),
    }
)
# 13,000 iterations of 512: with --select-on test, which trains on all 10,847 images as the authors do, an epoch has 21
# (theirs 22, the last one small), so 619 epochs. The rate rises over 38 of them from 0.05 to 0.1. With a tenth held out
# for validation an epoch has 19, and the whole 11,761.
CIFAR100_BALANCED_LONG = CIFAR100_BALANCED.override(
    {
        "name": "cifar100-lt-balanced-softmax-long",
        "summary": "CIFAR-100-LT, ResNet-32, Balanced Softmax, its authors' schedule: AutoAugment, 619 epochs of 512",
        "data.augment": "cifar-autoaugment",
        "data.batch_size": 512,
        "optimizer.warmup_epochs": 38,
        "optimizer.warmup_start": 0.5,
        "trainer.epochs": 619,
        "reported": (
            Reported(
                metric="accuracy",
                variant="plain",
                value=0.508,
                source="Ren et al.: AutoAugment, 13,000 iterations of 512, on the whole official test set",
            ),
        ),
    }
)

# A schedule that fits a machine without a GPU; its numbers are not set beside the literature's.
SHORT = {"trainer.epochs": 30, "trainer.val_every": 30, "optimizer.warmup_epochs": 2, "num_seeds": 3, "reported": ()}
CIFAR100_SHORT = CIFAR100.override(
    {
        "name": "cifar100-lt-short",
        "summary": "CIFAR-100-LT, ResNet-32, cross-entropy, a short schedule of 30 epochs for machines without a GPU",
        **SHORT,
        "trainer.precision": "bf16-mixed",
        "ran": (
            Ran(
                command="setwise compare cifar100-lt-short --data.root DIR",
                commit="08a558cd7c96",
                result="+0.4 [-1.2, +2.1], 3 seeds",
                details="benchmarks/results/long_tailed.md",
            ),
            Ran(
                command="setwise compare cifar100-lt-short --data.root DIR "
                "--tune optimizer.weight_decay=5e-4,1e-3,2e-3",
                commit="8a593d072785",
                result="+0.3 [-0.2, +1.0], 3 seeds",
                details="benchmarks/results/long_tailed.md",
            ),
        ),
    }
)
CIFAR100_BALANCED_SHORT = CIFAR100_SHORT.override(
    {
        "ran": (
            Ran(
                command="setwise compare cifar100-lt-balanced-softmax-short --data.root DIR",
                commit="1229e654c894",
                result="+0.2 [-3.2, +2.4], 3 seeds",
                details="benchmarks/results/long_tailed.md",
            ),
        ),
        "name": "cifar100-lt-balanced-softmax-short",
        "summary": "CIFAR-100-LT, ResNet-32, Balanced Softmax, a short schedule of 30 epochs",
        "criterion": Criterion(name="balanced-softmax"),
        "paper": CIFAR100_BALANCED.paper,
    }
)

CIFAR10 = CIFAR100.override(
    {
        "name": "cifar10-lt",
        "summary": "CIFAR-10-LT (imbalance 100), ResNet-32, cross-entropy, 200 epochs",
        "data.name": "cifar10-lt",
        "data.root": "data/cifar10-lt",
        "reported": (),
    }
)

CIFAR100_LDAM = CIFAR100.override(
    {
        "name": "cifar100-lt-ldam-drw",
        "summary": "CIFAR-100-LT (imbalance 100), ResNet-32, LDAM with deferred re-weighting, 200 epochs",
        "head.name": "cosine",
        "head.scale": 30.0,
        "criterion": Criterion(name="ldam", class_weights="effective-number", reweight_epoch=160),
        "optimizer": Optimizer(
            lr=0.1, weight_decay=2e-4, warmup_epochs=5, schedule="multistep", milestones=(160, 180), gamma=0.01
        ),
        "paper": f"{BATCHFORMER}; Cao et al.: LDAM-DRW, NeurIPS 2019, https://arxiv.org/abs/1906.07413",
        "reported": (),
    }
)

# The second stages of decoupled training, with what the authors of Balanced Softmax set in theirs for CIFAR: lr 0.1 and
# cosine, weight decay 5e-4, 2,000 iterations of 512 (105 epochs of the 9,754 images that are left for training). Theirs
# is cifar100-lt-decoupled-balanced-softmax; that cRT and LWS have these settings, too, is our choice. The first stage
# is cross-entropy: 200 epochs of 128 here, 13,000 iterations of 512 there.
SECOND_STAGE = {
    "before": Before(recipe="cifar100-lt"),
    "data.batch_size": 512,
    "data.sampler": "class-balanced",
    "backbone.frozen": True,
    "optimizer": Optimizer(lr=0.1, weight_decay=5e-4),
    "trainer.epochs": 105,
    "trainer.val_every": 15,
    "paper": f"{BATCHFORMER}; Kang et al.: Decoupling, ICLR 2020, https://arxiv.org/abs/1910.09217",
    "reported": (),
    "smoke": SMOKE_CIFAR | SMOKE_BEFORE,
}
CIFAR100_CRT = CIFAR100.override(
    {
        "name": "cifar100-lt-crt",
        "summary": "CIFAR-100-LT in two stages: cifar100-lt, then a fresh classifier on its frozen backbone (cRT)",
        **SECOND_STAGE,
    }
)
CIFAR100_LWS = CIFAR100_CRT.override(
    {
        "name": "cifar100-lt-lws",
        "summary": "CIFAR-100-LT in two stages: cifar100-lt, then a factor a class on its classifier (LWS)",
        "head.name": "lws",
    }
)

CIFAR100_DECOUPLED = CIFAR100_CRT.override(
    {
        "name": "cifar100-lt-decoupled-balanced-softmax",
        "summary": "CIFAR-100-LT in two stages: cifar100-lt, then a fresh classifier with Balanced Softmax",
        "data.sampler": "shuffle",
        "criterion": Criterion(name="balanced-softmax"),
        "paper": f"{BATCHFORMER}; {BALANCED_SOFTMAX}",
    }
)

# Nothing is trained in the second stage: validation chooses the exponent.
TAU = {
    "head.name": "tau",
    "data.sampler": "shuffle",
    "optimizer": Optimizer(),
    "trainer.epochs": 1,
    "trainer.val_every": 1,
}
CIFAR100_TAU = CIFAR100_CRT.override(
    {
        "name": "cifar100-lt-tau",
        "summary": "CIFAR-100-LT in two stages: cifar100-lt, then class weights over a power of their length (tau)",
        **TAU,
    }
)

# Balanced Meta-Softmax's second stage on CIFAR: the same, with class rates that are learned. A step learns from 512
# images, drawn from half of 2,048; an epoch is 4 steps, so 500 of them are the 2,000.
CIFAR100_META = CIFAR100_DECOUPLED.override(
    {
        "name": "cifar100-lt-balms",
        "summary": "CIFAR-100-LT in two stages: cifar100-lt, then Balanced Softmax with a learned sampler (BALMS)",
        "data.sampler": "meta",
        "data.meta_rate": 1e-2,
        "data.meta_power": 0.0,
        "data.batch_size": 2048,
        "trainer.epochs": 500,
        "trainer.val_every": 50,
    }
)

IMAGE_FOLDER = Recipe(
    name="image-folder",
    summary="your own images: root/train/<class>/, root/val/<class>/, or one folder of class folders",
    data=Data(name="image-folder", root="data", image_size=224, augment="random-resized-crop", batch_size=64),
    backbone=Backbone(name="resnet18"),
    optimizer=Optimizer(lr=0.05, weight_decay=5e-4, warmup_epochs=2),
    trainer=Trainer(epochs=90),
    num_seeds=3,
    paper=BATCHFORMER,
    smoke=SMOKE_TIMM,
)

# Balanced Softmax + BatchFormer as the authors' ImageNet-LT file sets it: lr 0.05, weight decay 5e-4, 90 epochs of 128;
# their relation learns at a tenth of the rate (--relation.official-lr).
IMAGE_LIST = Recipe(
    name="image-list",
    summary='images named by lists of "path label" lines: ImageNet-LT, Places-LT, iNaturalist 2018',
    data=Data(
        name="image-list",
        root="data",
        train_list="train.txt",
        image_size=224,
        augment="random-resized-crop",
        batch_size=128,
    ),
    backbone=Backbone(name="resnet10t"),
    criterion=Criterion(name="balanced-softmax"),
    optimizer=Optimizer(lr=0.05, weight_decay=5e-4),
    trainer=Trainer(epochs=90),
    num_seeds=3,
    paper=f"{BATCHFORMER}; {BALANCED_SOFTMAX}",
    smoke=SMOKE_TIMM,
)

LONG_TAILED = (
    DIGITS,
    CIFAR100,
    CIFAR100_BALANCED,
    CIFAR100_BALANCED_LONG,
    CIFAR100_LDAM,
    CIFAR100_CRT,
    CIFAR100_LWS,
    CIFAR100_TAU,
    CIFAR100_DECOUPLED,
    CIFAR100_META,
    CIFAR100_SHORT,
    CIFAR100_BALANCED_SHORT,
    CIFAR10,
    IMAGE_FOLDER,
    IMAGE_LIST,
)
