"""Classify images with a relation between backbone and head, in training.

Letters: ``B`` samples, ``S`` streams (2 in training with a relation, else 1), ``C`` channels, ``K`` classes.
"""

import warnings
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, cast

import lightning.pytorch as L
import torch
from jaxtyping import Float
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from setwise import seeds
from setwise.data import Batch, BatchOfViews
from setwise.errors import InvalidInput, RunError
from setwise.losses import Criterion, PaCo
from setwise.metrics import adjust, choose_tau, classification_metrics, multilabel_metrics
from setwise.models import limit_norm
from setwise.nn import BatchFormer, Compared, MomentumContrast, in_micro_batches, streams
from setwise.nn.attend import attend_mask
from setwise.nn.gather import gather_objects, gather_set, place

__all__ = ["Classification"]

OptimizerFactory = Callable[[nn.Module, nn.Module | None], tuple[Optimizer, LRScheduler]]


class Classification(L.LightningModule):
    """Train a classifier whose samples learn from each other; predict with the plain one.

    Args:
        backbone: images ``[B, c, H, W]`` -> features ``[B, C]``.
        head: features -> scores ``[B, K]``, shared by both streams; in training also ``[B, E, K]`` of ``E`` experts.
        criterion: ``(logits [N, K], target) -> losses [N]``.
        relation: between backbone and head in training; None: the plain model.
        contrast: with the criterion PaCo: queries, keys and past keys. See :meth:`training_step` for where the relation
            stands then.
        optimizer: factory of optimizer and schedule, called on this module and the relation.
        counts: training images per class ``[K]``.
        groups: name -> classes ``[K]`` boolean, for the metrics of many-, medium- and few-shot classes.
        attend: whom a sample may attend to in training; see :data:`setwise.nn.attend.ATTEND`.
        related_weight: weight of the related stream's loss against the plain stream's 1. Paper: 1.
        loss_factor: of the weighted mean over both streams; some official code counts it more than once. Paper: 1.
        replace: train on the related stream alone, as the official RIDE code does. Paper: both streams.
        relate_at_test: predict from related features (transductive); the paper predicts from plain ones.
        multi_label: targets are ``[B, K]`` and several classes may be right.
        frozen: train relation and head alone, on a backbone that stays as it was loaded.
        max_norm: longest weight of a class in a linear head, held after every step; None: any.
        micro_batch: samples of which the backbone's activations are held at a time; None: all of the batch.
        seed: keys the dropout of every step, so that a resumed run draws what an unbroken one would have drawn.

    Raises:
        InvalidInput: if one of criterion PaCo and ``contrast`` is there without the other.

    Source: Hou, Yu, Tao, BatchFormer, CVPR 2022, arXiv:2203.01522, sections 3.2 and 3.3.
    """

    relation: BatchFormer | None
    criterion: Criterion

    def __init__(
        self,
        backbone: nn.Module,
        head: nn.Module,
        criterion: Criterion,
        relation: BatchFormer | None = None,
        *,
        contrast: MomentumContrast | None = None,
        optimizer: OptimizerFactory,
        counts: Tensor,
        groups: dict[str, Tensor],
        attend: str = "all",
        related_weight: float = 1.0,
        loss_factor: float = 1.0,
        replace: bool = False,
        replicas: int = 1,
        relate_at_test: bool = False,
        multi_label: bool = False,
        frozen: bool = False,
        max_norm: float | None = None,
        micro_batch: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if (contrast is None) == isinstance(criterion, PaCo):
            raise InvalidInput(f"PaCo and `contrast` go together, but the criterion is {type(criterion).__name__}.")
        self.backbone, self.head, self.criterion, self.relation = backbone, head, criterion, relation
        self.contrast = contrast
        self.make_optimizer, self.counts, self.groups = optimizer, counts, groups
        self.attend, self.related_weight, self.relate_at_test = attend, related_weight, relate_at_test
        self.loss_factor, self.replace, self.replicas = loss_factor, replace, replicas
        self.multi_label, self.micro_batch, self.seed = multi_label, micro_batch, seed
        self.frozen, self.max_norm = frozen, max_norm
        if frozen:
            backbone.requires_grad_(False).eval()
        self._curves: dict[str, list[Tensor]] = {}
        self._validation: list[tuple[Tensor, Tensor]] = []
        self._warned = False

    def train(self, mode: bool = True) -> "Classification":
        """Training mode, in which a frozen backbone stays as it was loaded."""
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    def forward(self, image: Float[Tensor, "B c H W"]) -> Float[Tensor, "B K"]:
        """Class scores of images, as they are predicted at test time."""
        z = self.backbone(image)
        if self.relate_at_test and self.relation is not None:
            itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
            z = self.relation.relate(z, itself if self.attend == "self" else None)
        return self.head(z)

    def per_image(self, image: Float[Tensor, "B c H W"]) -> dict[str, Tensor]:
        """What an evaluation keeps of each image: its ``scores``, and what a subclass adds."""
        return {"scores": self(image)}

    def further_metrics(self, found: dict[str, Tensor]) -> dict[str, float]:
        """Metrics of what else :meth:`per_image` gave for a whole part; none here."""
        return {}

    def remarks(self, found: dict[str, Tensor]) -> tuple[str, ...]:
        """Sentences about the same that no metric says; none here."""
        return ()

    def plain(self) -> nn.Sequential:
        """What ships: backbone and head alone, sharing their weights with this task."""
        return nn.Sequential(OrderedDict(backbone=self.backbone, head=self.head))

    def training_step(self, batch: Batch | BatchOfViews, batch_idx: int) -> Tensor:
        """The paper's step: relate the features, score both streams with one head, double the target.

        With ``contrast`` the relation stands at the same place, between the query's pooled feature and the classifier,
        whose weights are PaCo's class centres. Queries are projected from the plain features, and each stream's scores
        stand in one softmax with the same queries and keys. Nobody published code of PaCo with BatchFormer, so this is
        our choice: keys come from an encoder that has no relation, as there is none at test, so a related query would
        be compared with features of another kind; and so plain, control and related model differ in the class scores
        alone.
        """
        z = in_micro_batches(self.backbone, batch.image, self.micro_batch or len(batch.image))  # [B, C]
        compared = self._compare(z, batch)  # before the relation draws its dropout, so that all variants draw alike
        logits = self.head(self._related(z, batch.target, batch_idx))  # [S*B, K]
        losses = self._losses(logits, batch, compared)
        scores = logits.detach() if logits.dim() == 2 else logits.detach().mean(1)  # several experts predict together
        self._keep_curves(scores, losses.detach(), batch.target)
        return self._mean(losses, batch.target)

    def _related(self, z: Float[Tensor, "B C"], target: Tensor, batch_idx: int) -> Float[Tensor, "rows C"]:
        """Both streams ``[S*B, C]``, or the one that replaces the other."""
        if self.relation is None:
            return z
        mask = self._mask(target, batch_idx)
        if self.replicas == 1:
            both = self.relation(z, mask)
            return both[len(z) :] if self.replace else both
        parts = torch.arange(len(z), device=z.device).chunk(self.replicas)
        masks = (None if mask is None else mask[part][:, part] for part in parts)
        related = [self.relation(z[part], m)[len(part) :] for part, m in zip(parts, masks, strict=True)]
        return torch.cat(related if self.replace else [z, *related])

    def _mean(self, losses: Tensor, target: Tensor) -> Tensor:
        """Mean over both streams, by their weights."""
        return self._weighted(losses, target).mean()

    def _weighted(self, losses: Tensor, target: Tensor) -> Float[Tensor, "rows"]:
        """Losses whose mean is that over both streams, by their weights."""
        plain, related = streams.split(losses, like=target)
        if related is None or (self.related_weight, self.loss_factor) == (1, 1):
            return losses
        of_each = 2 * self.loss_factor / (1 + self.related_weight)
        return of_each * torch.cat([plain, self.related_weight * related])

    def _losses(self, logits: Tensor, batch: Batch | BatchOfViews, compared: Compared | None) -> Float[Tensor, "rows"]:
        if compared is not None:
            return cast(PaCo, self.criterion).contrast(logits, batch.target, **compared._asdict())
        return self.criterion(logits, streams.tile(batch.target, like=logits))

    def _compare(self, feature: Float[Tensor, "B C"], batch: Batch | BatchOfViews) -> Compared | None:
        if self.contrast is None:
            return None
        if not isinstance(batch, BatchOfViews):
            raise InvalidInput("PaCo takes its keys from a second view of each image: make_loader(..., views=[...]).")
        return self.contrast(self.backbone, feature, batch.views[0], batch.target, micro_batch=self.micro_batch)

    def _mask(self, target: Tensor, batch_idx: int) -> Tensor | None:
        self._warn_single_class(target)
        relation = self.relation
        gathered = relation is not None and relation.gather and self.attend not in ("all", "uniform")
        everyone = gather_set(target) if gathered else target
        order = seeds.generator(self.seed, "shuffled", self.current_epoch, batch_idx)  # the same on every process
        mask = attend_mask(self.attend, everyone, generator=order)
        first = place()[0] * len(target) if gathered else 0
        return mask if mask is None else mask[first : first + len(target)]  # [B, B] or [B, world_size * B]

    def _warn_single_class(self, target: Tensor) -> None:
        # Asked of the first batch alone: comparing labels waits for the device.
        if self._warned or target.dim() != 1:
            return
        self._warned = True
        if bool((target == target[0]).all()):
            warnings.warn(
                f"All {len(target)} samples of the first batch are of class {int(target[0])}: the relation can learn "
                "nothing across classes. Shuffle the data, or use a larger batch.",
                stacklevel=2,
            )

    def on_train_epoch_start(self) -> None:
        """Tell a deferred criterion which epoch it is."""
        self.criterion.set_epoch(self.current_epoch)

    def on_train_batch_start(self, batch: Batch | BatchOfViews, batch_idx: int) -> None:
        """Key everything random in the step (dropout, stochastic depth) by seed, epoch, step and rank."""
        seeds.reseed(self.seed, "dropout", self.current_epoch, batch_idx, self.global_rank)

    def _keep_curves(self, logits: Tensor, losses: Tensor, target: Tensor) -> None:
        """Loss and accuracy of each stream, kept on the device until the epoch ends."""
        labels = target if target.dim() == 1 else target.argmax(1)
        names = ("related", "") if self.replace and self.relation is not None else ("plain", "related")
        for stream, scores, values in zip(
            names, streams.split(logits, like=target), streams.split(losses, like=target), strict=True
        ):
            if scores is not None and values is not None:
                self._curves.setdefault(f"train/{stream}_loss", []).append(values.mean())
                if self.multi_label:  # there is no one right class to count
                    continue
                self._curves.setdefault(f"train/{stream}_accuracy", []).append(
                    (scores.argmax(1) == labels).float().mean()
                )

    def on_train_epoch_end(self) -> None:
        """Log the curves of the two streams, apart; end a run whose loss is no number any more.

        A step whose loss is no number may have been left out (``setwise.guards.NoNumber``), so it is left out here.
        """
        curves = {name: torch.stack(values) for name, values in self._curves.items()}
        means = {name: values[torch.isfinite(values)].mean() for name, values in curves.items()}
        self._curves.clear()
        self.log_dict(means, sync_dist=True)
        finite = all(bool(torch.isfinite(value)) for value in means.values())
        if not all(gather_objects(finite)):  # all processes end, or those that went on would wait for ever
            raise RunError(
                f"No loss of epoch {self.current_epoch} is a finite number: the training has diverged. Lower "
                "--optimizer.lr, warm up longer (--optimizer.warmup-epochs), or clip with --trainer.gradient-clip 1."
            )

    def optimizer_step(self, *args: Any, **options: Any) -> None:
        """Lightning's step, after which no class weight is longer than ``max_norm``; before averages are taken."""
        super().optimizer_step(*args, **options)
        if self.max_norm is not None:
            limit_norm(cast(nn.Linear, self.head), self.max_norm)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Keep scores and targets; metrics of groups are not means over batches."""
        self._validation.append((self(batch.image).float().cpu(), batch.target.cpu()))

    def on_validation_epoch_end(self) -> None:
        """Log every metric under ``val/``, the adjusted ones at the strength that validation itself prefers."""
        parts = [part for parts in gather_objects(self._validation) for part in parts]
        self._validation.clear()
        logits, target = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        metrics = self.metrics(logits, target, tau=self.choose_tau(logits, target))
        self.log_dict({f"val/{name}": value for name, value in metrics.items()})

    def choose_tau(self, logits: Float[Tensor, "N K"], target: Tensor) -> float:
        """Strength of the logit adjustment that validation scores prefer; 0 for multi-label targets."""
        return 0.0 if self.multi_label else choose_tau(logits, target, self.counts)

    @property
    def metric_names(self) -> list[str]:
        """What :meth:`metrics` returns for a test part that has every class."""
        groups = [name for name, classes in self.groups.items() if classes.any()]
        if self.multi_label:
            return ["mean_average_precision", *groups]
        names = ["accuracy", "balanced_accuracy", *groups, "ece"]
        return [*names, *(f"adjusted_{name}" for name in names)]

    def metrics(self, logits: Float[Tensor, "N K"], target: Tensor, *, tau: float) -> dict[str, float]:
        """All metrics of scores: as they are, and as ``adjusted_...`` after logit adjustment of strength ``tau``.

        Returns:
            Name -> fraction in 0..1; a metric of an empty group is absent.
        """
        if self.multi_label:
            return multilabel_metrics(logits, target, groups=self.groups)
        metrics = classification_metrics(logits, target, groups=self.groups)
        adjusted = classification_metrics(adjust(logits, self.counts, tau), target, groups=self.groups)
        return metrics | {f"adjusted_{name}": value for name, value in adjusted.items()}

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """One optimizer; its schedule is stepped once an epoch."""
        optimizer, schedule = self.make_optimizer(self, self.relation)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "epoch"}}
