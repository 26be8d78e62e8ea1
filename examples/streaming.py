"""Train from tar shards as they stream in: BatchFormer over a set that never lies on one disk.

Without an argument four shards of scikit-learn's digits are written into a temporary folder and read back. With one it
reads yours, named as webdataset names them: local files, http, or any command that prints a shard.

    python examples/streaming.py
    python examples/streaming.py 'pipe:aws s3 cp s3://BUCKET/train-{000000..000127}.tar -'

A shard is a tar file with "KEY.npy" (an image, [1, 8, 8]) and "KEY.cls" (its label) for each sample; for photographs
take "jpg" and decode them with torchvision's transforms. Needs ``pip install 'setwise[streaming]'``.
"""

import io
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import webdataset
from sklearn.datasets import load_digits
from torch import nn

from setwise.nn import BatchFormer, streams

BATCH, DIM, SHARDS, EPOCHS, STEPS = 64, 64, 4, 4, 20


def write_shards(folder: Path) -> str:
    """Digits in shards, each with every class; returns their names as a pattern."""
    digits = load_digits()
    for shard in range(SHARDS):
        with webdataset.TarWriter(str(folder / f"digits-{shard}.tar")) as tar:
            for i in range(shard, len(digits.target), SHARDS):
                held = io.BytesIO()
                np.save(held, (digits.images[i, None] / 16).astype(np.float32))
                tar.write({"__key__": f"{i:06d}", "npy": held.getvalue(), "cls": str(digits.target[i]).encode()})
    return str(folder / f"digits-{{0..{SHARDS - 1}}}.tar")


def batches(shards: str) -> webdataset.WebLoader:
    """Shuffled batches without end, ``STEPS`` of which are an epoch.

    Every process reads shards of its own, and as many batches as any other: a gathered relation waits for all of them.
    """
    samples = webdataset.WebDataset(shards, resampled=True, shardshuffle=False, nodesplitter=webdataset.split_by_node)
    samples = samples.shuffle(1000).decode().to_tuple("npy", "cls").batched(BATCH, partial=False)
    return webdataset.WebLoader(samples, batch_size=None, num_workers=0).with_epoch(STEPS)


def train(shards: str) -> float:
    """Accuracy of the plain model on the last batches of the stream, measured before each is learned from."""
    torch.manual_seed(0)
    backbone = nn.Sequential(
        *(nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, DIM, 3, padding=1), nn.BatchNorm2d(DIM), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    )
    relation, head = BatchFormer(DIM, gather=True), nn.Linear(DIM, 10)  # gather: over all processes, where there are
    model = nn.ModuleList([backbone, relation, head])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    loader, right = batches(shards), 0.0
    for _ in range(EPOCHS):
        right = 0.0
        for image, target in loader:
            image, target = torch.as_tensor(image), torch.as_tensor(target)
            logits = head(relation(backbone(image)))
            plain, _ = streams.split(logits, like=target)
            right += (plain.argmax(1) == target).float().mean().item() / STEPS
            optimizer.zero_grad()
            F.cross_entropy(logits, streams.tile(target, like=logits)).backward()
            optimizer.step()
    return right


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(f"accuracy in the last {STEPS} steps: {train(sys.argv[1]):.1%}")
    else:
        with tempfile.TemporaryDirectory() as folder:
            print(f"accuracy in the last {STEPS} steps: {train(write_shards(Path(folder))):.1%}")
