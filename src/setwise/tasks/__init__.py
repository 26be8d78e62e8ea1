"""Batch -> loss, batch -> prediction: one LightningModule per kind of task."""

from setwise.tasks.classification import Classification
from setwise.tasks.distilled import Distilled
from setwise.tasks.few_shot import EpisodeScore, FewShot
from setwise.tasks.meta_sampled import MetaSampled
from setwise.tasks.mixtures import Mixtures
from setwise.tasks.routing import Routing

__all__ = ["TASKS", "Classification", "Distilled", "EpisodeScore", "FewShot", "MetaSampled", "Mixtures", "Routing"]

TASKS: dict[str, type[Classification] | type[FewShot]] = {"classification": Classification, "few-shot": FewShot}
"""Task by the name that recipes use; tests hold every entry to one contract."""
