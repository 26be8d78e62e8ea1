"""Lightning's Trainer as a recipe sets it: loggers, checkpoints, and the callbacks that let a run survive."""

import inspect
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
import torch.distributed as dist
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import loggers
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from setwise.checkpoints import Checkpoints
from setwise.errors import InvalidInput, SetwiseError, choose
from setwise.guards import Averaged, EarlyStop, LastStep, NoNumber, Sigterm
from setwise.launch import is_first, started
from setwise.metrics import lower_is_better
from setwise.recipes import Recipe
from setwise.run_folder import RunFolder

__all__ = ["make_trainer", "meet_again"]

PATHS = ("best_model_path", "kth_best_model_path", "last_model_path")
"""Of checkpoints, in the state of Lightning's callback."""


class KeptCheckpoint(ModelCheckpoint):
    """Lightning's, which does not know its best checkpoint again in a folder that was moved; this one does."""

    @property
    def state_key(self) -> str:
        """As Lightning's, so that either reads what the other left."""
        return super().state_key.replace(type(self).__qualname__, ModelCheckpoint.__qualname__, 1)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the checkpoints where they are now."""
        here = Path(str(self.dirpath))
        moved = {
            key: str(here / Path(str(path)).name) if path else path for key, path in state_dict.items() if key in PATHS
        }
        best = {str(here / Path(path).name): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict({**state_dict, **moved, "best_k_models": best, "dirpath": self.dirpath})


def make_trainer(
    recipe: Recipe,
    folder: RunFolder,
    *,
    progress: bool,
    callbacks: tuple[Callback, ...] = (),
    say: Callable[[str], None] = print,
) -> L.Trainer:
    """Lightning's Trainer as the recipe sets it, with its checkpoints and logs in ``folder``."""
    part = recipe.trainer
    shown = progress and is_first()
    devices, num_nodes = started(part.devices, part.num_nodes)
    try:
        return L.Trainer(
            accelerator=part.accelerator,
            devices=devices,
            num_nodes=num_nodes,
            strategy=_strategy(recipe, devices * num_nodes),
            precision=part.precision,  # type: ignore[arg-type]
            max_epochs=part.epochs,
            gradient_clip_val=part.gradient_clip,
            check_val_every_n_epoch=part.val_every,
            callbacks=[*_callbacks(recipe, folder, shown=shown), *callbacks],
            logger=[_logger(name, folder) for name in part.logger],
            plugins=[Checkpoints(folder, say)],
            default_root_dir=folder.path,  # where Lightning looks for what a requeued SLURM job left
            num_sanity_val_steps=0,
            log_every_n_steps=1,
            enable_model_summary=False,
            enable_progress_bar=shown,
            use_distributed_sampler=False,  # our sampler slices by rank itself, keyed by seed and epoch
        )
    except (ImportError, TypeError, ValueError, MisconfigurationException) as error:
        if isinstance(error, SetwiseError):
            raise
        raise InvalidInput(f"Lightning cannot be set up as the recipe's trainer says: {error}") from error


def meet_again(accelerator: str, environment: Mapping[str, str] = os.environ) -> None:
    """After torchrun has started its processes anew, let them meet at a place of their own.

    torchrun's own store (torch 2.15) still holds the addresses of the processes that died, and whoever reads these
    before they are written anew waits for the dead. Lightning takes the group that it finds.
    """
    attempt = environment.get("TORCHELASTIC_RESTART_COUNT", "0")
    if attempt == "0" or environment.get("TORCHELASTIC_USE_AGENT_STORE") != "True" or dist.is_initialized():
        return
    world = int(environment["WORLD_SIZE"])
    store = dist.TCPStore(environment["MASTER_ADDR"], int(environment["MASTER_PORT"]), world, is_master=False)
    dist.init_process_group(
        "nccl" if accelerator != "cpu" and torch.cuda.is_available() else "gloo",
        store=dist.PrefixStore(f"attempt-{attempt}", store),
        rank=int(environment["RANK"]),
        world_size=world,
    )


def _strategy(recipe: Recipe, processes: int) -> str:
    """A few-shot trunk may have weights behind its map, of a norm before the pool that nobody calls, say."""
    if processes == 1:
        return "auto"
    return "ddp_find_unused_parameters_true" if recipe.task == "few-shot" else "ddp"


def _callbacks(recipe: Recipe, folder: RunFolder, *, shown: bool) -> list[Callback]:
    part = recipe.trainer
    mode = "min" if lower_is_better(recipe.primary) else "max"
    watch: dict[str, Any] = {"monitor": f"val/{recipe.primary}", "mode": mode}
    made: list[Callback] = [NoNumber(part.on_nan, folder.nan_batch)]
    if part.max_steps is not None:
        made.append(LastStep(part.max_steps))
    if part.ema is not None:
        if not 0 <= part.ema < 1:
            raise InvalidInput(f"`trainer.ema` ({part.ema:g}) must be at least 0 and below 1; None switches it off.")
        if part.precision.endswith("-true") and part.precision != "32-true":
            raise InvalidInput(
                f"`trainer.ema` averages weights of float32, but --trainer.precision is {part.precision}: take 32-true "
                "or bf16-mixed, or leave the average out."
            )
        made.append(Averaged(part.ema))
    if part.select == "early-stopping":
        made.append(EarlyStop(patience=part.patience, **watch))
    if shown:
        from lightning.pytorch.callbacks import RichProgressBar

        made.append(RichProgressBar())
    if part.select != "last":
        made.append(KeptCheckpoint(folder.checkpoints, "best", save_top_k=1, enable_version_counter=False, **watch))
    made.append(
        KeptCheckpoint(
            folder.checkpoints,
            folder.last.stem,
            save_top_k=1,
            every_n_epochs=part.checkpoint_every,
            enable_version_counter=False,
            save_on_train_epoch_end=True,
        )
    )
    return [*made, Sigterm(folder.last, every=part.checkpoint_every)]


def _logger(name: str, folder: RunFolder) -> Any:
    if name == "csv":
        return loggers.CSVLogger(folder.logs, name="csv")
    if name == "tensorboard":
        return loggers.TensorBoardLogger(folder.logs, name="tensorboard")
    known = {"csv": None, "tensorboard": None} | {n: getattr(loggers, n) for n in loggers.__all__ if n != "Logger"}
    made = choose(name, known, "logger")
    takes = inspect.signature(made).parameters
    return made(**{where: folder.logs for where in ("save_dir", "root_dir") if where in takes})
