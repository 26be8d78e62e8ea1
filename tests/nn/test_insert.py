"""A relation goes into models of timm and torchvision and one's own, and comes out without a trace."""

import copy
import pickle

import pytest
import timm
import tiny
import torch
import torchvision
from torch import nn

from setwise.nn import BatchFormer, BatchFormerV2, insert, remove

B = 8
IMAGES = tiny.images(B)


class Net(nn.Module):
    """Somebody's own network: two stages of maps and a head."""

    def __init__(self):
        super().__init__()
        self.stages = nn.ModuleList([nn.Conv2d(3, 6, 3, 2, 1), nn.Conv2d(6, 6, 3, 2, 1)])
        self.fc = nn.Linear(6, 5)

    def forward(self, x):
        for stage in self.stages:
            x = stage(x).relu()
        return self.fc(x.mean((2, 3)))


def own(**options):
    torch.manual_seed(0)
    return Net()


def sequential():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5))


def swin():
    torch.manual_seed(0)
    sizes = {"img_size": 16, "patch_size": 2, "embed_dim": 8, "depths": (1, 1), "num_heads": (1, 2), "window_size": 4}
    return timm.models.SwinTransformer(**sizes, num_classes=5, drop_path_rate=0.0)


def convnext():
    torch.manual_seed(0)
    return timm.models.ConvNeXt(dims=(4, 8, 8, 8), depths=(1, 1, 1, 1), num_classes=5)


def distilled():
    torch.manual_seed(0)
    sizes = {"img_size": 8, "patch_size": 4, "embed_dim": 12, "depth": 2, "num_heads": 2, "num_classes": 5}
    return timm.models.deit.VisionTransformerDistilled(**sizes)


def resnet():
    torch.manual_seed(0)
    return torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=5)


def torchvision_vit():
    torch.manual_seed(0)
    sizes = {"num_layers": 3, "num_heads": 2, "hidden_dim": 12, "mlp_dim": 12, "num_classes": 5}
    model = torchvision.models.VisionTransformer(image_size=8, patch_size=4, **sizes)
    nn.init.normal_(model.heads.head.weight)  # zero at the start, and all scores with it
    return model


PLACES = {
    "timm ViT, V1": (tiny.vit, "batchformer", None, 8),
    "timm ViT, V2": (tiny.vit, "batchformer-v2", [0, 2], 8),
    "timm ViT, both classifiers of a distilled one": (distilled, "batchformer", None, 8),
    "timm Swin, maps with channels last": (swin, "batchformer-v2", [1], 16),
    "timm ConvNeXt, maps with channels first": (convnext, "batchformer-v2", ["stages.1"], 32),
    "timm ConvNeXt, pooling in its head": (convnext, "batchformer", None, 32),
    "torchvision ResNet, V1": (resnet, "batchformer", None, 32),
    "torchvision ViT, V2": (torchvision_vit, "batchformer-v2", 1, 8),
    "own, V1": (own, "batchformer", None, 8),
    "a Sequential, V1": (sequential, "batchformer", "3", 8),
    "a Sequential, V2": (sequential, "batchformer-v2", ["0"], 8),
    "own, V2": (own, "batchformer-v2", "stages.0", 8),
}


@pytest.fixture(params=PLACES)
def case(request):
    """A plain model, a copy with a relation without dropout, and images of which sample 1 can be changed."""
    make, relation, at, side = PLACES[request.param]
    plain = make()
    return plain, insert(copy.deepcopy(plain), relation, at=at, dropout=0.0), tiny.images(B, side)


def frozen(model):
    """Training mode, but BatchNorm as in evaluation: it mixes the samples by itself."""
    for module in model.train().modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    return model


def state(model):
    return {key: value.clone() for key, value in model.state_dict().items()}


def traces(model):
    """Everything of a model and its submodules that an insertion could leave behind."""
    hooks = ("_forward_pre_hooks", "_forward_hooks", "_forward_pre_hooks_with_kwargs", "_forward_hooks_with_kwargs")
    return {
        name: (sorted(m.__dict__), m.training, sorted(m._modules), *(list(getattr(m, kind).items()) for kind in hooks))
        for name, m in model.named_modules()
    }


def same(one, two):
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_it_keeps_class_and_plain_keys_and_adds_those_of_the_relation(case):
    plain, model, _ = case
    assert type(model) is type(plain)
    added = set(model.state_dict()) - set(plain.state_dict())
    assert added == {f"setwise_relation.{key}" for key in model.setwise_relation.state_dict()}
    same(plain.state_dict(), {k: v for k, v in model.state_dict().items() if k not in added})
    assert {id(p) for p in model.setwise_relation.parameters()} <= {id(p) for p in model.parameters()}


