"""Lightning callbacks that end a run with a sentence, and let it continue as if it had never ended."""

import itertools
import json
import signal
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as L
import torch
from lightning.pytorch.callbacks import Callback, Checkpoint, EarlyStopping, WeightAveraging
from torch import Tensor
from torch.nn.modules.batchnorm import _NormBase
from torch.optim import Optimizer
from torch.optim.swa_utils import get_ema_multi_avg_fn

from setwise.data import Batch, BatchOfViews, Loader
from setwise.data.few_shot import EpisodeBatch
from setwise.errors import RunError, Stopped
from setwise.nn.gather import gather_objects
from setwise.run_folder import write_whole

__all__ = ["Averaged", "EarlyStop", "LastStep", "NoNumber", "Sigterm", "Unreadable"]

CHECK_EVERY = 50
"""Steps between two looks at the losses: a look waits for the device, which costs a fraction of one step."""
AGREE_EVERY = 10
"""Steps after which several processes ask each other whether one was told to stop."""
GRACE = 15.0
"""Seconds that an epoch may still take after SIGTERM. SLURM and Kubernetes kill after 30."""


class NoNumber(Callback):
    """What happens where a loss or a gradient is no finite number.

    ``stop`` looks at the losses of the last steps, every 50 steps and at the end of the epoch, before anything is
    validated or saved: one look a step would make a GPU wait for its driver. ``skip`` must decide before each update,
    so it waits for the device at every step, and copies the buffers of the network: what BatchNorm has seen of such a
    batch is taken back. The gradient of all processes is the same, so all of them decide alike. In 16-mixed precision
    the gradient scaler leaves out such updates itself, as it does uncounted while it looks for its scale; here a step
    whose loss is no number is counted, and taken back from the buffers.

    Args:
        action: of the recipe's ``trainer.on_nan``.
        file: where the images of the step are listed that ended a run.
    """

    def __init__(self, action: Literal["stop", "skip"], file: Path) -> None:
        self.action, self.file = action, file
        self.skipped: list[list[int]] = []
        self._kept: list[tuple[int, Tensor, Tensor | int]] = []
        self._buffers: list[Tensor] = []

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Name the folder that the first process has made, which others have only been told of."""
        self.file = trainer.strategy.broadcast(self.file)

    def state_dict(self) -> dict[str, Any]:
        """Epoch and step of every update that was left out."""
        return {"skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting."""
        self.skipped = list(state_dict["skipped"])

    @property
    def notes(self) -> tuple[str, ...]:
        """One sentence on what was left out, if anything was."""
        if not self.skipped:
            return ()
        epoch, step = self.skipped[0]
        return (
            f"Training steps left out because their gradient was not a finite number: {len(self.skipped)}; the first: "
            f"epoch {epoch}, step {step}.",
        )

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Keep the buffers as they were before the step."""
        if self.action == "skip":
            self._buffers = [buffer.clone() for buffer in pl_module.buffers()]

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        """Take the step back if its gradient is no number: a parameter without a gradient is not updated."""
        if self.action != "skip" or _has_scaler(trainer):
            return
        gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
        if bool(torch.isfinite(torch.nn.utils.get_total_norm(gradients))):
            return
        optimizer.zero_grad(set_to_none=True)
        self._take_back(trainer, pl_module)

    def _take_back(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for buffer, before in zip(pl_module.buffers(), self._buffers, strict=True):
            buffer.copy_(before)
        self.skipped.append([trainer.current_epoch, trainer.fit_loop.batch_idx])

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Batch | BatchOfViews | EpisodeBatch,
        batch_idx: int,
    ) -> None:
        """Keep the loss on the device, and now and then look."""
        if self.action == "skip" and _has_scaler(trainer) and any(gather_objects(not outputs["loss"].isfinite())):
            self._take_back(trainer, pl_module)
        if self.action == "stop":
            self._kept.append((batch_idx, outputs["loss"], batch.index))
            if (batch_idx + 1) % CHECK_EVERY == 0:
                self._look(trainer)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Look at what is left before it is validated, however the epoch ended."""
        if self.action == "stop":
            self._look(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Look at what is left of an epoch that was not validated, before it is saved."""
        if self.action == "stop":
            self._look(trainer)

    def _look(self, trainer: L.Trainer) -> None:
        mine = None
        if self._kept:
            good = torch.isfinite(torch.stack([loss for _, loss, _ in self._kept])).tolist()
            mine = next(
                ((step, _numbers(i)) for (step, _, i), fine in zip(self._kept, good, strict=True) if not fine), None
            )
            self._kept.clear()
        found = [bad for bad in gather_objects(mine) if bad is not None]
        if not found:
            return
        epoch, step = trainer.current_epoch, min(step for step, _ in found)
        images = list(itertools.chain.from_iterable(index for number, index in found if number == step))
        if trainer.is_global_zero:
            write_whole(self.file, json.dumps({"epoch": epoch, "step": step, "part": "train", "index": images}) + "\n")
        raise RunError(
            f"The loss of epoch {epoch}, step {step} is not a finite number; {self.file} lists the images of that "
            "step. If they are in order, the training has diverged: lower --optimizer.lr, warm up longer "
            "(--optimizer.warmup-epochs), or clip with --trainer.gradient-clip 1, in a new run. If single batches are "
            "to blame, --resume --trainer.on-nan skip leaves out their steps."
        )


def _numbers(index: Tensor | int) -> list[int]:
    """The images of a batch, or the number of an episode."""
    return torch.as_tensor(index).flatten().tolist()


class Sigterm(Checkpoint):
    """On SIGTERM, with which schedulers announce the end, a run ends where it can continue exactly: at an epoch's end.

    An epoch that is over within 15 seconds is finished, and a checkpoint written. A longer one is given up at once,
    and ``--resume`` repeats it from the last checkpoint. It is a ``Checkpoint``, so that Lightning calls it last.

    Args:
        last: the checkpoint from which a run continues.
        every: epochs between the checkpoints that are written anyway.
    """

    def __init__(self, last: Path, *, every: int) -> None:
        self.last, self.every = last, every
        self.told = False
        self._began = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take the signal; Lightning puts back what was there, when training ends."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._note)

    def _note(self, number: int, frame: Any) -> None:
        self.told = True

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note the time."""
        self._began = time.monotonic()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Give up a long epoch."""
        done = batch_idx + 1
        if (trainer.world_size > 1 and done % AGREE_EVERY) or not self._any_told(trainer):
            return
        left = (time.monotonic() - self._began) / done * (float(trainer.num_training_batches) - done)
        if trainer.strategy.broadcast(left) > GRACE:
            raise Stopped(
                f"Stopped by SIGTERM in epoch {trainer.current_epoch}, which would have taken {left:.0f} more seconds; "
                "continue with --resume, from the last checkpoint."
            )

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write a checkpoint, unless one has just been written, and end."""
        if not self._any_told(trainer):
            return
        if (trainer.current_epoch + 1) % self.every:
            trainer.save_checkpoint(self.last)
        raise Stopped(f"Stopped by SIGTERM at the end of epoch {trainer.current_epoch}; continue with --resume.")

    def _any_told(self, trainer: L.Trainer) -> bool:
        return trainer.strategy.reduce_boolean_decision(self.told, all=False)


def _has_scaler(trainer: L.Trainer) -> bool:
    return getattr(trainer.precision_plugin, "scaler", None) is not None


class EarlyStop(EarlyStopping):
    """Lightning's, which forgets when it is resumed that it had ended the training."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """End again."""
        if self.stopped_epoch or self.wait_count >= self.patience:
            trainer.should_stop = True


class LastStep(Callback):
    """End the training after so many steps, with the epoch's validation where it is due.

    Lightning's own ``max_steps`` takes a run that is resumed for one that was broken off within an epoch: the order of
    the images is one epoch ahead from then on, and so may the learning rate be.

    Args:
        steps: of the optimizer, in the whole training.
    """

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """End again where a finished training is resumed."""
        if trainer.global_step >= self.steps:
            trainer.should_stop = True

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        """Look whether that was the last one."""
        if trainer.global_step >= self.steps:
            trainer.should_stop = True


class Averaged(WeightAveraging):
    """The exponential moving average of the weights, which is validated, selected and kept.

    The running averages of norms are averaged, too; all other buffers are the network's own, for a memory of past
    samples or a queue would mix what belongs to different images. The first step's weights are where the average
    begins.

    Args:
        decay: part of the old average in the new one.
    """

    def __init__(self, decay: float) -> None:
        super().__init__(multi_avg_fn=get_ema_multi_avg_fn(decay))

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Average where the weights will be: Lightning asks before it has moved them, and would average on the CPU."""
        self._device = trainer.strategy.root_device
        super().setup(trainer, pl_module, stage)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Average, and take over what is no average."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        assert self._average_model is not None
        for own, averaged in zip(pl_module.modules(), self._average_model.module.modules(), strict=True):
            if not isinstance(own, _NormBase):
                for buffer, kept in zip(own.buffers(recurse=False), averaged.buffers(recurse=False), strict=True):
                    kept.copy_(buffer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Nothing yet: a run that is resumed after its last epoch does not come by here."""

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Put the average in the place of the weights."""
        self._copy_average_to_current(pl_module)


class Unreadable(Callback):
    """Remembers over a resumption which images could not be read."""

    def __init__(self, loaders: Mapping[str, Loader]) -> None:
        self.loaders = loaders

    def state_dict(self) -> dict[str, Any]:
        """The images of each part, as any process met them."""
        return {part: _joined(loader.skipped) for part, loader in self.loaders.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting."""
        for part, names in state_dict.items():
            self.loaders[part].dataset.skipped.update(dict.fromkeys(names))

    @property
    def notes(self) -> tuple[str, ...]:
        """One sentence on each part of which images could not be read."""
        every = ((part, _joined(loader.skipped)) for part, loader in self.loaders.items())
        return tuple(
            f"Unreadable images of {part}, skipped: {len(names)}; the first: {names[0]}."
            for part, names in every
            if names
        )


def _joined(names: tuple[str, ...]) -> list[str]:
    return list(dict.fromkeys(itertools.chain.from_iterable(gather_objects(names))))
