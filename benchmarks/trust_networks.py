"""Four small networks that differ in how they pool, trained alike on the same photographs; resumable."""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from trust_scenes import Photographs

from setwise.data.dataset import IMAGENET_MEAN, IMAGENET_STD
from setwise.data.transforms import normalise
from setwise.models import PatchConvNet
from setwise.models.pooled import PooledNetwork
from setwise.seeds import generator, key

__all__ = ["NETWORKS", "accuracy", "prepared", "train"]

DIM, DEPTH = 96, 6
LAYER_SCALE = 0.1
"""Above the paper's 1e-4, which is for 60 blocks and 300 epochs."""
BATCH, LR, WEIGHT_DECAY, WARMUP, SMOOTHING, SHIFT = 64, 2e-3, 0.05, 0.1, 0.1, 8
"""Ours, the same for all four: nothing was tuned."""


class Averaged(PooledNetwork):
    """The trunk of the others, its average, and one linear layer: the network that CAM is made for."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_features = DIM
        self.trunk = PatchConvNet(num_classes=0, global_pool="", **trunk_options())
        self.reset_classifier(num_classes)

    def forward_features(self, x: Tensor) -> Tensor:
        return self.trunk.forward_features(x)


def trunk_options() -> dict[str, Any]:
    return {"embed_dim": DIM, "depth": DEPTH, "init_values": LAYER_SCALE}


def transformer(num_classes: int) -> nn.Module:
    sizes = {"img_size": 96, "patch_size": 16, "embed_dim": DIM, "depth": DEPTH, "num_heads": 3}
    return VisionTransformer(**sizes, num_classes=num_classes, dynamic_img_size=True)


NETWORKS: dict[str, Callable[[int], nn.Module]] = {
    "one query": lambda k: PatchConvNet(num_classes=k, **trunk_options()),
    "query a class": lambda k: PatchConvNet(num_classes=k, per_class=True, **trunk_options()),
    "average": Averaged,
    "transformer": transformer,
}


def prepared(images: Tensor, side: int) -> Tensor:
    """8-bit photographs -> what the networks take."""
    small = normalise(images, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    return F.interpolate(small, (side, side), mode="bilinear", align_corners=False)


def train(
    name: str,
    photographs: Photographs,
    folder: Path,
    *,
    epochs: int,
    side: int,
    max_steps: int | None = None,
    device: str = "cpu",
) -> tuple[nn.Module, float]:
    """Train one network, or read it; an unfinished one goes on at its last whole epoch.

    Returns:
        The network in evaluation, and the seconds that training took.
    """
    torch.manual_seed(key(0, "init", name))
    network = NETWORKS[name](photographs.num_classes).to(device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=LR, weight_decay=WEIGHT_DECAY)
    file, epoch, spent = folder / f"{name.replace(' ', '-')}.pt", 0, 0.0
    asked = {"epochs": epochs, "side": side, "max_steps": max_steps}
    if file.is_file():
        state = torch.load(file, device, weights_only=True)
        if state["asked"] != asked:
            raise SystemExit(f"{file} was trained with {state['asked']}, not {asked}: name another --out.")
        network.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        epoch, spent = state["epoch"], state["seconds"]
    for number in range(epoch, epochs):
        start = time.perf_counter()
        loss = _epoch(network.train(), optimizer, photographs, number, epochs=epochs, side=side, max_steps=max_steps)
        spent += time.perf_counter() - start
        state = {"model": network.state_dict(), "optimizer": optimizer.state_dict(), "epoch": number + 1}
        part = file.with_suffix(".part")
        torch.save(state | {"seconds": spent, "asked": asked}, part)
        part.replace(file)
        print(f"{name}: epoch {number + 1} of {epochs}, loss {loss:.3f}, {spent:.0f} s", flush=True)
    return network.eval(), spent


def _epoch(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    photographs: Photographs,
    epoch: int,
    *,
    epochs: int,
    side: int,
    max_steps: int | None,
) -> float:
    rng = generator(0, "epoch", epoch)  # the same order and augmentation for every network
    device = next(network.parameters()).device
    order = torch.randperm(len(photographs.train), generator=rng)
    batches = order.split(BATCH)[:max_steps]
    total = 0.0
    for step, places in enumerate(batches):
        done = (epoch + step / len(batches)) / epochs
        rate = min(1.0, done / WARMUP + 1e-3) * 0.5 * (1 + math.cos(math.pi * done))
        for group in optimizer.param_groups:
            group["lr"] = LR * rate
        images, target = _varied(photographs.train[places], rng), photographs.train_target[places].to(device)
        loss = F.cross_entropy(network(prepared(images, side).to(device)), target, label_smoothing=SMOOTHING)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        total += float(loss.detach())
    return total / len(batches)


def _varied(images: Tensor, rng: torch.Generator) -> Tensor:
    """Mirrored by half, and shifted by up to ``SHIFT`` pixels, the whole batch alike."""
    flip = torch.rand(len(images), generator=rng) < 0.5
    images = torch.where(flip[:, None, None, None], images.flip(3), images)
    padded = F.pad(images.float(), (SHIFT,) * 4, mode="reflect").to(torch.uint8)
    top, left = torch.randint(2 * SHIFT + 1, (2,), generator=rng).tolist()
    return padded[:, :, top : top + images.shape[2], left : left + images.shape[3]]


@torch.no_grad()
def accuracy(network: nn.Module, photographs: Photographs, side: int) -> float:
    """Share of held-out photographs whose class has the highest score."""
    device = next(network.parameters()).device
    hits = [
        network(prepared(images, side).to(device)).argmax(1).cpu() == target
        for images, target in zip(
            photographs.held_out.split(BATCH), photographs.held_out_target.split(BATCH), strict=True
        )
    ]
    return float(torch.cat(hits).float().mean())
