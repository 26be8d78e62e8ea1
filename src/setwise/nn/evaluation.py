"""Run a model as it would be tested, and leave it as it was."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

__all__ = ["in_evaluation"]


@contextmanager
def in_evaluation(model: nn.Module) -> Iterator[None]:
    """Have every part of a model in evaluation, and each as it was afterwards, frozen parts among them.

    >>> model = nn.Sequential(nn.BatchNorm1d(2).eval(), nn.Dropout())
    >>> with in_evaluation(model):
    ...     model.training, model[1].training
    (False, False)
    >>> model.training, model[0].training, model[1].training
    (True, False, True)
    """
    before = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in before:
            module.training = training
