"""Two processes that gather their sets train as one process on the joined batch."""

import copy
import os
import tempfile
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from setwise.nn import BatchFormer, BatchFormerV2, KeyQueue, MomentumContrast, record_attention
from setwise.nn.gather import gather_objects, gather_set

WORLD, B, N, C = 2, 5, 3, 12


def networks():
    torch.manual_seed(0)
    return {
        "v1": nn.Sequential(nn.Linear(C, C), BatchFormer(C, num_layers=2, dropout=0.0, gather=True)).double(),
        "v2": nn.Sequential(nn.Linear(C, C), BatchFormerV2(C, num_layers=2, dropout=0.0, gather=True)).double(),
    }


def batches():
    generator = torch.Generator().manual_seed(1)
    shapes = {"v1": (WORLD * B, C), "v2": (WORLD * B, N, C)}
    return {name: torch.randn(*shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}


def masks():
    """Random, one row empty on each rank."""
    mask = torch.rand(WORLD * B, WORLD * B, generator=torch.Generator().manual_seed(2)) > 0.5
    mask[1] = mask[B + 2] = False
    return mask


def paddings():
    """Random; at the last position only samples of the second rank are real, at the first nobody."""
    padding = torch.rand(WORLD * B, N, generator=torch.Generator().manual_seed(4)) > 0.5
    padding[:, 0] = padding[:B, -1] = True
    padding[B:, -1] = False
    return padding


def losses(out):
    """One number a row, which no two rows and no two streams weigh alike; their mean is the loss."""
    rows = out.flatten(1).tanh()
    return (rows * torch.linspace(0.5, 2, rows.shape[1], dtype=rows.dtype)).sum(1)


def one_of_two(rank, folder):
    """What each process does; its findings go to a file."""
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=WORLD, timeout=timedelta(seconds=60)
    )
    found = {}
    mine = slice(rank * B, (rank + 1) * B)
    for name, network in networks().items():
        x = batches()[name][mine]
        out = network(x)
        losses(out).mean().backward()
        gradients = {}
        for key, parameter in network.named_parameters():
            dist.all_reduce(parameter.grad)  # what DistributedDataParallel does
            gradients[key] = parameter.grad / WORLD
        found[name] = {"out": out.detach(), "gradients": gradients}

    relation = networks()["v1"][1]
    x = batches()["v1"][mine]
    found["masked"] = relation(x, masks()[mine]).detach()
    found["queue"] = keys_of_two_steps(batches()["v1"][mine], rank)
    found["unequal"] = keys_of_unequal_shares(rank)
    found["padded"] = padded(networks()["v2"], batches()["v2"][mine], paddings()[mine])
    with record_attention(relation.eval()) as maps:
        assert relation(x) is x
    found["map"] = maps[""][0]
    found["objects"] = gather_objects(list(range(rank + 1)))
    found["sentences"] = [_sentence(relation.train(), torch.randn(B + rank, C, dtype=torch.float64))]
    found["sentences"] += [_sentence(relation, x, torch.ones(B, B, dtype=torch.bool))]
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def keys_of_two_steps(x, rank):
    """What a queue with room for a step and a half holds after two; labels say step and rank."""
    torch.manual_seed(0)
    encoder = nn.Linear(C, C).double()
    contrast = MomentumContrast(encoder, C, dim=4, size=WORLD * B + B).double()
    for step in range(2):
        contrast(encoder, encoder(x), x + step, torch.full((B,), 10 * step + rank))
    return contrast.queue.read()


def keys_of_unequal_shares(rank):
    """A process where an image could not be read has one key less."""
    queue = KeyQueue(8, 1, gather=True)
    queue.write(torch.full((2 + rank, 1), float(rank)), torch.full((2 + rank,), rank))
    return [tensor.tolist() for tensor in queue.read()]


def padded(network, x, padding):
    """Output and weights' gradients, averaged over the processes, of a relation that keeps padding out."""
    out = network[1](network[0](x), padding=padding)
    losses(out).mean().backward()
    gradients = {key: parameter.grad for key, parameter in network.named_parameters()}
    if dist.is_initialized():
        for gradient in gradients.values():
            dist.all_reduce(gradient)
            gradient /= WORLD
    return {"out": out.detach(), "gradients": gradients}


def _sentence(relation, *inputs):
    try:
        relation(*inputs)
    except ValueError as error:
        return str(error)
    return "no error"


