"""The few-shot task: gradients, what queries may see, scores, and the results of a run."""

import numpy as np
import pytest
import torch
from torch import nn

from setwise.build import build_few_shot
from setwise.data.few_shot import EpisodeBatch
from setwise.errors import InvalidInput
from setwise.losses import nt_xent
from setwise.recipes import RECIPES
from setwise.tasks import EpisodeScore, FewShot
from setwise.tasks.kept_maps import KeptMaps
from setwise.work import make_work

SIDE, SHOTS, WAYS, QUERIES = 16, 2, 3, 2
TINY = {"backbone.options": {"width": 4, "depth": 1}}


def make(name="omniglot-ctx", **overrides):
    recipe = RECIPES[name].override(TINY | {field.replace("__", "."): value for field, value in overrides.items()})
    return build_few_shot(recipe, in_chans=3, image_size=SIDE, say=lambda text: None)


def make_batch(seed=0, simclr=False):
    draw = torch.Generator().manual_seed(seed)
    support_target = torch.arange(WAYS).repeat_interleave(SHOTS)
    query_target = torch.arange(WAYS).repeat_interleave(QUERIES)
    support, query = (torch.randn(len(t), 3, SIDE, SIDE, generator=draw) for t in (support_target, query_target))
    return EpisodeBatch(support, support_target, query, query_target, 7, simclr)


def predict(task, batch, number=None):
    return task(batch.support, batch.support_target, batch.query[:number])


@pytest.mark.parametrize(("test_moments", "looked_at"), [("running", 11), ("support", 4 * 12)])
def test_the_trunk_sees_an_image_once_where_it_makes_the_same_of_it_in_every_episode(test_moments, looked_at):
    task = make(episodes__test_moments=test_moments).eval()
    images = torch.randn(11, 3, SIDE, SIDE)
    seen = []
    task.trunk.register_forward_pre_hook(lambda trunk, inputs: seen.append(len(inputs[0])))
    batches = []
    for first in range(4):
        numbers = (torch.arange(12) + first) % 11
        support, query = images[numbers].split(6)
        batches.append(make_batch()._replace(support=support, query=query, numbers=numbers))
    with torch.no_grad():
        alone = [task.score(batch) for batch in batches]
        seen.clear()
        with task.keeping_maps():
            together = [task.score(batch) for batch in batches]
    assert together == alone
    assert sum(seen) == looked_at


def test_maps_that_are_kept_have_a_limit_and_the_oldest_go_first():
    images = torch.arange(4.0)[:, None, None, None].expand(4, 1, 2, 2)
    kept = KeptMaps(most_bytes=2 * 16)
    seen = []

    def trunk(x):
        seen.extend(x[:, 0, 0, 0].tolist())
        return x + 1

    for numbers in ([0, 1, 2], [1, 2, 1], [0, 3]):
        assert torch.equal(kept(numbers, images[numbers], trunk), images[numbers] + 1)
    assert seen == [0, 1, 2, 0, 3]


@pytest.mark.parametrize("name", ["omniglot-ctx", "omniglot-prototypical"])
class TestHeads:
    @pytest.mark.parametrize("moments", ["running", "support"])
    def test_a_query_is_scored_alike_alone_and_among_others(self, name, moments):
        task, batch = make(name, episodes__test_moments=moments).eval(), make_batch()
        together = task(batch.support, batch.support_target, batch.query)
        alone = torch.cat([task(batch.support, batch.support_target, q[None]) for q in batch.query])
        torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)

    def test_the_order_of_the_support_set_means_nothing(self, name):
        task, batch = make(name).eval(), make_batch()
        order = torch.randperm(len(batch.support), generator=torch.Generator().manual_seed(1))
        mixed = task(batch.support[order], batch.support_target[order], batch.query)
        torch.testing.assert_close(mixed, task(batch.support, batch.support_target, batch.query), rtol=1e-4, atol=1e-4)


def test_in_training_a_query_does_not_change_anothers_loss_unless_all_images_make_the_moments():
    batch = make_batch()
    changed = batch._replace(query=torch.cat([batch.query[:1], batch.query[1:] * 3]))
    for moments, same in (("support", True), ("all", False)):
        one, two = (
            make(episodes__moments=moments).train()(b.support, b.support_target, b.query)[0] for b in (batch, changed)
        )
        assert torch.allclose(one, two, rtol=1e-4, atol=1e-4) is same


def test_the_score_is_the_part_of_queries_that_are_right():
    task, batch = make().eval(), make_batch()
    logits = task(batch.support, batch.support_target, batch.query)
    right = sum(int(row.argmax()) == int(label) for row, label in zip(logits, batch.query_target, strict=True))
    assert task.score(batch) == EpisodeScore(7, right / len(batch.query), WAYS, WAYS * SHOTS)


