"""Learn from episodes: classify query images by a support set of classes that were never seen before.

Letters: ``S`` support images, ``Q`` queries, ``K`` classes of the episode, ``C`` channels, ``H W`` image size.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import lightning.pytorch as L
import torch
from jaxtyping import Float, Int
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from setwise import seeds
from setwise.data.few_shot import EpisodeBatch
from setwise.errors import RunError
from setwise.losses import nt_xent
from setwise.metrics import mean_interval
from setwise.nn.gather import gather_objects
from setwise.nn.support_moments import support_moments
from setwise.tasks.kept_maps import KeptMaps

__all__ = ["EpisodeScore", "FewShot"]

OptimizerFactory = Callable[[nn.Module, nn.Module | None], tuple[Optimizer, LRScheduler]]

IMAGES_AT_ONCE = 64
"""Images of which a trunk in evaluation holds activations at a time; they do not see each other then."""


class EpisodeScore(NamedTuple):
    """How an episode went."""

    index: int  # type: ignore[assignment]  # as in EpisodeBatch
    """Its number among all of the part."""
    accuracy: float
    num_classes: int
    num_support: int


class FewShot(L.LightningModule):
    """Train trunk and head on episodes; evaluate on episodes of other classes.

    Args:
        trunk: images ``[B, c, H, W]`` -> feature maps ``[B, C, h, w]``.
        head: ``(query maps, support maps, support targets) -> scores [Q, K]``, such as
            :class:`setwise.nn.CrossTransformer`.
        optimizer: factory of optimizer and schedule, called on this module.
        contrastive_weight: weight of SimCLR's loss between the two views of the support images in
            ``EpisodeBatch.views``, on pooled features without a projection; 0: none.
        moments: whose mean and variance batch norms take in training: the ``"support"`` set's, or ``"all"`` images'
            (then queries see each other).
        test_moments: the same in evaluation: ``"running"`` averages, or the episode's ``"support"`` set. Paper: running
            for CrossTransformers, support for most prototypical networks.
        freeze_trunk: train the head alone.
        seed: keys the dropout of every step.

    Source: Doersch, Gupta, Zisserman, CrossTransformers, NeurIPS 2020, arXiv:2007.11498.
    """

    def __init__(
        self,
        trunk: nn.Module,
        head: nn.Module,
        *,
        optimizer: OptimizerFactory,
        contrastive_weight: float = 0.0,
        moments: str = "support",
        test_moments: str = "running",
        freeze_trunk: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.trunk, self.head, self.make_optimizer = trunk, head, optimizer
        self.contrastive_weight = contrastive_weight
        self.moments, self.test_moments, self.freeze_trunk, self.seed = moments, test_moments, freeze_trunk, seed
        if freeze_trunk:
            trunk.requires_grad_(False).eval()
        self._curves: dict[str, list[Tensor]] = {}
        self._validation: list[EpisodeScore] = []
        self._kept: KeptMaps | None = None

    def train(self, mode: bool = True) -> "FewShot":
        """Training mode, in which a frozen trunk stays as it was loaded."""
        super().train(mode)
        if self.freeze_trunk:
            self.trunk.eval()
        return self

    def forward(
        self,
        support: Float[Tensor, "S c H W"],
        support_target: Int[Tensor, "S"],
        query: Float[Tensor, "Q c H W"],
    ) -> Float[Tensor, "Q K"]:
        """Scores of the queries for the classes of the support set, in label order."""
        return self._scores(self._maps(torch.cat([support, query]), len(support)), support_target)

    def _scores(self, maps: Float[Tensor, "n C h w"], support_target: Int[Tensor, "S"]) -> Float[Tensor, "Q K"]:
        num_support = len(support_target)
        return self.head(maps[num_support:], maps[:num_support], support_target)

    @property
    def _of_the_episode(self) -> bool:
        """Whether what the trunk makes of an image depends on the episode that it stands in."""
        without = any(isinstance(m, _BatchNorm) and m.running_mean is None for m in self.trunk.modules())
        return self.trunk.training or without or (self.test_moments == "support" and not self.freeze_trunk)

    def _maps(self, image: Tensor, num_support: int) -> Tensor:
        if self._of_the_episode:
            if self.trunk.training and self.moments == "all":
                return self.trunk(image)
            with support_moments(self.trunk, num_support):
                return self.trunk(image)
        if torch.is_grad_enabled() and not self.freeze_trunk:
            return self.trunk(image)
        with torch.no_grad():
            return torch.cat([self.trunk(part) for part in image.split(IMAGES_AT_ONCE)])

    def training_step(self, batch: EpisodeBatch, batch_idx: int) -> Tensor:
        """Cross-entropy over the queries of one episode, and SimCLR's loss where it has a weight."""
        logits = self(batch.support, batch.support_target, batch.query)  # [Q, K]
        loss = F.cross_entropy(logits, batch.query_target)
        kind = "simclr" if batch.simclr else "episode"
        correct = (logits.detach().argmax(1) == batch.query_target).float().mean()
        self._curves.setdefault(f"train/{kind}_loss", []).append(loss.detach())
        self._curves.setdefault(f"train/{kind}_accuracy", []).append(correct)
        if batch.views is None:
            return loss
        with support_moments(self.trunk, len(batch.views), running=False):
            views = self.trunk(batch.views).mean((2, 3))
        contrastive = nt_xent(*views.chunk(2)).mean()
        self._curves.setdefault("train/contrastive_loss", []).append(contrastive.detach())
        return loss + self.contrastive_weight * contrastive

    def on_train_batch_start(self, batch: EpisodeBatch, batch_idx: int) -> None:
        """Key everything random in the step by seed, epoch, step and rank."""
        seeds.reseed(self.seed, "dropout", self.current_epoch, batch_idx, self.global_rank)

    def on_train_epoch_end(self) -> None:
        """Log the curves of ordinary and of SimCLR episodes, apart; end a run whose loss is no number any more."""
        mine = {name: torch.stack(values).cpu() for name, values in self._curves.items()}
        self._curves.clear()
        every = gather_objects(mine)  # a process may have met no SimCLR episode
        names = sorted(set().union(*every))
        joined = {name: torch.cat([part[name] for part in every if name in part]) for name in names}
        means = {name: values[torch.isfinite(values)].mean() for name, values in joined.items()}
        self.log_dict(means)
        if not all(bool(torch.isfinite(value)) for value in means.values()):
            raise RunError(
                f"No loss of epoch {self.current_epoch} is a finite number: the training has diverged. Lower "
                "--optimizer.lr, warm up longer (--optimizer.warmup-epochs), or clip with --trainer.gradient-clip 1."
            )

    @contextmanager
    def keeping_maps(self) -> Iterator[None]:
        """Within, :meth:`score` calls the trunk once for every image that it has a number of.

        Hundreds of episodes show the same few images; a network that would make something else of an image in another
        episode, or whose weights change meanwhile, must not be asked so.
        """
        self._kept = KeptMaps()
        try:
            yield
        finally:
            self._kept = None

    def score(self, batch: EpisodeBatch) -> EpisodeScore:
        """Accuracy over the queries of an episode."""
        image = torch.cat([batch.support, batch.query])
        trunk = partial(self._maps, num_support=len(batch.support))
        if self._kept is None or batch.numbers is None or self._of_the_episode:
            maps = trunk(image)
        else:
            maps = self._kept(batch.numbers.tolist(), image, trunk)
        logits = self._scores(maps, batch.support_target)
        accuracy = (logits.argmax(1) == batch.query_target).cpu().double().mean()  # Apple's GPUs have no float64
        return EpisodeScore(int(batch.index), float(accuracy), logits.shape[1], len(batch.support))

    def on_validation_epoch_start(self) -> None:
        """Images of validation are seen once."""
        self._kept = KeptMaps()

    def validation_step(self, batch: EpisodeBatch, batch_idx: int) -> None:
        """Score an episode of validation classes."""
        self._validation.append(self.score(batch))

    def on_validation_epoch_end(self) -> None:
        """Log the mean over all episodes."""
        scores = [score for part in gather_objects(self._validation) for score in part]
        self._validation.clear()
        self._kept = None
        self.log_dict({f"val/{name}": value for name, value in self.metrics(scores).items()})

    @property
    def metric_names(self) -> list[str]:
        """What :meth:`metrics` returns."""
        return ["accuracy", "accuracy_interval"]

    @staticmethod
    def metrics(scores: Sequence[EpisodeScore]) -> dict[str, float]:
        """Mean accuracy over episodes, and half the width of its 95 % interval."""
        mean, half = mean_interval([score.accuracy for score in scores])
        return {"accuracy": mean, "accuracy_interval": half}

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """One optimizer; its schedule is stepped once an epoch."""
        optimizer, schedule = self.make_optimizer(self, None)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "epoch"}}