def test_evaluation_equals_the_plain_model_bit_for_bit(case):
    plain, model, x = case
    plain.eval(), model.eval()
    for rows in (1, 2, B):
        assert torch.equal(_scores(model(x[:rows])), _scores(plain(x[:rows])))


def test_training_gives_both_streams_and_the_plain_one_equals_the_plain_model(case):
    plain, model, x = case
    out = _scores(frozen(model)(x))
    assert out.shape == (2 * B, 5)
    torch.testing.assert_close(out[:B], _scores(frozen(plain)(x)), rtol=0, atol=1e-6)
    assert not torch.allclose(out[B:], out[:B], atol=1e-3)


def test_related_rows_depend_on_batch_mates_and_plain_rows_do_not(case):
    _, model, x = case
    frozen(model)
    other = x.clone()
    other[1] = -x[1]
    change = (_scores(model(other)) - _scores(model(x))).abs().amax(1)
    assert change[1] > 1e-3
    assert change[[row for row in range(B) if row != 1]].max() < 1e-6
    assert change[B:].min() > 1e-6


def test_gradient_reaches_every_weight_of_model_and_relation(case):
    _, model, x = case
    _scores(frozen(model)(x)).pow(2).mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    silent = [name for name, p in model.setwise_relation.named_parameters() if not p.grad.any()]
    assert not silent


@pytest.mark.parametrize("name", PLACES)
def test_remove_leaves_no_trace(name):
    make, relation, at, _ = PLACES[name]
    plain = make()
    before, weights, bytes_before = traces(plain), state(plain), pickle.dumps(plain)
    assert remove(insert(plain, relation, at=at)) is plain
    assert traces(plain) == before
    same(state(plain), weights)
    assert pickle.dumps(plain) == bytes_before


def test_a_model_that_trained_is_plain_after_remove(case):
    plain, model, x = case
    before = traces(plain)
    _scores(model.train()(x)).mean().backward()
    assert _scores(remove(model)(x)).shape == (B, 5)
    assert traces(model) == before
    assert b"setwise" not in pickle.dumps(model)
    plain.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(_scores(plain.eval()(x)), _scores(model.eval()(x)))


def test_inserting_leaves_buffers_modes_and_gradients_as_they_were():
    model = resnet().train()
    model.layer1.eval()
    before, modes = state(model), {name: module.training for name, module in model.named_modules()}
    insert(model, "batchformer-v2", at="layer2")
    same(before, {k: v for k, v in model.state_dict().items() if not k.startswith("setwise_relation.")})
    assert modes == {n: m.training for n, m in model.named_modules() if not n.startswith("setwise_relation")}
    assert all(p.grad is None for p in model.parameters())


def _scores(out):
    return torch.stack(out).mean(0) if isinstance(out, tuple) else out


def by_hand(model, x, places):
    """A tiny ViT's related rows, layer after layer, each stream computed on its own."""
    model_relation = model.setwise_relation
    relations = list(model_relation) if isinstance(model_relation, nn.ModuleList) else [model_relation] * len(places)
    plain = related = model._pos_embed(model.patch_embed(x))
    for index, block in enumerate(model.blocks):
        plain, related = block(plain), block(related)
        if index in places:
            layers = relations[places.index(index)].layers
            related = torch.stack([layers[0](related[:, n]) for n in range(related.shape[1])], 1)
    return torch.cat([model.forward_head(model.norm(stream)) for stream in (plain, related)])


@pytest.mark.parametrize("places", [[0], [2], [0, 2], [2, 0], [-1], ["blocks.1", 0]])
@pytest.mark.parametrize("shared", [True, False])
def test_several_places_relate_the_related_stream_again(places, shared):
    names = {"blocks.1": 1, -1: 2}
    plain = tiny.vit()
    removed = copy.deepcopy(plain)
    model = insert(plain, "batchformer-v2", at=places, shared=shared, dropout=0.0)
    out = model(IMAGES)
    relations = model.setwise_relation
    remove(model)
    removed.setwise_relation = relations
    expected = by_hand(removed, IMAGES, sorted(names.get(place, place) for place in places))
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-6)


def test_the_batch_forks_at_the_place_that_runs_first():
    class Backwards(Net):
        def forward(self, x):
            first, second = self.stages[1], self.stages[0]
            return self.fc(second(first(x).relu()).mean((2, 3)))

    torch.manual_seed(0)
    model = Backwards()
    model.stages[1] = nn.Conv2d(3, 3, 3, 2, 1)
    insert(model, "batchformer-v2", at=["stages.0", "stages.1"], shared=False, dropout=0.0)
    entering = []
    model.stages[0].register_forward_pre_hook(lambda module, args: entering.append(len(args[0])))
    assert model(IMAGES).shape == (2 * B, 5)
    assert entering == [2 * B]