def test_a_contrastive_loss_is_added_with_its_weight():
    batch, draw = make_batch(), torch.Generator().manual_seed(1)
    views = torch.randn(2 * len(batch.support), 3, SIDE, SIDE, generator=draw)
    losses = [
        make(episodes__contrastive_weight=weight).train().training_step(batch._replace(views=views), 0)
        for weight in (1.0, 2.0)
    ]
    task = make().train()
    own = task.training_step(batch, 0)
    one, other = task.trunk(views).mean((2, 3)).chunk(2)
    torch.testing.assert_close(losses[0], own + nt_xent(one, other).mean(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(losses[1] - losses[0], nt_xent(one, other).mean(), rtol=1e-4, atol=1e-4)


def test_views_of_a_contrastive_loss_leave_the_running_averages_to_the_images_of_the_episode():
    tasks = [make(episodes__contrastive_weight=weight).train() for weight in (1.0, 0.0)]
    views = torch.randn(2 * WAYS * SHOTS, 3, SIDE, SIDE)
    for task, shown in zip(tasks, (views, None), strict=True):
        task.training_step(make_batch()._replace(views=shown), 0)
    for (name, one), other in zip(tasks[0].trunk.named_buffers(), tasks[1].trunk.buffers(), strict=True):
        assert torch.equal(one, other), name


def test_a_frozen_trunk_stays_as_it_was_loaded():
    task = make(episodes__freeze_trunk=True).train()
    before = {name: value.clone() for name, value in task.trunk.state_dict().items()}
    optimizer = task.configure_optimizers()["optimizer"]
    task.training_step(make_batch(), 0).backward()
    optimizer.step()
    assert not task.trunk.training
    assert all(torch.equal(value, before[name]) for name, value in task.trunk.state_dict().items())
    assert all(p.grad is not None for p in task.head.parameters())


def test_metrics_are_mean_and_interval_over_episodes():
    scores = [EpisodeScore(i, value, 5, 5) for i, value in enumerate([0.2, 0.4, 0.9])]
    expected = 1.96 * float(np.std([0.2, 0.4, 0.9])) / 3**0.5
    assert FewShot.metrics(scores) == pytest.approx({"accuracy": 0.5, "accuracy_interval": expected})


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"backbone.pool": "attention"}, r"`backbone\.pool` \(attention\) makes one vector of a map"),
        ({"head.name": "linear"}, "needs --head.name cross-transformer or prototypical, but it is linear"),
        ({"relation.name": "batchformer"}, r"`relation.name` \(batchformer\) must be none"),
        ({"data.batch_size": 32}, r"`data.batch_size` \(32\) means nothing to episodes"),
        ({"data.augment": "shift"}, "no augmentation of episodes 'shift'"),
        ({"episodes.test": 0}, "`episodes.test` must be at least 1, but it is 0"),
        ({"episodes.simclr_fraction": 1.5}, "`episodes.simclr_fraction` must be from 0 to 1"),
        ({"head.name": "prototypical", "episodes.freeze_trunk": True}, "there is nothing to train"),
        ({"episodes.contrastive_weight": -1.0}, "`episodes.contrastive_weight` must be at least 0"),
        ({"episodes.contrastive_weight": 1.0, "episodes.freeze_trunk": True}, "trains the trunk"),
        ({"episodes.freeze_trunk": True, "episodes.test_moments": "support"}, "A frozen trunk keeps its moments"),
        ({"criterion.name": "focal"}, "`criterion` is of classifiers"),
        ({"head.name": "prototypical", "head.dim_key": 64}, "--head.name prototypical has no such option"),
        ({"head.scale": 20.0}, "--head.name cross-transformer has no such option"),
        ({"optimizer.schedule": "staircase", "optimizer.every": 0}, "`optimizer.every` must be at least 1, but it is"),
        ({"trainer.epochs": 0}, "`trainer.epochs` must be at least 1, but it is 0"),
    ],
)
def test_what_would_be_something_else_than_it_looks_like_is_refused(overrides, message):
    with pytest.raises((InvalidInput, ValueError), match=message):
        build_few_shot(RECIPES["omniglot-ctx"].override(overrides), in_chans=3, image_size=SIDE)


def test_a_trunk_is_not_frozen_at_random_weights():
    with pytest.raises(InvalidInput, match=r"`episodes.freeze_trunk` would keep random weights: name those of a first"):
        make_work(RECIPES["omniglot-ctx"].override({"episodes.freeze_trunk": True}), lambda text: None)


def test_the_papers_trunk_has_maps_of_14_by_14_at_224_pixels():
    recipe = RECIPES["meta-dataset-ctx"]
    task = build_few_shot(recipe, in_chans=3, image_size=recipe.data.image_size, say=lambda text: None).eval()
    with torch.no_grad():
        assert task.trunk(torch.zeros(1, 3, 224, 224)).shape == (1, 512, 14, 14)


def test_a_backbone_without_a_map_is_a_sentence():
    class Pooled(nn.Module):
        def forward_features(self, x):
            return x.mean((2, 3))

    from setwise.models import FeatureMap

    with pytest.raises(InvalidInput, match=r"compares feature maps .* returned \[2, 3\]"):
        FeatureMap(Pooled())(torch.zeros(2, 3, 8, 8))


@pytest.mark.parametrize("name", ["test_vit", "test_resnet", "swin_tiny_patch4_window7_224"])
def test_maps_of_any_backbone_have_channels_first(name):
    import timm

    from setwise.models import FeatureMap

    options = {"img_size": 64} if "resnet" not in name else {}
    options |= {"embed_dim": 12, "depths": (1, 1), "num_heads": (1, 1)} if "swin" in name else {}
    backbone = timm.create_model(name, num_classes=0, **options).eval()
    height, width = FeatureMap(backbone)(torch.randn(2, 3, 64, 64)).shape[2:]
    assert height == width
    assert 1 < height < 64
