"""Contract: what every entry of TASKS must keep."""

from types import SimpleNamespace

import pytest
import test_classification
import test_few_shot
import torch
from torch import nn

from setwise.data import BatchOfViews
from setwise.tasks import TASKS, Classification, Distilled, MetaSampled, Mixtures, Routing

MAKERS = {"classification": test_classification, "few-shot": test_few_shot}
"""Where each task's ``make(**overrides)``, ``make_batch()`` and ``predict(task, batch)`` are."""
EXPERTS = {"backbone__name": "ride_resnet32", "backbone__options": {"width": 4, "depth": 1}}
KINDS = {
    Distilled: {"teacher": nn.Sequential(nn.Flatten(), nn.Linear(64, 10))},
    MetaSampled: {"data__sampler": "meta", "backbone__frozen": True},
    Mixtures: {"criterion__name": "glmc", "data__views": ("shift",)},
    Routing: EXPERTS | {"head__name": "routed", "criterion__name": "expert-assignment", "backbone__frozen": True},
}
"""What makes the other classifiers of :mod:`test_classification`'s."""


def test_every_task_is_held_to_the_contract():
    assert set(MAKERS) == set(TASKS)


@pytest.fixture(autouse=True)
def without_trainer(monkeypatch):
    for task in TASKS.values():
        monkeypatch.setattr(task, "current_epoch", 0)


@pytest.mark.parametrize("name", TASKS)
class TestContract:
    def test_loss_is_finite_and_every_parameter_gets_a_gradient(self, name):
        task = MAKERS[name].make().train()
        loss = task.training_step(MAKERS[name].make_batch(), 0)
        loss.backward()
        assert torch.isfinite(loss)
        assert [n for n, p in task.named_parameters() if p.grad is None or not p.grad.any()] == []

    def test_a_prediction_does_not_depend_on_what_is_predicted_beside_it(self, name):
        task, batch = MAKERS[name].make().eval(), MAKERS[name].make_batch()
        some = MAKERS[name].predict(task, batch, 3)
        torch.testing.assert_close(MAKERS[name].predict(task, batch)[:3], some)

    def test_state_saves_and_loads(self, name):
        task, other = MAKERS[name].make(), MAKERS[name].make(seed=1)
        batch = MAKERS[name].make_batch()
        one, two = (MAKERS[name].predict(t.eval(), batch) for t in (task, other))
        assert not torch.equal(one, two)
        other.load_state_dict(task.state_dict())
        assert torch.equal(one, MAKERS[name].predict(other, batch))


def test_every_kind_of_classifier_is_held_to_it_as_well():
    assert set(KINDS) == set(Classification.__subclasses__())


@pytest.mark.parametrize("kind", KINDS)
class TestKindsOfClassifiers:
    def test_a_prediction_does_not_depend_on_what_is_predicted_beside_it(self, kind):
        task, batch = test_classification.make(**KINDS[kind]).eval(), test_classification.make_batch()
        assert type(task) is kind
        torch.testing.assert_close(task(batch.image)[:3], task(batch.image[:3]))

    def test_loss_is_finite_and_every_parameter_that_trains_gets_a_gradient(self, kind, monkeypatch):
        task, batch = test_classification.make(**KINDS[kind]).train(), test_classification.make_batch()
        if kind is Mixtures:
            batch = BatchOfViews(batch.image, batch.target, batch.index, (batch.image.flip(3),))
        monkeypatch.setattr(kind, "current_epoch", 1)
        task.trainer = SimpleNamespace(global_rank=0, optimizers=[SimpleNamespace(param_groups=[{"lr": 0.1}])])
        loss = task.training_step(batch, 0)
        loss.backward()
        assert torch.isfinite(loss)
        trained = {name: p for name, p in task.named_parameters() if p.requires_grad}
        assert trained
        assert [name for name, p in trained.items() if p.grad is None or not p.grad.any()] == []

    def test_state_saves_and_loads(self, kind):
        task, other = (test_classification.make(**KINDS[kind], seed=seed).eval() for seed in (0, 1))
        image = test_classification.make_batch().image
        assert not torch.equal(task(image), other(image))
        other.load_state_dict(task.state_dict())
        assert torch.equal(task(image), other(image))
