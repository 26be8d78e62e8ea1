"""Small runs that are broken off, and what the tests of them share."""

import resource
from contextlib import contextmanager

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from safetensors.torch import load_file

from setwise import run
from setwise.recipes import RECIPES
from setwise.run_folder import RunFolder

TINY = RECIPES["digits-lt"].override(
    {
        "trainer.epochs": 4,
        "trainer.checkpoint_every": 1,
        "trainer.val_every": 2,
        "trainer.logger": ("csv",),
        "backbone.options": {"width": 4},
    }
)
FULL = TINY.override({"trainer.ema": 0.8, "trainer.select": "early-stopping", "trainer.val_every": 1})
FULL = FULL.override({"relation.memory": 150})
"""Everything that has a state: momentum, schedule, average, selection, early stopping, a memory of past samples."""


def fit(recipe, out, **options):
    return run.fit(recipe, out, progress=False, **{"say": lambda text: None, **options})


def same_weights(*folders):
    first, *others = (load_file(RunFolder(folder).weights) for folder in folders)
    return all(torch.equal(value, other[name]) for other in others for name, value in first.items())


class At(Callback):
    """Does something when an epoch begins."""

    def __init__(self, epoch, do):
        self.epoch, self.do = epoch, do

    def on_train_epoch_start(self, trainer, module):
        if trainer.current_epoch == self.epoch:
            self.do(trainer, module)


def give_up(*args):
    raise ConnectionError("the power went off")


def broken_off(recipe, out, epoch=3):
    with pytest.raises(ConnectionError):
        fit(recipe, out, callbacks=(At(epoch, give_up),))
    return RunFolder(out)


@contextmanager
def room(bytes_of_a_file):
    """No file may be larger: the system answers as a full disk does, with another number."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_of_a_file, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
