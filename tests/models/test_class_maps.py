"""CAM, Grad-CAM and rollout, against what their papers say in loops."""

import numpy as np
import pytest
import timm
import tiny
import torch
from torch import nn

from setwise.errors import InvalidInput
from setwise.models import PatchConvNet, cam, grad_cam, rollout
from setwise.nn import AttentionPool, attention_pooling

IMAGES = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


def resnet():
    torch.manual_seed(0)
    return timm.create_model("test_resnet", num_classes=5).eval()


@torch.no_grad()
def test_cam_is_the_weights_of_the_class_times_the_features_in_loops_and_its_mean_is_the_score():
    model = resnet()
    features, logits = model.forward_features(IMAGES).numpy(), model(IMAGES)
    classes = torch.tensor([3, 1])
    maps = cam(model, IMAGES, classes)
    for row, k in enumerate(classes.tolist()):
        expected = np.zeros(features.shape[2:])
        for channel, weight in enumerate(model.fc.weight[k].tolist()):
            expected += weight * features[row, channel]
        np.testing.assert_allclose(maps[row].numpy(), expected, atol=1e-5)
        assert float(maps[row].mean() + model.fc.bias[k]) == pytest.approx(float(logits[row, k]), abs=1e-5)
    best = logits.argmax(1)
    assert torch.equal(cam(model, IMAGES), cam(model, IMAGES, best))


@pytest.mark.parametrize(("name", "options"), [("test_resnet", {}), ("cifar_resnet32", {"width": 4, "depth": 1})])
def test_grad_cam_of_an_averaging_network_is_cam_over_the_number_of_places_not_below_zero(name, options):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=5, **options)
    classes = torch.tensor([3, 1])
    expected = cam(model, IMAGES, classes)
    torch.testing.assert_close(grad_cam(model, IMAGES, classes), expected.relu() / expected[0].numel())


def test_grad_cam_is_the_gradient_by_finite_differences_also_through_attention():
    torch.manual_seed(0)
    model = PatchConvNet(embed_dim=8, depth=1, num_classes=3, init_values=0.5).double().eval()
    images = IMAGES[:1].double()
    with torch.no_grad():
        features = model.forward_features(images)
        alphas = []
        for channel in range(8):
            moved = features.clone()
            moved[:, channel] += 1e-5  # all places of a channel together: the sum of their gradients
            alphas.append(float(model.forward_head(moved)[0, 2] - model.forward_head(features)[0, 2]) / 1e-5)
        places = features[0, 0].numel()
        expected = sum(a / places * features[0, channel] for channel, a in enumerate(alphas)).relu()
    torch.testing.assert_close(grad_cam(model, images, torch.tensor([2]))[0], expected, atol=1e-8, rtol=1e-3)


def test_maps_leave_gradients_and_modes_of_the_network_alone():
    model = resnet().train()
    grad_cam(model, IMAGES)
    cam(model, IMAGES)
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: cam(timm.create_model("test_convnext", num_classes=3), IMAGES), "something between"),
        (lambda: cam(PatchConvNet(embed_dim=8, depth=1), IMAGES), "something between or does not average"),
        (lambda: cam(attention_pooling(resnet(), example=IMAGES), IMAGES), "does not average"),
        (lambda: cam(timm.create_model("test_resnet", num_classes=0), IMAGES), "is a Identity: use grad_cam"),
        (lambda: cam(nn.Linear(3, 3), IMAGES), "Linear has no forward_features"),
        (lambda: grad_cam(tiny.vit(img_size=32), IMAGES[..., :32, :32]), "which is no map"),
        (lambda: grad_cam(resnet(), IMAGES, torch.tensor([0, 5])), "one number below 5 for each of 2 images"),
    ],
)
def test_a_network_without_such_a_map_is_told_what_to_use(call, message):
    with pytest.raises(InvalidInput, match=message):
        call()


def by_loops(weights, row):
    """Start from one token and go down: half of the mass stays, half spreads as the heads' mean says."""
    total = None
    for attention in weights:  # [heads, N, N] as numpy, the first layer first
        heads, number, _ = attention.shape
        step = np.zeros((number, number))
        for i in range(number):
            for j in range(number):
                step[i, j] = 0.5 * sum(attention[h, i, j] for h in range(heads)) / heads + 0.5 * (i == j)
        total = step if total is None else step @ total
    return total[row]


def attention_of(model, images):
    """Softmax of scaled products, from the projections themselves."""
    found = []

    def keep(layer, args):
        q, k, _ = layer.qkv(args[0]).unflatten(-1, (3, layer.num_heads, -1)).permute(2, 0, 3, 1, 4)
        found.append((q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1))

    hooks = [block.attn.register_forward_pre_hook(keep) for block in model.blocks]
    model(images)
    for hook in hooks:
        hook.remove()
    return found


@torch.no_grad()
@pytest.mark.parametrize("pool", ["token", "avg"])
def test_rollout_is_what_loops_over_layers_and_tokens_give(pool):
    model = tiny.vit(img_size=(8, 12), global_pool=pool).eval()
    for block in model.blocks:
        nn.init.normal_(block.attn.qkv.weight, std=0.5)
    images = IMAGES[..., :8, :12]
    maps, weights = rollout(model, images), attention_of(model, images)
    assert maps.shape == (2, 2, 3)
    for image in range(2):
        of_image = [w[image].numpy() for w in weights]
        rows = [0] if pool == "token" else range(1, 7)
        expected = sum(by_loops(of_image, row) for row in rows)[1:] / len(rows)
        np.testing.assert_allclose(maps[image].flatten().numpy(), expected, atol=1e-5)
    assert all(block.attn.fused_attn for block in model.blocks)
    assert not any(block.attn.attn_drop._forward_hooks for block in model.blocks)


def test_rollout_refuses_attention_whose_rows_do_not_sum_to_one():
    layer = {"attn_layer": "diff", "img_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2}
    model = timm.models.VisionTransformer(**layer, num_classes=3)
    with pytest.raises(InvalidInput, match=r"one map a head, but the layers .* make 4 of 2 heads: differential"):
        rollout(model, torch.randn(1, 3, 8, 8))


def test_rollout_takes_vision_transformers_alone():
    swin = timm.create_model("swin_tiny_patch4_window7_224", img_size=64, depths=(1, 1), num_heads=(1, 1), embed_dim=8)
    for model in (resnet(), swin, nn.Sequential(AttentionPool(8))):
        with pytest.raises(InvalidInput, match="Attention rollout takes timm's vision transformers"):
            rollout(model, IMAGES)