def test_shared_is_one_relation_and_otherwise_there_is_one_for_every_place():
    assert isinstance(insert(tiny.vit(), "batchformer-v2", at=[0, 2]).setwise_relation, BatchFormerV2)
    each = insert(tiny.vit(), "batchformer-v2", at=[0, 2], shared=False).setwise_relation
    assert [type(relation) for relation in each] == [BatchFormerV2] * 2
    assert each[0] is not each[1]


def test_v1_relates_what_the_classifier_takes():
    model = insert(tiny.vit(), "batchformer", dropout=0.0)
    taken = []
    model.head.register_forward_pre_hook(lambda module, args: taken.append(args[0]))
    model(IMAGES)
    features = tiny.vit().forward_head(model.forward_features(IMAGES), pre_logits=True)
    expected = torch.cat([features, model.setwise_relation.layers[0](features)])
    torch.testing.assert_close(taken[0], expected)


@pytest.mark.parametrize("rows", [2, 3, 4, 5, 8, 12, 13])
@pytest.mark.parametrize("at", [None, 0])
def test_a_batch_as_large_as_tokens_patches_or_channels_is_no_special_case(rows, at):
    plain, x = tiny.vit(), tiny.images(rows)
    model = insert(copy.deepcopy(plain), "batchformer" if at is None else "batchformer-v2", at=at, dropout=0.0)
    out = model(x)
    assert out.shape == (2 * rows, 5)
    torch.testing.assert_close(out[:rows], plain(x), rtol=0, atol=1e-6)
    other = x.clone()
    other[1] = -x[1]
    change = (model(other) - out).abs().amax(1)
    assert change[0] < 1e-6 < change[rows]


def test_methods_of_the_model_go_on_working():
    model = insert(tiny.vit(), "batchformer-v2", at=[1])
    assert model.forward_features(IMAGES).shape == (2 * B, 5, 12)
    assert model.forward_head(model.forward_features(IMAGES)).shape == (2 * B, 5)
    assert model.get_classifier() is model.head
    assert model.no_weight_decay() == tiny.vit().no_weight_decay()
    model.eval()
    assert torch.equal(model.forward_features(IMAGES), tiny.vit().eval().forward_features(IMAGES))
    assert len(model.get_intermediate_layers(IMAGES, n=1)[0]) == B


@pytest.mark.parametrize(("relation", "at"), [("batchformer", None), ("batchformer-v2", [0, 2])])
def test_a_module_of_ones_own_making_goes_in_as_it_is(relation, at):
    given = (BatchFormer if at is None else BatchFormerV2)(12, num_heads=3, dropout=0.1)
    model = insert(tiny.vit(), given, at=at)
    assert model.setwise_relation is given
    assert model(IMAGES).shape == (2 * B, 5)


def test_options_reach_the_relation():
    model = insert(tiny.vit(), "batchformer-v2", at=0, num_heads=3, dropout=0.25, num_layers=2, mlp_ratio=2.0)
    layer = model.setwise_relation.layers[1]
    assert (layer.self_attn.num_heads, layer.dropout.p, layer.linear1.out_features) == (3, 0.25, 24)


def test_the_relation_follows_the_models_type_device_and_mode():
    model = insert(tiny.vit().double().eval(), "batchformer")
    assert all(p.dtype == torch.float64 for p in model.setwise_relation.parameters())
    assert not model.setwise_relation.training
    assert model.train().setwise_relation.training
    on_meta = insert(tiny.vit().to("meta"), "batchformer-v2", at=0)
    assert on_meta(IMAGES.to("meta")).shape == (2 * B, 5)


def test_a_relation_in_evaluation_mode_is_off_in_a_model_that_trains():
    plain = tiny.vit()
    for at in (None, [0, 2]):
        model = insert(copy.deepcopy(plain), "batchformer-v2" if at else "batchformer", at=at)
        model.setwise_relation.eval()
        assert torch.equal(model(IMAGES), plain(IMAGES))


def test_freezing_other_parts_in_evaluation_mode_leaves_the_relation_on():
    model = insert(tiny.vit(), "batchformer-v2", at=0)
    model.blocks.eval()
    assert model(IMAGES).shape == (2 * B, 5)
    with torch.no_grad():
        assert model(IMAGES).shape == (2 * B, 5)


@pytest.mark.parametrize("example", [IMAGES, (IMAGES,), {"x": IMAGES}])
def test_an_example_tells_what_passes(example):
    model = insert(own(), "batchformer-v2", at="stages.1", example=example, channels_first=True)
    assert model.setwise_relation.dim == 6
    assert model(IMAGES).shape == (2 * B, 5)
