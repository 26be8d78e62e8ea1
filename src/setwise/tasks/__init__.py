"""Batch -> loss, batch -> prediction: one LightningModule per kind of task."""

from setwise.tasks.classification import Classification

__all__ = ["TASKS", "Classification"]

TASKS = {"classification": Classification}
"""Task by the name that recipes use; tests hold every entry to one contract."""
