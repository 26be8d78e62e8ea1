"""ResNet-32 as the paper counts it, its shortcuts against plain loops, and the digits network."""

import pytest
import timm
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import setwise.models
from setwise.models import CifarResNet, DigitsCNN


def parameters(model):
    return sum(p.numel() for p in model.parameters())


def test_resnet32_has_the_parameters_of_the_paper():
    assert parameters(timm.create_model("cifar_resnet32", num_classes=0)) == 463_504  # 0.46 M, table 6
    assert parameters(timm.create_model("cifar_resnet32", num_classes=100)) == 463_504 + 100 * 64 + 100


def test_resnet32_takes_69_million_multiply_adds():
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        CifarResNet(num_classes=10)(torch.empty(1, 3, 32, 32))
    assert counter.get_total_flops() / 2 == pytest.approx(69e6, rel=0.01)  # a multiply-add is two operations


def test_resnet32_has_32_layers_with_weights():
    layers = [m for m in CifarResNet().modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(layers) == 32


def test_shortcuts_have_no_weights():
    assert {type(m) for m in CifarResNet(depth=2).modules() if list(m.parameters(recurse=False))} == {
        nn.Conv2d,
        nn.BatchNorm2d,
        nn.Linear,
    }
    for stage in (1, 2, 3):
        first = CifarResNet(depth=2).get_submodule(f"layer{stage}.0")
        assert [name for name, _ in first.named_children()] == ["conv1", "bn1", "conv2", "bn2"]


def test_option_a_takes_every_second_pixel_and_pads_channels_with_zeros():
    block = CifarResNet(depth=1, width=4).layer2[0]
    x = torch.randn(2, 4, 6, 8)
    expected = torch.zeros(2, 8, 3, 4)
    for b in range(2):
        for c in range(4):
            for row in range(3):
                for column in range(4):
                    expected[b, c + 2, row, column] = x[b, c, 2 * row, 2 * column]  # two zero channels before and after
    assert torch.equal(block._shortcut(x), expected)


def test_a_block_whose_convolutions_vanish_is_its_shortcut():
    block = CifarResNet(depth=1, width=4).layer3[0].eval()
    nn.init.zeros_(block.bn2.weight)
    x = torch.rand(2, 8, 6, 6)
    assert torch.equal(block(x), block._shortcut(x))


def test_a_block_within_a_stage_adds_its_input():
    block = CifarResNet(depth=2, width=4).layer1[1]
    x = torch.randn(2, 4, 6, 6)
    assert block._shortcut(x) is x


def test_stages_halve_the_map_twice_and_double_the_channels():
    model = CifarResNet(depth=1, width=8)
    x = torch.randn(2, 3, 32, 32)
    assert model.forward_features(x).shape == (2, 32, 8, 8)
    assert model(x).shape == (2, 10)
    assert CifarResNet(depth=1, num_classes=0)(x).shape == (2, 64)


@pytest.mark.parametrize(("kind", "size"), [(CifarResNet, 33), (CifarResNet, 5), (DigitsCNN, 9)])
def test_odd_sides_are_fine(kind, size):
    model = kind(in_chans=1, num_classes=0)
    assert model(torch.randn(2, 1, size, size)).shape == (2, model.num_features)


@pytest.mark.parametrize("name", setwise.models.OURS)
def test_every_parameter_gets_a_gradient(name):
    model = timm.create_model(name, in_chans=3, num_classes=4)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)  # timm begins with a zero at the end of a block, which lets nothing through
    nn.functional.cross_entropy(model(torch.randn(8, 3, 32, 32)), torch.arange(8) % 4).backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())


def test_the_digits_network_is_small():
    assert 20_000 < parameters(timm.create_model("digits_cnn", num_classes=0)) < 26_000
