"""Attention pooling in place of an average pool: networks of every kind of pool, and back without a trace."""

import copy

import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from setwise.errors import InvalidInput, UnknownName
from setwise.nn import AttentionPool, PerClassLinear, attention_pooling, insert, record_attention, remove
from setwise.optim import parameter_groups

NETWORKS = {
    "a ResNet": lambda: timm.create_model("test_resnet", num_classes=7),
    "a pool that keeps a map": lambda: timm.create_model("test_convnext", num_classes=7),
    "a pool before a convolution": lambda: timm.create_model("lcnet_035", num_classes=7),
    "maps with channels last": lambda: timm.create_model(
        "swin_tiny_patch4_window7_224", img_size=64, depths=(1, 1, 1, 1), embed_dim=24, num_classes=7
    ),
    "torchvision": lambda: torchvision.models.resnet18(num_classes=7),
}
IMAGES = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", NETWORKS)
def test_it_pools_learns_shows_where_it_looks_and_leaves_without_a_trace(name):
    torch.manual_seed(0)
    model = NETWORKS[name]().eval()
    keys, plain = set(model.state_dict()), model(IMAGES)
    assert attention_pooling(model, example=IMAGES) is model
    assert keys < set(model.state_dict())
    with record_attention(model) as maps:
        out = model(IMAGES)
    assert out.shape == plain.shape
    assert not torch.allclose(out, plain)
    [[weights]] = maps.values()
    assert weights.shape[:3] == (3, 1, 1)
    torch.testing.assert_close(weights.sum(-1), torch.ones(3, 1, 1))
    out.square().sum().backward()
    assert all(bool(p.grad.any()) for m in model.modules() if isinstance(m, AttentionPool) for p in [m.query])
    assert set(remove(model).state_dict()) == keys
    assert torch.equal(model(IMAGES), plain)


def test_one_query_a_class_is_scored_by_that_classes_weights_alone():
    model = attention_pooling(timm.create_model("test_resnet", num_classes=7).eval(), num_queries=7, example=IMAGES)
    features = model.global_pool(model.forward_features(IMAGES))  # [B, K, C]
    expected = torch.stack([features[:, k] @ model.fc.weight[k] + model.fc.bias[k] for k in range(7)], dim=1)
    torch.testing.assert_close(model(IMAGES), expected)
    assert isinstance(model.fc, PerClassLinear)


def test_timms_reset_of_the_classifier_waits_until_the_pool_is_out():
    model = attention_pooling(timm.create_model("test_resnet", num_classes=7), example=IMAGES)
    with pytest.raises(InvalidInput, match=r"call setwise\.nn\.remove\(model\) first"):
        copy.deepcopy(model).reset_classifier(5)
    model = remove(model)
    model.reset_classifier(5)
    assert model.eval()(IMAGES).shape == (3, 5)


def test_queries_have_no_weight_decay_wherever_they_stand():
    model = attention_pooling(timm.create_model("test_resnet", num_classes=7), example=IMAGES)
    groups = parameter_groups(model, None, lr=0.1, weight_decay=0.05, decay_vectors=False)
    [query] = [m.query for m in model.modules() if isinstance(m, AttentionPool)]
    assert [g["weight_decay"] for g in groups for p in g["params"] if p is query] == [0.0]


def test_a_resnet50_gets_the_parameters_that_the_docstring_says():
    with torch.device("meta"):
        plain = sum(p.numel() for p in timm.create_model("resnet50").parameters())
        pool = sum(p.numel() for p in AttentionPool(2048, channels_first=True).parameters())
    assert (round(plain / 1e6, 1), round((plain + pool) / 1e6, 1)) == (25.6, 67.5)


def test_resnet50_costs_the_multiply_adds_that_the_paper_says():
    model = timm.create_model("resnet50").eval()
    counts = []
    for change in (lambda network: network, attention_pooling):
        network = change(model)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            network(torch.zeros(1, 3, 224, 224))
        counts.append(round(counter.get_total_flops() / 2e9, 2))
    assert counts == [4.09, 4.54]  # with what is no product, 4.11 and 4.57


def test_a_pool_may_be_named_where_there_are_several():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.gate, self.last = nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.AdaptiveAvgPool2d(1)
            self.fc = nn.Linear(8, 5)

        def forward(self, x):
            x = self.conv(x)
            return self.fc(self.last(x * self.gate(x)).flatten(1))

    with pytest.raises(InvalidInput, match=r"2 average pools .*gate, last.*Name it: at="):
        attention_pooling(Two())
    model = attention_pooling(Two(), at="last", example=torch.zeros(2, 3, 8, 8))
    assert isinstance(model.last.pool, AttentionPool)
    assert isinstance(model.gate, nn.AdaptiveAvgPool2d)
    with pytest.raises(UnknownName, match="did you mean 'last'"):
        attention_pooling(Two(), at="lost")


def test_removing_keeps_what_the_classifier_has_learned():
    model = attention_pooling(timm.create_model("test_resnet", num_classes=7), num_queries=7, example=IMAGES)
    with torch.no_grad():
        model.fc.weight.fill_(0.5)
    remove(model)
    assert type(model.fc) is nn.Linear
    assert bool((model.fc.weight == 0.5).all())


def test_a_copy_can_be_undone_by_itself():
    model = attention_pooling(timm.create_model("test_resnet", num_classes=7), num_queries=7, example=IMAGES)
    other = remove(copy.deepcopy(model))
    assert isinstance(model.global_pool, AttentionPool)
    assert other.fc.weight is not model.fc.weight


def test_a_relation_goes_behind_it_and_both_come_out():
    model = timm.create_model("test_resnet", num_classes=7)
    keys = set(model.state_dict())
    insert(attention_pooling(model, example=IMAGES), "batchformer", dropout=0.0)
    assert model.train()(IMAGES).shape == (6, 7)
    assert set(remove(model).state_dict()) == keys


@pytest.mark.parametrize(
    ("make", "queries", "message"),
    [
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()), 1, "has no average pools over a whole map"),
        (NETWORKS["a ResNet"], 5, r"`num_queries` must be 1 or the number of classes \(7\), but it is 5"),
        (NETWORKS["a pool that keeps a map"], 7, "need one linear classifier directly behind the pool"),
        (lambda: attention_pooling(NETWORKS["a ResNet"](), example=IMAGES), 1, "has attention pooling already"),
    ],
)
def test_errors_say_what_to_do(make, queries, message):
    model = make()
    with pytest.raises(InvalidInput, match=message):
        attention_pooling(model, queries, example=IMAGES)
