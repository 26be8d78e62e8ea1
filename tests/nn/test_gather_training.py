"""Networks trained by several processes that gather their sets have the gradients of one on the joined batch."""

import contextlib
import os
import tempfile
from datetime import timedelta
from pathlib import Path

import pytest
import timm
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from setwise.nn import BatchFormer, attention, in_micro_batches, insert, streams

TOTAL, SIZE, CLASSES = 12, 16, 4
"""Samples of all processes together, side of the images, classes."""


def vit():
    sizes = {"img_size": SIZE, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
    return timm.models.VisionTransformer(**sizes, num_classes=CLASSES)


class Convolutions(nn.Module):
    """A small network with GroupNorm."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2), nn.GroupNorm(4, 16), nn.ReLU())
        self.stage = nn.Sequential(nn.Conv2d(16, 24, 3, 2), nn.GroupNorm(4, 24), nn.ReLU())
        self.pool, self.fc = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), nn.Linear(24, CLASSES)

    def forward(self, x):
        return self.fc(self.pool(self.stage(self.stem(x))))


class InMicroBatches(nn.Module):
    """Backbone in micro-batches of two, relation and head on all."""

    def __init__(self):
        super().__init__()
        self.backbone, self.relation = vit(), BatchFormer(16, num_layers=2, dropout=0.0, gather=True)
        self.head = nn.Linear(16, CLASSES)
        self.backbone.reset_classifier(0)

    def forward(self, x):
        return self.head(self.relation(in_micro_batches(self.backbone, x, 2)))


def with_memory(model):
    """As after a few steps: all processes hold the same samples."""
    relation = next(module for module in model.modules() if isinstance(module, BatchFormer))
    relation.memory.write(torch.randn(5, 16))
    return model


OPTIONS = {"num_layers": 2, "dropout": 0.0, "gather": True}
NETWORKS = {
    "a ViT with BatchFormer": lambda: insert(vit(), "batchformer", **OPTIONS),
    "a ViT with BatchFormerV2": lambda: insert(vit(), "batchformer-v2", at=[0, 1], **OPTIONS),
    "a convolutional network with BatchFormer": lambda: insert(Convolutions(), "batchformer", **OPTIONS),
    "a convolutional network with BatchFormerV2": lambda: insert(
        Convolutions(), "batchformer-v2", at="stem", **OPTIONS
    ),
    "a ViT in micro-batches": InMicroBatches,
    "a ViT through inducing points": lambda: insert(vit(), "batchformer", num_inducing=3, **OPTIONS),
    "a ViT with a memory": lambda: with_memory(insert(vit(), "batchformer", memory=7, **OPTIONS | {"num_layers": 1})),
}


def network(name):
    torch.manual_seed(0)
    return NETWORKS[name]().double().train()


def batch():
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(TOTAL, 3, SIZE, SIZE, generator=generator, dtype=torch.float64)
    return image, torch.randint(CLASSES, (TOTAL,), generator=generator)


def backward(model, image, target):
    logits = model(image)
    F.cross_entropy(logits, streams.tile(target, like=logits)).backward()


def gradients(model):
    """Name -> gradient, whole also where it is sharded."""
    whole = {n: getattr(p.grad, "full_tensor", lambda p=p: p.grad)() for n, p in model.named_parameters()}
    return {name.removeprefix("module."): gradient for name, gradient in whole.items()}


def without_gradient(x):
    """SimCLR's way: everybody's samples, but only one's own with a gradient. The control."""
    parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, x.detach().contiguous())
    parts[dist.get_rank()] = x
    return torch.cat(parts)


@contextlib.contextmanager
def gathered_by(function):
    original, attention.gather_set = attention.gather_set, function
    try:
        yield
    finally:
        attention.gather_set = original


def one_process(rank, world, folder):
    """Train every network for one step on this process's share; the gradients go to a file."""
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world, timeout=timedelta(seconds=60)
    )
    image, target = (tensor.chunk(world)[rank] for tensor in batch())
    found = {}
    for name in NETWORKS:
        model = DistributedDataParallel(network(name))
        backward(model, image, target)
        found[name] = gradients(model)
    with gathered_by(without_gradient):
        model = DistributedDataParallel(network("a ViT with BatchFormer"))
        backward(model, image, target)
        found["control"] = gradients(model)
    if world == 2:
        model = network("a ViT with BatchFormer")
        fully_shard(model, mesh=dist.device_mesh.init_device_mesh("cpu", (world,)))
        backward(model, image, target)
        found["sharded"] = gradients(model)
    if rank == 0:
        torch.save(found, f"{folder}/found.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module", params=[2, 4])
def found(request):
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(one_process, (request.param, folder), nprocs=request.param)
        return torch.load(Path(folder) / "found.pt")


def joined(name):
    model = network(name)
    backward(model, *batch())
    return gradients(model)


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-6, atol=1e-6, msg=lambda m, name=name: f"{name}: {m}")
    assert sum(gradient.any() for gradient in expected.values()) > len(expected) - 2


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_averaged_by_ddp_are_those_of_one_process_on_the_joined_batch(found, name):
    assert_same(found[name], joined(name))


def test_gathering_without_gradient_fails_the_same_test(found):
    with pytest.raises(AssertionError):
        assert_same(found["control"], joined("a ViT with BatchFormer"))


@pytest.mark.parametrize("found", [2], indirect=True)
def test_sharded_parameters_have_the_same_gradients(found):
    assert_same(found["sharded"], joined("a ViT with BatchFormer"))
