"""Models with a relation train on two processes, with no parameter left without a gradient."""

import os
import tempfile
from datetime import timedelta
from pathlib import Path

import pytest
import tiny
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from setwise.nn import insert, streams

B = 8
WORLD = 2
TOKENS = torch.randn(B, 5, 12, generator=torch.Generator().manual_seed(0))
TARGET = torch.arange(B) % 4
TEXT = tiny.text(B, padded=True)
TEXT["attention_mask"][B // WORLD :] = 1  # transformers tells a batch without padding nothing of a mask
MODELS = {
    "own, V1": ("batchformer", None),
    "own, V2": ("batchformer-v2", [0, 2]),
    "BERT, V1": ("batchformer", None),
    "BERT, V2": ("batchformer-v2", [0, 2]),
}


class Blocks(nn.Module):
    """Somebody's own transformer."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.Sequential(*[nn.TransformerEncoderLayer(12, 2, 12, 0.0, batch_first=True) for _ in range(3)])
        self.fc = nn.Linear(12, 4)

    def forward(self, x):
        return self.fc(self.blocks(x).mean(1))


def inserted(name, **options):
    relation, at = MODELS[name]
    torch.manual_seed(0)
    model = tiny.bert() if "BERT" in name else Blocks()
    torch.manual_seed(1)
    example = None if "BERT" in name else TOKENS
    return insert(model, relation, at=at, dropout=0.0, example=example, **options).train()


def loss_of(model, name, rows=slice(None)):
    """The mean loss over both streams of some of the samples."""
    if "BERT" in name:
        return model(**{key: value[rows] for key, value in TEXT.items()}).loss
    logits = model(TOKENS[rows])
    return nn.functional.cross_entropy(logits, streams.tile(TARGET[rows], like=logits))


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def one_of_two(rank, folder):
    """What each process does; its findings go to a file."""
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=WORLD, timeout=timedelta(seconds=240)
    )
    found = {}
    mine = slice(rank * B // WORLD, (rank + 1) * B // WORLD)
    for name in MODELS:
        for gather in (False, True):
            model = DistributedDataParallel(inserted(name, gather=gather))  # it does not look for unused parameters
            for _ in range(2):  # the second step fails where the first left a parameter without a gradient
                model.zero_grad()
                loss_of(model, name, mine).backward()
            found[name, gather] = gradients(model.module)
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def findings():
    """Both ranks' findings, from one start of two processes."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(one_of_two, (folder,), nprocs=WORLD)
        return [torch.load(Path(folder) / f"{rank}.pt") for rank in range(WORLD)]


def same(one, two):
    assert one.keys() == two.keys()
    for key in one:
        torch.testing.assert_close(one[key], two[key], rtol=1e-4, atol=1e-6)
    assert all(one[key].any() for key in one if "setwise_relation" in key)


@pytest.mark.parametrize("name", MODELS)
def test_two_processes_train_with_the_mean_of_their_gradients(findings, name):
    model = inserted(name)
    for rows in (slice(0, B // WORLD), slice(B // WORLD, B)):
        (loss_of(model, name, rows) / WORLD).backward()
    for found in findings:
        same(found[name, False], gradients(model))


@pytest.mark.parametrize("name", MODELS)
def test_two_processes_that_gather_train_as_one_on_all_samples(findings, name):
    model = inserted(name)
    loss_of(model, name).backward()
    for found in findings:
        same(found[name, True], gradients(model))
