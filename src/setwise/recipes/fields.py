"""The fields of a recipe in groups, one group a part of a run; the sentence under a field is its help.

Those of how a network is trained are in :mod:`setwise.recipes.training_fields`. Nothing here imports more than the
standard library.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = [
    "Backbone",
    "Before",
    "Contrast",
    "Criterion",
    "Data",
    "Episodes",
    "Groups",
    "Head",
    "Relation",
]


@dataclass(frozen=True, kw_only=True)
class Data:
    """What is learned from."""

    name: str = "image-folder"
    """Data set, one of `setwise list datasets`."""
    root: str | None = None
    """Folder of the data set; not needed for the embedded digits."""
    train_list: str | None = None
    """image-list: file with one "path label" line per training image, paths relative to the root."""
    val_list: str | None = None
    """image-list: the same for validation; without it a part of train is held out."""
    test_list: str | None = None
    """image-list: the same for test."""
    multi_label: bool = False
    """image-list: every line may carry several labels ("path 3 17 42")."""
    imbalance_factor: float | None = None
    """Largest class over smallest, where the set is made long-tailed here; 1 keeps it balanced."""
    val_fraction: float = 0.1
    """Part of every training class held out for validation where the set brings none (at least one image of a class
    that has two or more)."""
    image_size: int | None = None
    """Side in pixels of what the network sees; None: the images' own size."""
    normalise: Literal["imagenet", "inaturalist2018", "backbone"] | None = None
    """Whose mean and deviation the pixels are normalised with; backbone: those that timm names for its weights. None:
    backbone with --backbone.pretrained, else the data set's own."""
    augment: str = "none"
    """Training augmentation, one of `setwise list transforms`."""
    views: tuple[str, ...] = ()
    """Further augmentations of each training image, a view each beside `augment`. PaCo and GLMC: one."""
    mixup: float = 0.0
    """Alpha of mixup's Beta distribution; 0 switches it off. DeiT: 0.8."""
    cutmix: float = 0.0
    """Alpha of CutMix's Beta distribution; 0 switches it off. DeiT: 1."""
    sampler: Literal["shuffle", "class-balanced", "square-root", "class-aware", "progressive", "meta"] = "shuffle"
    """Which images a training epoch shows: each once; by classes alike, or by the roots of their sizes; four of every
    class in turn; from as they occur to all classes alike over the epochs; or by rates that are learned (meta), on a
    frozen backbone."""
    meta_pool: int = 4
    """meta: images of a batch (of all classes alike) over those that a step learns from, which are drawn from half of
    them; the rates are judged on the other half."""
    meta_rate: float = 1e-3
    """meta: learning rate of the class rates. Official code: 1e-3 on ImageNet-LT, 1e-2 on CIFAR."""
    meta_power: float = 0.1
    """meta: the rates begin with each image as likely as its class's size to the power of minus this: 0 as images
    occur, 1 all classes alike. Official code: 0.1 on ImageNet-LT, 0 on CIFAR."""
    on_error: Literal["raise", "skip"] = "raise"
    """A corrupt or missing image ends the run with its name, or is skipped and counted."""
    cache: Literal["auto", "memory", "files"] = "auto"
    """Decode the set once into memory, read it from files every epoch, or decide by its size."""
    batch_size: int = 128
    """Samples of a training step in each process, which are also the set that the relation sees."""
    micro_batch: int | None = None
    """Samples of which activations are held at a time, exactly, at 4/3 of the time; None: all of the batch."""
    num_workers: int | None = None
    """Processes that read and augment; None: none for sets in memory, else the cores there are. Sets in memory that are
    augmented in whole batches have none: handing a batch over would cost more than making it."""


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """Image -> feature."""

    name: str = "resnet18"
    """Any timm model, or one of ours (`setwise list backbones`)."""
    pretrained: bool = False
    """Load timm's weights (needs a network the first time)."""
    weights: str | None = None
    """Start from one's own weights: a .safetensors, .pt or .pth file; what did not load is printed."""
    needs_weights: bool = False
    """Refuse to begin with random weights; of recipes that fine-tune."""
    frozen: bool = False
    """Train relation and head alone, on a backbone that stays as it was loaded: a second stage."""
    trained: tuple[str, ...] = ()
    """Parts that train, by how the names of their weights begin (layer4.2); beside them norms alone do. None named: all
    of the backbone."""
    pool: Literal["own", "attention"] = "own"
    """attention: pool a convolutional network's last map by one class query in place of its average."""
    options: dict[str, Any] = field(default_factory=dict)
    """Further arguments of the model, as timm names them: drop_path_rate 0.1 ..."""


