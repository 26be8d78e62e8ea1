"""Two processes that share an episode's support score their queries as one process does."""

import os
import tempfile
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn import functional as F

from setwise.nn import CrossTransformer, Prototypical, record_attention

WORLD, Q, C = 2, 3, 6
TARGET = torch.tensor([1, 0, 2, 1, 1])
CUTS = (2, 5)
"""Two support images on the first process, three on the second; no process has all classes."""


def heads():
    torch.manual_seed(0)
    return {
        "cross transformer": torch.nn.ModuleList([torch.nn.Conv2d(4, C, 1), CrossTransformer(C, gather=True)]).double(),
        "prototypical": torch.nn.ModuleList([torch.nn.Conv2d(4, C, 1), Prototypical(C, gather=True)]).double(),
    }


def images():
    generator = torch.Generator().manual_seed(1)
    query = torch.randn(WORLD * Q, 4, 3, 3, generator=generator, dtype=torch.float64)
    support = torch.randn(len(TARGET), 4, 2, 3, generator=generator, dtype=torch.float64)
    return query, support, torch.arange(WORLD * Q) % 3


def step(model, query, support, target, labels):
    trunk, head = model
    scores = head(trunk(query), trunk(support), target)
    F.cross_entropy(scores, labels).backward()
    return scores.detach(), {name: weight.grad for name, weight in model.named_parameters()}


def one_of_two(rank, folder):
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=WORLD, timeout=timedelta(seconds=60)
    )
    query, support, labels = images()
    mine, own = slice(rank * Q, (rank + 1) * Q), slice((0, *CUTS)[rank], CUTS[rank])
    found = {}
    for name, model in heads().items():
        scores, gradients = step(model, query[mine], support[own], TARGET[own], labels[mine])
        for gradient in gradients.values():
            dist.all_reduce(gradient)  # what DistributedDataParallel does
            gradient /= WORLD
        found[name] = scores, gradients
    trunk, head = heads()["cross transformer"]
    with record_attention(head, positions=[(1, 1)]) as maps:
        head(trunk(query[mine]), trunk(support[own]), TARGET[own])
    found["maps"] = maps[""]
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def findings():
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(one_of_two, (folder,), nprocs=WORLD)
        return [torch.load(Path(folder) / f"{rank}.pt") for rank in range(WORLD)]


@pytest.mark.parametrize("name", heads())
def test_each_process_scores_its_queries_against_the_support_of_all(findings, name):
    query, support, labels = images()
    scores, gradients = step(heads()[name], query, support, TARGET, labels)
    for rank, found in enumerate(findings):
        torch.testing.assert_close(found[name][0], scores[rank * Q : (rank + 1) * Q], rtol=1e-10, atol=1e-10)
        for key, gradient in gradients.items():
            assert gradient.any()
            torch.testing.assert_close(found[name][1][key], gradient, rtol=1e-9, atol=1e-9)


def test_recorded_maps_cover_the_support_of_all_processes(findings):
    for found in findings:
        assert [tuple(weights.shape) for weights in found["maps"]] == [(1, n, 2, 3) for n in (1, 3, 1)] * Q
