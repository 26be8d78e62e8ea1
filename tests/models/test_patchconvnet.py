"""PatchConvNet against reference tensors of the released code, and its way in for official checkpoints."""

import argparse
import os
import sys
import urllib.error
from pathlib import Path

import pytest
import timm
import torch

from setwise.errors import InvalidInput, MissingFile, RunError, UnknownName
from setwise.models import create_backbone
from setwise.models.patchconvnet import SIZES, checkpoint_filter_fn
from setwise.nn import record_attention

FIXTURES = Path(os.environ.get("SETWISE_FIXTURES", Path(__file__).parents[3] / "shared" / "fixtures")) / "patchconvnet"
STATES = sorted(FIXTURES.glob("*_state.pt"))
"""Official states; what they compute stands beside each in ``*_io.pt``."""
SKIPPED = [pytest.param(Path("none"), marks=pytest.mark.skip(reason=f"no reference tensors in {FIXTURES}"))]
NAMES = [f"patchconvnet_{size}{suffix}" for size in SIZES for suffix in ("", "_multi")]
TINY = {"embed_dim": 32, "depth": 3}


def tiny(name="patchconvnet_s60", **options):
    return timm.create_model(name, **{**TINY, "num_classes": 10, **options}).eval()


@pytest.fixture(scope="module")
def twin():
    sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
    import patchconvnet_twin

    yield patchconvnet_twin
    sys.path.remove(str(Path(__file__).parents[2] / "benchmarks"))


def of_the_size_of(state, **options):
    """The network of an official state, by the shapes of its tensors."""
    _, queries, dim = state["cls_token"].shape
    depth, pools = (
        len({name.split(".")[1] for name in state if name.startswith(f"{part}.")})
        for part in ("blocks", "blocks_token_only")
    )
    classes = len(state["head.weight"]) if queries == 1 else queries
    name = "patchconvnet_s60" if queries == 1 else "patchconvnet_s60_multi"
    sizes = {"embed_dim": dim, "depth": depth, "depth_token_only": pools, "num_classes": classes}
    return timm.create_model(name, **sizes, **options).eval()