@dataclass(frozen=True, kw_only=True)
class Before:
    """The stage before this one, which is trained first."""

    use: Literal["start", "teacher"] = "start"
    """What that stage is for: its backbone is where this one starts, or its predictions are what this one's are drawn
    to beside the labels (criterion.teacher)."""
    recipe: str | None = None
    """Recipe of that stage. It gets this one's data set, network, relation, groups, seed and machine, and keeps its
    own augmentation, sampler, frozen parts, head, criterion, optimizer and length. None, or with backbone.weights (for
    a teacher criterion.teacher): no such stage."""
    options: dict[str, Any] = field(default_factory=dict)
    """Fields of that recipe that are to differ, such as trainer.epochs 30 or optimizer.lr 0.05; of a teacher also
    those of its network, backbone.options.num_experts 6."""


@dataclass(frozen=True, kw_only=True)
class Relation:
    """Who learns from whom."""

    name: Literal["batchformer", "none"] = "batchformer"
    """The module between backbone and head; none is the plain model."""
    attend: Literal["all", "self", "same-class", "other-class", "shuffled", "uniform"] = "all"
    """Whom a sample may attend to in training. shuffled: the same-class pattern of permuted labels; uniform: all, with
    equal weights."""
    num_heads: int | None = None
    """Attention heads; None: the largest divisor of the width up to 4. Paper: 4."""
    num_layers: int = 1
    """Encoder layers. Paper: 1."""
    mlp_ratio: float = 1.0
    """Width of the feed-forward part over the feature width. Paper: 1."""
    dropout: float = 0.5
    """Dropout on the residual branches and inside the feed-forward part. Paper: 0.5."""
    attention_dropout: float | None = None
    """Dropout on the attention weights; None: as dropout. Above 0 the fused kernels are left."""
    lr_multiplier: float = 1.0
    """Learning rate of the relation over the network's."""
    official_lr: bool = False
    """Official Balanced Softmax code: the relation learns at a tenth of the network's rate."""
    weight_decay: float | None = None
    """Weight decay of the relation; None: the optimizer's."""
    related_weight: float = 1.0
    """Weight of the related stream's loss against the plain stream's 1; the sum is divided by 1 + this weight."""
    official_replace: bool = False
    """Official RIDE code off CIFAR: in training the related features replace the plain ones, so that the classifier
    meets at test what it was not trained on. The paper shares it between both."""
    official_replicas: int = 1
    """Official RIDE code on several GPUs: the relation sees the batch in so many equal parts. The paper: one."""
    official_sum: bool = False
    """Official RIDE code with one classifier for both streams: the sum of their losses in the place of the mean."""
    official_triple_loss: bool = False
    """Official Balanced Softmax code: the loss counts three times."""
    official_small_related: bool = False
    """Official RIDE code on CIFAR: 0.01 x (related + plain) + plain, undivided."""
    num_inducing: int | None = None
    """Relate through so many learned points, for sets of thousands (not exact); None: all to all. Paper: None."""
    memory: int = 0
    """Features of so many past samples that are related to as well, without a gradient; for small batches. Paper: 0."""
    gather: bool = False
    """Relate the samples of all processes, with exact gradients; the set is then devices x batch size."""
    relate_at_test: bool = False
    """Keep the relation at test. Without a memory predictions of a test batch depend on each other (transductive); with
    one, each is related to the memory of training features alone. The paper removes the relation."""


@dataclass(frozen=True, kw_only=True)
class Head:
    """Features -> class scores, one head for both streams."""

    name: Literal["linear", "cosine", "lws", "tau", "routed", "per-class", "cross-transformer", "prototypical"] = (
        "linear"
    )
    """A linear layer; the cosine between feature and class weight times a scale; one learned factor a class on the
    linear head in backbone.weights (lws); that head with its class weights over a power of their length, which
    validation chooses (tau); as many of the experts in backbone.weights as an image needs (routed); for a
    backbone with a query for each class (patchconvnet_s60_multi ...) a linear row of its own for each of these; in
    few-shot tasks attention from the query's locations to the support's, or the distance to a class's mean."""
    scale: float = 30.0
    """Scale of the cosine head. LDAM and RIDE: 30."""
    from_weights: bool = False
    """linear, per-class: begin with the classifier in backbone.weights, which must have these classes, as fine-tuning
    at a small learning rate does; otherwise with random weights."""
    max_norm: float | None = None
    """linear: longest weight that a class may have, held after every step; None: any."""
    max_norm_share: float | None = None
    """linear with from_weights: the same limit, so far from the shortest (0) to the longest (1) class weight that
    training begins with. Weight balancing: 0.1."""
    top_k: int = 30
    """routed: how many of the largest scores decide about the next expert. ResNet-10 and CIFAR: 30, ResNet-50: 50."""
    dim_key: int = 128
    """cross-transformer: width of keys and queries. Paper: 128."""
    dim_value: int = 128
    """cross-transformer: width of values. Paper: 128."""