@pytest.fixture(scope="module")
def findings():
    """Both ranks' findings, from one start of two processes."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(one_of_two, (folder,), nprocs=WORLD)
        return [torch.load(Path(folder) / f"{rank}.pt") for rank in range(WORLD)]


@pytest.fixture
def joined():
    """The same networks in one process on the joined batch."""
    found = {}
    for name, network in networks().items():
        out = network(batches()[name])
        losses(out).mean().backward()
        found[name] = {"out": out.detach(), "gradients": {k: p.grad for k, p in network.named_parameters()}}
    return found


@pytest.mark.parametrize("name", ["v1", "v2"])
def test_each_process_relates_its_own_samples_to_those_of_all(findings, joined, name):
    plain, related = joined[name]["out"].chunk(2)
    for rank, found in enumerate(findings):
        mine = slice(rank * B, (rank + 1) * B)
        expected = torch.cat([plain[mine], related[mine]])
        torch.testing.assert_close(found[name]["out"], expected, rtol=1e-6, atol=1e-6)


def test_keys_of_all_processes_are_in_one_queue(findings):
    keys, target = findings[0]["queue"]
    assert target.sort().values.tolist() == [1] * B + [10] * B + [11] * B  # of the first step the last B are left
    assert len(keys.unique(dim=0)) == len(keys)
    assert torch.equal(keys, findings[1]["queue"][0])
    assert torch.equal(target, findings[1]["queue"][1])


def test_unequal_shares_are_kept_in_one_queue(findings):
    assert [found["unequal"] for found in findings] == [[[[0.0], [0.0], [1.0], [1.0], [1.0]], [0, 0, 1, 1, 1]]] * WORLD


@pytest.mark.parametrize("name", ["v1", "v2"])
def test_averaged_gradients_equal_those_of_one_process_on_the_joined_batch(findings, joined, name):
    for found in findings:
        for key, gradient in joined[name]["gradients"].items():
            assert gradient.any()
            torch.testing.assert_close(found[name]["gradients"][key], gradient, rtol=1e-6, atol=1e-6)


def test_a_mask_has_a_column_for_every_gathered_sample(findings):
    relation = networks()["v1"][1]
    plain, related = relation(batches()["v1"], masks()).detach().chunk(2)
    for rank, found in enumerate(findings):
        mine = slice(rank * B, (rank + 1) * B)
        torch.testing.assert_close(found["masked"], torch.cat([plain[mine], related[mine]]))


def test_padding_is_known_of_all_processes(findings):
    expected = padded(networks()["v2"], batches()["v2"], paddings())
    plain, related = expected["out"].chunk(2)
    for rank, found in enumerate(findings):
        mine = slice(rank * B, (rank + 1) * B)
        torch.testing.assert_close(found["padded"]["out"], torch.cat([plain[mine], related[mine]]))
        for key, gradient in expected["gradients"].items():
            torch.testing.assert_close(found["padded"]["gradients"][key], gradient)


def test_maps_show_the_gathered_set(findings):
    relation = networks()["v1"][1]
    with record_attention(relation) as maps:
        relation(batches()["v1"])
    for rank, found in enumerate(findings):
        assert found["map"].shape == (4, B, WORLD * B)
        torch.testing.assert_close(found["map"], maps[""][0][:, rank * B : (rank + 1) * B])


def test_objects_are_gathered_in_the_order_of_ranks(findings):
    assert [found["objects"] for found in findings] == [[[0], [0, 1]]] * WORLD


def test_unequal_batches_are_refused_on_every_process_with_their_sizes(findings):
    for found in findings:
        assert f"they hold [{B}, {B + 1}]" in found["sentences"][0]
        assert "drop_last=True" in found["sentences"][0]


def test_a_mask_of_the_own_samples_alone_is_refused_with_both_shapes(findings):
    for found in findings:
        assert f"[{B}, {WORLD * B}]" in found["sentences"][1]
        assert f"of shape [{B}, {B}]" in found["sentences"][1]


@pytest.mark.parametrize("name", ["v1", "v2"])
def test_without_a_process_group_nothing_changes(name):
    gathering, x = networks()[name], batches()[name]
    alone = copy.deepcopy(gathering)
    alone[1].gather = False
    for layer in alone[1].layers:
        layer.self_attn.gather = False
    torch.testing.assert_close(gathering(x), alone(x), rtol=1e-12, atol=1e-12)
    assert gather_set(x) is x
    assert gather_objects(x) == [x]
