"""Maps of an attention pool: an oracle in loops, every kind of network, and what is refused."""

import math

import pytest
import timm
import torch
from torch import nn

from setwise.errors import InvalidInput
from setwise.models import PatchConvNet
from setwise.nn import AttentionPool, attention_pooling, pool_maps


def network(**options):
    torch.manual_seed(0)
    model = PatchConvNet(**{"embed_dim": 16, "depth": 1, "num_classes": 5, "init_values": 0.5, **options}).eval()
    for weight in (model.pool.query, model.pool.layers[-1].q.weight, model.pool.layers[-1].k.weight):
        nn.init.normal_(weight, std=0.7)  # so that the maps are far from uniform
    return model


def images(rows=2, height=48, width=80):
    return torch.randn(rows, 3, height, width, generator=torch.Generator().manual_seed(1))


def by_loops(model, image, query):
    """Weights of one query over what it sees, written from the dossier's steps: norm, project, scale, softmax."""
    layer = model.pool.layers[0]
    patches = model.forward_features(image[None])[0].flatten(1).T  # [N, C]
    own = model.pool.query[0]
    seen = [own[0], *patches] if len(own) == 1 else list(patches)
    norm = [layer.norm1(row) for row in seen]
    q = layer.q(layer.norm1(own[query]))
    scores = [float(q @ layer.k(row)) / math.sqrt(len(q)) for row in norm]
    top = max(scores)
    total = sum(math.exp(score - top) for score in scores)
    return [math.exp(score - top) / total for score in scores]


@torch.no_grad()
def test_the_map_of_one_query_is_the_softmax_written_in_loops_and_the_querys_own_weight_stands_apart():
    model, batch = network(), images()
    found = pool_maps(model, batch)
    assert found.maps.shape == (2, 3, 5)
    assert found.classes is None
    for row, image in enumerate(batch):
        own, *patches = by_loops(model, image, 0)
        assert float(found.own[row]) == pytest.approx(own, abs=1e-5)
        torch.testing.assert_close(found.maps[row].flatten(), torch.tensor(patches), atol=1e-5, rtol=0)


@torch.no_grad()
def test_with_a_query_for_each_class_row_c_is_the_map_of_class_c_and_the_best_come_first():
    model, batch = network(per_class=True), images()
    every, best = pool_maps(model, batch), pool_maps(model, batch, top_k=2)
    for k in range(5):
        expected = torch.tensor(by_loops(model, batch[1], k))
        torch.testing.assert_close(every.maps[1, k].flatten(), expected, atol=1e-5, rtol=0)
    assert best.maps.shape == (2, 2, 3, 5)
    assert torch.equal(best.classes, model(batch).argsort(1, descending=True)[:, :2])
    for row in range(2):
        assert torch.equal(best.maps[row], every.maps[row, best.classes[row]])
    assert torch.equal(every.own, torch.zeros(2, 5))
    assert pool_maps(model, batch, top_k=99).maps.shape[1] == 5


@pytest.mark.parametrize("options", [{}, {"per_class": True}, {"num_heads": 4}, {"depth_token_only": 3}])
def test_scores_are_the_networks_own_and_every_map_sums_to_one_with_what_the_query_keeps(options):
    model, batch = network(**options), images()
    found = pool_maps(model, batch)
    torch.testing.assert_close(found.logits, model(batch))
    torch.testing.assert_close(found.probabilities, model(batch).softmax(1))
    torch.testing.assert_close(found.maps.sum((-1, -2)) + found.own, torch.ones_like(found.own))


def test_heads_are_averaged_and_a_layer_can_be_chosen():
    model, batch = network(num_heads=4, depth_token_only=2), images(1)
    layer, x = model.pool.layers[0], model.forward_features(batch).flatten(2).transpose(1, 2)
    first = layer.weights(model.pool.query, x).mean(1)[:, 0, 1:].unflatten(1, (3, 5))
    torch.testing.assert_close(pool_maps(model, batch, layer=0).maps, first)
    assert not torch.allclose(pool_maps(model, batch).maps, first)


def test_a_pool_put_into_a_network_shows_its_map_also_with_channels_last():
    for name, options in (("test_resnet", {}), ("test_convnext", {})):
        model = attention_pooling(timm.create_model(name, num_classes=4, **options), example=images(2, 64, 64))
        found = pool_maps(model, images(2, 64, 96))
        assert found.maps.shape == (2, 2, 3)
    model = attention_pooling(timm.create_model("test_resnet", num_classes=4), num_queries=4, example=images(2, 64, 64))
    assert pool_maps(model, images(2, 64, 96), top_k=3).maps.shape == (2, 3, 2, 3)


def test_the_network_is_as_it_was_afterwards():
    model = network(drop_rate=0.5, attn_drop_rate=0.5).train()
    model.blocks.eval()
    first, second = pool_maps(model, images()), pool_maps(model, images())
    assert torch.equal(first.logits, second.logits)
    assert model.training
    assert model.pool.training
    assert not model.blocks[0].training
    assert not model.pool._forward_pre_hooks


def test_tokens_need_a_grid_because_many_maps_have_as_many():
    model = nn.Sequential(AttentionPool(8), nn.Linear(8, 3))
    tokens = torch.randn(2, 12, 8)
    assert pool_maps(model, tokens, grid=(2, 6)).maps.shape == (2, 2, 6)
    for grid in (None, (3, 5)):
        with pytest.raises(InvalidInput, match="takes 12 tokens, so `grid` must be"):
            pool_maps(model, tokens, grid=grid)
    with pytest.raises(InvalidInput, match=r"is a map of \(3, 5\): leave it out"):
        pool_maps(network(), images(), grid=(5, 3))


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.pool = AttentionPool(8)

    def forward(self, x):
        return self.pool(x) + self.pool(x)


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (nn.Linear(8, 3), {}, "This Linear does not pool by attention"),
        (nn.Sequential(AttentionPool(8), AttentionPool(8)), {}, r"several pools .*'0', '1'"),
        (nn.Sequential(AttentionPool(8)), {"pool": "1"}, "There is no AttentionPool '1'"),
        (nn.Sequential(AttentionPool(8)), {"layer": 1}, "`layer` must be one of the 1 layers"),
        (nn.Sequential(AttentionPool(8)), {"top_k": 0}, "`top_k` must be at least 1"),
        (nn.Sequential(AttentionPool(8, num_queries=4)), {"grid": (2, 2)}, "The pool has 4 queries, but the network"),
        (Twice(), {"grid": (2, 2)}, "ran 2 times for these images"),
    ],
)
def test_what_has_no_map_is_one_sentence(model, options, message):
    with pytest.raises(InvalidInput, match=message):
        pool_maps(model, torch.randn(2, 4, 8), **options)
