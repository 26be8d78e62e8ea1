"""The fields of a recipe that say how a network is trained; the sentence under a field is its help.

Nothing here imports more than the standard library.
"""

from dataclasses import dataclass
from typing import Literal

__all__ = ["Optimizer", "Trainer"]


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """Gradients -> new weights."""

    name: Literal["sgd", "adamw", "lamb", "adam", "normalized-adam"] = "sgd"
    """SGD with momentum; AdamW; LAMB for batches of thousands (its gradient is clipped to a norm of 1); Adam; or Adam
    on gradients divided by their norm (CrossTransformers)."""
    lr: float = 0.1
    """Learning rate for the batch size of the recipe; not scaled by anything."""
    momentum: float = 0.9
    """SGD's momentum, the first beta of the others."""
    nesterov: bool = False
    """SGD: Nesterov's form of momentum."""
    weight_decay: float = 5e-4
    """Weight decay of all weights; biases and norms have it under SGD alone."""
    schedule: Literal["cosine", "multistep", "staircase", "constant"] = "cosine"
    """Learning rate over the epochs, after the warm-up; cosine ends at 0."""
    official_squared_lr: bool = False
    """Official RIDE code, cosine: the schedule multiplies by the learning rate once more, and so follows its square."""
    official_early_step: bool = False
    """Official Balanced Softmax code, cosine: stepped before each epoch, so that the last one has a rate of 0."""
    warmup_epochs: int = 0
    """Epochs over which the learning rate rises linearly."""
    warmup_start: float = 0.0
    """Share of the learning rate from which it rises."""
    milestones: tuple[int, ...] = ()
    """multistep: epochs at which the learning rate is multiplied by gamma."""
    every: int = 1
    """staircase: epochs between two multiplications by gamma."""
    gamma: float = 0.1
    """multistep, staircase: the factor."""


@dataclass(frozen=True, kw_only=True)
class Trainer:
    """How long, on what, and which weights are kept; run by Lightning."""

    epochs: int = 200
    """Passes over the training set."""
    max_steps: int | None = None
    """Stop after so many optimizer steps, whatever the epochs say."""
    select: Literal["last", "best", "early-stopping"] = "last"
    """Weights that are kept: of the last epoch, of the epoch with the best primary metric on validation, or the best
    with training ended after `patience` checks without progress."""
    patience: int = 10
    """early-stopping: validation checks without progress before training ends."""
    val_every: int = 1
    """Epochs between validation checks."""
    checkpoint_every: int = 1
    """Epochs between checkpoints, from which a killed run continues."""
    precision: str = "32-true"
    """Lightning's precision: 32-true, bf16-mixed, 16-mixed ..."""
    channels_last: bool = False
    """Keep the weights of convolutions, and with them the maps, with the channels last in memory: the same function,
    often faster in half precision."""
    gradient_clip: float | None = None
    """Largest norm of the gradient; None: not clipped."""
    ema: float | None = None
    """Decay of an exponential moving average of the weights, which is then validated and kept; None: the weights
    themselves. DeiT: 0.99996."""
    on_nan: Literal["stop", "skip"] = "stop"
    """A loss that is no finite number ends the run and lists the images of its step; or steps whose gradient is none
    are left out and counted, at the price of waiting for the device at every step."""
    accelerator: str = "auto"
    """Lightning's accelerator: auto, cpu, gpu ..."""
    devices: int | None = None
    """Devices of one machine, a process each; None: as many as torchrun or SLURM started processes, else 1."""
    num_nodes: int | None = None
    """Machines; None: as many as the launcher says, else 1."""
    logger: tuple[str, ...] = ("tensorboard", "csv")
    """Loggers by short name, or any of Lightning's by class name (WandbLogger)."""
