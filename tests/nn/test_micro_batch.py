"""A large batch in the memory of a small one has the gradients of the large one."""

import copy

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from setwise.nn import BatchFormer, in_micro_batches, streams

B, SIZE = 12, 5


def vit(**options):
    torch.manual_seed(0)
    sizes = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 0}
    return timm.models.VisionTransformer(**sizes, **options).double()


def convolutions(norm):
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 16, 3, 2), norm(16), nn.ReLU(), nn.Conv2d(16, 16, 3, 2), norm(16)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()).double()


BACKBONES = {
    "a ViT": vit,
    "a convolutional network with GroupNorm": lambda: convolutions(lambda c: nn.GroupNorm(4, c)),
    "a network without normalisation": lambda: convolutions(lambda c: nn.Identity()),
}


def batch():
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(B, 3, 16, 16, generator=generator, dtype=torch.float64)
    return image, torch.randint(4, (B,), generator=generator)


def gradients(backbone, features, *, clip=None):
    """Of all three parts, with ``features(backbone, image)`` before relation, head and loss."""
    torch.manual_seed(2)
    relation, head = BatchFormer(16, dropout=0.0, num_layers=2).double(), nn.Linear(16, 4).double()
    image, target = batch()
    torch.manual_seed(3)
    logits = head(relation(features(backbone, image)))
    F.cross_entropy(logits, streams.tile(target, like=logits)).backward()
    parts = nn.ModuleDict({"backbone": backbone, "relation": relation, "head": head})
    if clip:
        nn.utils.clip_grad_norm_(parts.parameters(), clip)
    return {name: parameter.grad for name, parameter in parts.named_parameters()}


def micro(backbone, image):
    return in_micro_batches(backbone, image, SIZE)


def one_graph(backbone, image):
    return torch.cat([backbone(part) for part in image.split(SIZE)])


def whole(backbone, image):
    return backbone(image)


def assert_equal(found, expected, tolerance):
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert gradient.any() or name.endswith("num_batches_tracked"), name
        torch.testing.assert_close(found[name], gradient, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", BACKBONES)
def test_gradients_are_those_of_the_whole_batch(name):
    make = BACKBONES[name]
    assert_equal(gradients(make(), micro), gradients(make(), whole), 1e-10)


def test_dropout_and_stochastic_depth_are_replayed():
    def make():
        return vit(drop_path_rate=0.3, proj_drop_rate=0.3)

    assert_equal(gradients(make(), micro), gradients(make(), one_graph), 1e-12)
    with pytest.raises(AssertionError):  # the control: without the same random state they differ
        assert_equal(gradients(make(), micro), gradients(make(), whole), 1e-6)


def test_batch_norm_updates_its_statistics_once_and_has_the_gradients_of_its_micro_batches():
    ours, reference = convolutions(nn.BatchNorm2d), convolutions(nn.BatchNorm2d)
    assert_equal(gradients(ours, micro), gradients(reference, one_graph), 1e-12)
    for (name, buffer), expected in zip(ours.named_buffers(), reference.buffers(), strict=True):
        assert torch.equal(buffer, expected), name
    assert ours[1].num_batches_tracked == 3
    assert ours[1].momentum == 0.1


def test_a_graph_that_is_retained_is_run_backward_again():
    backbone, (image, _) = convolutions(nn.BatchNorm2d), batch()
    z = in_micro_batches(backbone, image, SIZE)
    seen = backbone[1].num_batches_tracked.item(), backbone[1].running_mean.clone()
    z.square().sum().backward(retain_graph=True)
    once = [p.grad.clone() for p in backbone.parameters()]
    z.square().sum().backward()
    torch.testing.assert_close([p.grad for p in backbone.parameters()], [2 * grad for grad in once])
    assert (backbone[1].num_batches_tracked.item(), backbone[1].momentum) == (seen[0], 0.1)
    assert torch.equal(backbone[1].running_mean, seen[1])


def test_clipping_sees_the_same_norm():
    assert_equal(gradients(vit(), micro, clip=0.1), gradients(vit(), whole, clip=0.1), 1e-10)


def test_autocast_is_the_same_in_both_passes():
    def cast(features):
        def run(backbone, image):
            with torch.autocast("cpu", torch.bfloat16):
                return features(backbone.float(), image.float()).double()

        return run

    assert_equal(gradients(vit(), cast(micro)), gradients(vit(), cast(one_graph)), 1e-6)


def test_no_activations_are_kept_but_the_images_themselves():
    kept = []

    def pack(tensor):
        kept.append(tensor.numel())
        return tensor

    image, _ = batch()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        in_micro_batches(vit(), image, SIZE)
    assert sum(kept) == image.numel()


def test_a_batch_that_fits_and_an_evaluation_run_plainly():
    backbone, (image, _) = copy.deepcopy(vit()), batch()
    assert torch.equal(in_micro_batches(backbone, image, B), backbone(image))
    with torch.no_grad():
        torch.testing.assert_close(in_micro_batches(backbone, image, SIZE), backbone(image))


@pytest.mark.parametrize(("rows", "size"), [(4, 0), (0, 4)])
def test_what_cannot_be_cut_is_refused(rows, size):
    with pytest.raises(ValueError, match="micro-batch"):
        in_micro_batches(nn.Identity(), torch.randn(rows, 2), size)