@pytest.mark.parametrize("path", STATES or SKIPPED, ids=lambda path: path.stem)
@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("thrifty", [False, True])
def test_logits_features_and_map_are_those_of_the_released_code_in_float64(path, wrapped, thrifty):
    state = torch.load(path, weights_only=True)
    expected = torch.load(path.with_name(path.name.replace("_state", "_io")), weights_only=True)
    model = of_the_size_of(state, thrifty=thrifty)
    model.load_state_dict(checkpoint_filter_fn({"model": state} if wrapped else state, model), strict=True)
    model, x = model.double(), expected["input"].double()
    for training in (False, True):  # without dropout both compute the same, by different ways
        with record_attention(model.train(training)) as maps:
            features = model.forward_head(model.forward_features(x), pre_logits=True)
            torch.testing.assert_close(features, expected["features_f64"], rtol=0, atol=1e-12)
            torch.testing.assert_close(model(x), expected["logits_f64"], rtol=0, atol=1e-12)
        torch.testing.assert_close(maps["pool"][0], expected["attn_f64"], rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_every_name_has_the_keys_and_parameters_of_its_size(name):
    size = SIZES[name.split("_")[1]]
    with torch.device("meta"):
        model = timm.create_model(name)
    d, r, classes = size["embed_dim"], round(size["embed_dim"] / 4), 1000
    block = 2 * d * (d + 1) + 10 * d + 2 * d * r + r + d + 3 * d
    stem = 9 * (3 * d // 8 + d * d // 32 + d * d // 8 + d * d // 2)
    queries = classes if name.endswith("_multi") else 1
    pool = queries * d + 4 * d * (d + 1) + 2 * d * 3 * d + 3 * d + d + 6 * d + 2 * d
    assert sum(p.numel() for p in model.parameters()) == size["depth"] * block + stem + pool + classes * (d + 1)


def test_parameters_are_those_counted_on_the_released_code():
    names = ("s60", "b120", "l60", "l120", "s60_multi")
    with torch.device("meta"):
        counts = [sum(p.numel() for p in timm.create_model(f"patchconvnet_{name}").parameters()) for name in names]
    assert counts == [25_231_096, 188_611_336, 176_009_576, 334_294_376, 25_614_712]


@pytest.mark.parametrize("name", ["patchconvnet_s60", "patchconvnet_s60_multi"])
def test_the_memory_saving_way_gives_the_same_gradients_in_trunk_and_pool(name):
    x, gradients = torch.randn(2, 3, 40, 56), []
    for thrifty in (False, True):
        torch.manual_seed(0)
        model = tiny(name, thrifty=thrifty, init_values=0.5).train()
        assert {m.thrifty for m in model.modules() if hasattr(m, "thrifty")} == {thrifty}
        assert hasattr(model.pool.layers[0], "thrifty")
        model(x).square().sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("stem", ["conv", "linear"])
@pytest.mark.parametrize(("height", "width"), [(64, 64), (112, 448), (33, 70), (5, 7)])
def test_any_size_and_aspect_ratio_has_a_sixteenth_of_each_side_rounded_up(stem, height, width):
    features = tiny(stem=stem).forward_features(torch.randn(2, 3, height, width))
    assert features.shape == (2, 32, -(-height // 16), -(-width // 16))


def test_the_layers_of_the_released_multi_variant_become_one_weight():
    single, many = tiny(), tiny("patchconvnet_s60_multi")
    with torch.no_grad():
        for parameter in many.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    official = many.state_dict()
    weight, bias = official.pop("head.weight"), official.pop("head.bias")
    for index in range(10):
        official[f"head.{index}.weight"], official[f"head.{index}.bias"] = weight[index : index + 1], bias[index, None]
    other = tiny("patchconvnet_s60_multi")
    other.load_state_dict(checkpoint_filter_fn({"model": official}, other), strict=True)
    x = torch.randn(2, 3, 48, 64)
    assert torch.equal(other(x), many(x))
    for other in (single, tiny(num_classes=4), tiny(num_classes=0)):
        with pytest.raises(InvalidInput, match=r'one query for each of 10 classes.*"_multi"'):
            checkpoint_filter_fn(official, other)


def test_without_classes_a_query_a_class_becomes_their_mean():
    many, bare = tiny("patchconvnet_s60_multi"), tiny("patchconvnet_s60_multi", num_classes=0)
    with pytest.warns(UserWarning, match="head.weight"):
        state = checkpoint_filter_fn(many.state_dict(), bare)
    bare.load_state_dict(state, strict=True)
    torch.testing.assert_close(bare.pool.query, many.pool.query.mean(1, keepdim=True))


def test_a_layer_of_the_pool_is_never_left_out_in_silence():
    two = tiny(depth_token_only=2)
    with pytest.raises(RuntimeError, match="Unexpected"):
        tiny().load_state_dict(checkpoint_filter_fn(two.state_dict(), tiny()), strict=True)
    average = tiny(global_pool="avg")
    with pytest.warns(UserWarning, match="pools by attention and this model does not"):
        checkpoint_filter_fn(two.state_dict(), average)


def test_a_query_a_class_computes_what_a_network_by_the_released_names_does(twin):
    """The benchmark's twin is written from the paper on tokens, with a linear layer for each class."""
    official = twin.TokenNetwork(32, 3, 10, per_class=True).double()
    with torch.no_grad():
        for parameter in official.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    model = tiny("patchconvnet_s60_multi").double()
    model.load_state_dict(checkpoint_filter_fn({"model": official.state_dict()}, model), strict=True)
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    torch.testing.assert_close(model(x), official(x), rtol=0, atol=1e-12)


def test_a_file_that_would_run_code_is_not_unpickled_by_pretrained(tmp_path):
    class Hostile:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    torch.save({"model": {"cls_token": Hostile()}}, tmp_path / "weights.pth")
    with pytest.raises((RunError, InvalidInput)):
        tiny(pretrained=True, pretrained_cfg_overlay={"file": str(tmp_path / "weights.pth")})
    assert not (tmp_path / "ran").exists()


def test_one_query_becomes_one_for_each_class():
    single, many = tiny(), tiny("patchconvnet_s60_multi")
    many.load_state_dict(checkpoint_filter_fn(single.state_dict(), many), strict=True)
    assert all(torch.equal(query, single.pool.query[0, 0]) for query in many.pool.query[0])
    assert torch.equal(many.head.weight, single.head.weight)


@pytest.mark.parametrize(("name", "dropped"), [("s60", set()), ("s60_multi", {"pool.query"})])
def test_another_number_of_classes_leaves_out_what_belongs_to_classes_and_says_so(name, dropped):
    given, model = tiny(f"patchconvnet_{name}"), tiny(f"patchconvnet_{name}", num_classes=4)
    with pytest.warns(UserWarning, match=r"4 classes and the checkpoint 10, so head.weight"):
        state = checkpoint_filter_fn(given.state_dict(), model)
    assert set(model.load_state_dict(state, strict=False).missing_keys) == {"head.weight", "head.bias"} | dropped


@pytest.mark.parametrize("num_classes", [1, 2, 7])
def test_the_multi_variant_takes_any_number_of_classes(num_classes):
    model = tiny("patchconvnet_s60_multi", num_classes=num_classes)
    x = torch.randn(2, 3, 48, 80)
    with record_attention(model) as maps:
        assert model(x).shape == (2, num_classes)
    assert maps["pool"][0].shape == (2, 1, num_classes, 3 * 5)
    model.reset_classifier(5)
    assert model(x).shape == (2, 5)
    model.reset_classifier(0)
    assert model(x).shape == (2, 32)


def test_batchnorm_sees_every_batch_once():
    model = tiny(norm_layer="batchnorm2d").train()
    model(torch.randn(4, 3, 32, 32)).sum().backward()
    assert {int(m.num_batches_tracked) for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)} == {1}


def test_weights_nobody_published_are_refused():
    with pytest.raises(InvalidInput, match="Nobody published weights for patchconvnet_l60"):
        timm.create_model("patchconvnet_l60", pretrained=True, **TINY)


def no_network(*_, **__):
    raise urllib.error.URLError("no network")


@pytest.mark.parametrize("create", [timm.create_model, create_backbone])
@pytest.mark.parametrize(("tag", "file"), [("", "s60_224_1k.pth"), (".fb_in22k_ft_in1k_384", "s60_384_21k.pth")])
def test_without_a_network_it_is_said_which_file_goes_where(create, tag, file, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, "urlopen", no_network)
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    with pytest.raises(
        RunError, match=rf"from https://\S*/{file} .*no network.*into {tmp_path}/checkpoints, or name it"
    ):
        create(f"patchconvnet_s60{tag}", pretrained=True)


def test_a_checkpoint_on_disk_stands_in_for_the_published_one(tmp_path):
    given, file = tiny(num_classes=1000), tmp_path / "s60.pth"
    torch.save({"model": given.state_dict(), "args": argparse.Namespace(lr=0.1)}, file)
    overlay = {"file": str(file)}
    model = tiny(num_classes=1000, pretrained=True, pretrained_cfg_overlay=overlay)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in given.state_dict().items())
    with pytest.raises(InvalidInput, match=rf"The weights from {file} do not fit patchconvnet_s60"):
        tiny(depth=4, num_classes=1000, pretrained=True, pretrained_cfg_overlay=overlay)
    with pytest.raises(InvalidInput, match=rf"The weights from {file} do not fit patchconvnet_s60"):
        tiny(depth=1, num_classes=1000, pretrained=True, pretrained_cfg_overlay=overlay)
    with pytest.raises(MissingFile, match=r"There is no weights file missing\.pth"):
        tiny(pretrained=True, pretrained_cfg_overlay={"file": "missing.pth"})
    with pytest.raises(UnknownName, match=r"no weights 'fb_in2k' of patchconvnet_s60\. Choices: fb_in1k, fb_in22k"):
        tiny("patchconvnet_s60.fb_in2k", pretrained=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stem": "fast"}, "`stem` must be 'conv' or 'linear', but it is 'fast'"),
        ({"embed_dim": 20}, r"`embed_dim` \(20\) must be divisible by 8"),
        ({"depth": 0}, "`depth` must be at least 1, but it is 0"),
        ({"drop_path_rate": 1.0}, "`drop_path_rate` must be at least 0 and below 1, but it is 1.0"),
        ({"global_pool": "max"}, "`global_pool` must be 'token', 'avg' or '', but it is 'max'"),
        ({"norm_layer": "norm"}, "`norm_layer` must be a class.*it is 'norm'"),
        ({"norm_layer": "batchnorm1d"}, "norm of maps, such as.*it is 'batchnorm1d'"),
    ],
)
def test_a_wrong_argument_is_one_sentence(options, message):
    with pytest.raises(InvalidInput, match=message):
        tiny(**options)
