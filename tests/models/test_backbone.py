"""Backbones by timm's names, their width, and the sentences for what cannot be had."""

import subprocess
import sys

import huggingface_hub
import pytest
import timm
import torch
from torch import nn

from setwise.errors import InvalidInput, RunError, SetwiseError, UnknownName
from setwise.models import OURS, create_backbone, feature_dim, list_backbones

SIDE = 32


@pytest.mark.parametrize("name", OURS)
def test_ours_are_timms(name):
    assert timm.is_model(name)
    assert name in list_backbones("*")
    assert timm.create_model(name, in_chans=3, num_classes=7)(torch.randn(2, 3, SIDE, SIDE)).shape == (2, 7)


@pytest.mark.parametrize("name", [*OURS, "test_vit", "test_resnet", "test_convnext", "test_efficientnet"])
@pytest.mark.parametrize("in_chans", [1, 3])
def test_a_backbone_gives_features_of_the_width_it_says(name, in_chans):
    backbone = create_backbone(name, in_chans=in_chans, image_size=SIDE)
    features = backbone.eval()(torch.randn(2, in_chans, SIDE, SIDE))
    assert features.shape == (2, feature_dim(backbone, in_chans=in_chans, image_size=SIDE))


@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "vgg11", "test_vit", "deit_tiny_distilled_patch16_224"])
def test_the_width_is_right_for_heads_with_a_hidden_layer(name):
    with torch.device("meta"):
        backbone = create_backbone(name).eval()
        features = backbone(torch.empty(2, 3, 224, 224))
        assert feature_dim(backbone, in_chans=3, image_size=224) == features.shape[1]
    if name == "mobilenetv3_small_050":
        assert features.shape[1] != backbone.num_features


def test_a_model_that_does_not_say_its_width_is_asked_without_a_trace():
    backbone = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Flatten(), nn.Dropout(), nn.Linear(8 * 16, 5))
    backbone[1].eval()
    state, random_state = {k: v.clone() for k, v in backbone.state_dict().items()}, torch.get_rng_state()
    assert feature_dim(backbone, in_chans=3, image_size=4) == 5
    assert all(torch.equal(value, state[name]) for name, value in backbone.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_state)
    assert [part.training for part in backbone] == [True, False, True, True, True]
    assert backbone.training
    assert feature_dim(backbone.to("meta"), in_chans=3, image_size=4) == 5


def test_a_model_that_returns_maps_is_refused():
    with pytest.raises(InvalidInput, match=r"features \[B, C\], but it returned \(2, 8, 4, 4\)"):
        feature_dim(nn.Conv2d(3, 8, 1), in_chans=3, image_size=4)


@pytest.mark.parametrize("name", ["test_vit", "test_resnet", "cifar_resnet32"])
def test_the_image_size_reaches_models_that_are_built_for_one(name):
    assert create_backbone(name, image_size=48)(torch.randn(2, 3, 48, 48)).dim() == 2


def test_options_reach_the_model():
    assert feature_dim(create_backbone("cifar_resnet32", options={"width": 4}), in_chans=3, image_size=SIDE) == 16
    assert create_backbone("test_vit", image_size=SIDE, options={"img_size": 64}).patch_embed.img_size == (64, 64)


def test_an_unknown_name_lists_the_nearest():
    with pytest.raises(UnknownName, match=r"no backbone 'cifar_resnet_32' in timm .* Nearest: cifar_resnet32"):
        create_backbone("cifar_resnet_32")
    with pytest.raises(UnknownName, match="setwise list backbones PATTERN"):
        create_backbone("zzzz")


def test_an_unknown_tag_lists_the_tags():
    with pytest.raises(UnknownName, match=r"tag \(nobody\).*resnet18\.a1_in1k"):
        create_backbone("resnet18.nobody")


@pytest.mark.parametrize("name", ["test_vit", "test_resnet", *OURS])
@pytest.mark.parametrize("option", ["widht", "img_sizes"])
@pytest.mark.parametrize("image_size", [None, SIDE])
def test_an_option_the_model_does_not_take_is_named(name, option, image_size):
    with pytest.raises(InvalidInput, match=f"Backbone '{name}' does not take these options: .*'{option}'"):
        create_backbone(name, image_size=image_size, options={option: 8})


@pytest.mark.parametrize("image_size", [None, SIDE])
@pytest.mark.parametrize("name", ["test_resnet", *OURS])
def test_an_image_size_among_the_options_of_a_model_without_one_is_named(name, image_size):
    with pytest.raises(InvalidInput, match=r"does not take these options: .*'img_size'"):
        create_backbone(name, image_size=image_size, options={"img_size": 64})


@pytest.mark.parametrize("name", [*OURS, "test_vit4"])
def test_weights_nobody_published_are_refused(name):
    with pytest.raises(InvalidInput, match=r"weights.*--backbone\.weights"):
        create_backbone(name, pretrained=True)


def test_pretrained_weights_without_a_network_end_in_a_sentence(monkeypatch, tmp_path):
    """HF_HUB_OFFLINE=1 and HF_HOME, as the hub's client keeps them once it is imported."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(RunError, match=r"weights of 'test_vit' are neither in timm's cache.*HF_HOME") as caught:
        create_backbone("test_vit", pretrained=True)
    assert isinstance(caught.value, SetwiseError)


SCRIPT_AND_TRACE = """
import itertools, timm, torch, setwise.models
for name, (num_classes, training) in itertools.product(setwise.models.OURS, ((10, True), (0, False))):
    model = timm.create_model(name, in_chans=3, num_classes=num_classes).train(training)
    x = torch.randn(2, 3, 32, 32)
    for compile_ in (torch.jit.script, torch.fx.symbolic_trace):
        assert torch.equal(compile_(model)(x), model(x)), (name, num_classes, training, compile_)
"""


def test_ours_are_scripted_and_traced_as_they_compute():
    """In a process of its own: the shape checks of the tests wrap every method, which neither can look through."""
    done = subprocess.run([sys.executable, "-c", SCRIPT_AND_TRACE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", OURS)
def test_ours_give_their_classifier_and_take_a_new_one_as_timms_do(name):
    model = timm.create_model(name, in_chans=3, num_classes=10).double().eval()
    features = model.forward_features(x := torch.randn(2, 3, SIDE, SIDE, dtype=torch.float64)).mean((2, 3))
    assert model.get_classifier().out_features == model.num_classes == 10
    model.reset_classifier(7, global_pool="avg")
    assert model(x).shape == (2, 7)
    assert model.get_classifier().out_features == model.num_classes == 7
    assert model.get_classifier().training is False
    model.reset_classifier(0)
    assert torch.equal(model(x), features)
    with pytest.raises(InvalidInput, match=r"`global_pool` of .* must be 'avg' or None, but it is 'max'"):
        model.reset_classifier(7, "max")