@dataclass(frozen=True, kw_only=True)
class Episodes:
    """few-shot: what an episode is made of, and how many there are."""

    n_way: int | None = None
    """Classes of an episode; None: drawn for each as Meta-Dataset draws them, 5 to 50."""
    n_shot: int | None = None
    """Support images of a class; None: drawn for each class, unequal ones."""
    n_query: int | None = None
    """Query images of a class; None: up to 10, as many as the smallest class allows."""
    hierarchy: bool = True
    """Draw classes that belong together (an alphabet, a branch of the class graph) where the data says so."""
    ignore_hierarchy: float = 0.0
    """Part of the training episodes whose classes are drawn from all. CrossTransformers on ImageNet: 0.5."""
    simclr_fraction: float = 0.0
    """Part of the training episodes that are SimCLR episodes: each support image its own class, and augmented copies
    the queries. CrossTransformers: 0.5."""
    contrastive_weight: float = 0.0
    """Weight of SimCLR's loss between two views of the support images, beside the episode's own loss; what SimCLR
    episodes stand in for. CrossTransformers: 0."""
    sources: tuple[str, ...] = ()
    """meta-dataset, several sets below the root: the sets to train on; none named: all that have training classes."""
    train: int = 500
    """Training episodes of an epoch; each is one step."""
    val: int = 100
    """Validation episodes, the same ones in every epoch. Paper: 600."""
    test: int = 600
    """Test episodes, the same ones for every recipe of a seed. Paper: 600."""
    moments: Literal["support", "all"] = "support"
    """Whose mean and variance batch norms take in training: the support set's (queries are normalised by them and do
    not see each other, as the authors do), or all images'."""
    test_moments: Literal["running", "support"] = "running"
    """The same at test: the running averages (CrossTransformers), or the episode's support set."""
    freeze_trunk: bool = False
    """Train the head alone, on a trunk that stays as it was loaded."""


@dataclass(frozen=True, kw_only=True)
class Criterion:
    """Class scores and targets -> loss."""

    name: str = "cross-entropy"
    """One of `setwise list criteria`."""
    label_smoothing: float = 0.0
    """Cross-entropy: part of the target spread over all classes. DeiT: 0.1."""
    class_weights: str = "none"
    """none; auto (inverse frequency); effective-number (Cui et al. 2019, beta 0.9999); or by name: "cat=2,dog=0.5"."""
    reweight_epoch: int | None = None
    """Deferred re-weighting: class weights count from this epoch (0-based) on. LDAM-DRW, 200 epochs: 160."""
    max_margin: float = 0.5
    """LDAM: margin of the rarest class, in units of the cosine where the head is one. Paper: 0.5."""
    gamma: float = 2.0
    """Focal loss: exponent of (1 - p). Paper: 2."""
    diversity: float = 0.2
    """RIDE: weight of the reward for experts that differ from their mean. Official code: 0.2, on CIFAR 0.45."""
    teacher: str | None = None
    """Folder of a finished run on the same classes, whose scores are to be matched beside the labels."""
    teacher_temperature: float = 1.5
    """Divides teacher's and student's scores before they are compared. RIDE: 1.5."""
    temperature_factor: float = 0.05
    """RIDE: how far the reward's temperature follows class sizes, 0..1. ImageNet-LT: 0.02, iNaturalist: 0.015."""
    temperature: float = 0.2
    """PaCo: the cosines of features are divided by it. ResNet-50: 0.2, ResNeXt-50: 0.07, CIFAR: 0.05."""
    alpha: float = 0.05
    """PaCo: weight of a feature of the same class against 1 of the class centre. Paper: 0.05, CIFAR 0.01."""
    consistency: float = 4.0
    """GLMC: weight of the likeness of both mixtures. Authors: 4; CIFAR-10 1 to 4, ImageNet-LT 10."""
    label_power: float = 1.2
    """GLMC: classes weigh by the number of their images to the power of minus this. Authors: 1.2, ImageNet-LT 1."""
    mixture: float = 1.0
    """GLMC: alpha of the Beta distribution of mixup and CutMix. Authors: 1."""


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """paco: what samples are compared with, the keys of a momentum encoder and past keys."""

    dim: int = 128
    """Width of queries and keys. PaCo: 128, CIFAR 32."""
    queue: int = 8192
    """Past keys that are kept. PaCo: 8192, CIFAR 1024."""
    momentum: float = 0.999
    """Part of itself that the momentum encoder keeps in a step. PaCo: 0.999."""


@dataclass(frozen=True, kw_only=True)
class Groups:
    """Which classes are many-, medium- and few-shot, from the training counts."""

    by: Literal["count", "rank"] = "count"
    """Thresholds on the number of training images, or on the rank of a class."""
    many: int = 100
    """count: classes with more training images than this are many-shot. rank: so many of the largest classes."""
    few: int = 20
    """count: classes with fewer training images than this are few-shot. rank: so many of the smallest classes."""
