"""A relation is a plain module: it is copied, pickled, saved, compiled and exported like any other."""

import copy
import io
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file

from setwise.nn import BatchFormer, BatchFormerV2

B, N, C = 9, 5, 12
RELATIONS = {"BatchFormer": (BatchFormer, (B, C)), "BatchFormerV2": (BatchFormerV2, (B, N, C))}


@pytest.fixture(params=RELATIONS)
def relation_and_input(request):
    kind, shape = RELATIONS[request.param]
    torch.manual_seed(0)
    return kind(C, dropout=0.0, num_layers=2), torch.randn(shape)


def other(relation):
    """The same architecture with other weights."""
    fresh = copy.deepcopy(relation)
    for parameter in fresh.parameters():
        torch.nn.init.normal_(parameter)
    return fresh


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_computes_the_same_and_shares_nothing(relation_and_input, duplicate):
    relation, x = relation_and_input
    twin = duplicate(relation)
    assert torch.equal(twin(x), relation(x))
    assert not {p.data_ptr() for p in twin.parameters()} & {p.data_ptr() for p in relation.parameters()}


def test_a_state_dict_round_trip_computes_the_same(relation_and_input):
    relation, x = relation_and_input
    file = io.BytesIO()
    torch.save(relation.state_dict(), file)
    file.seek(0)
    twin = other(relation)
    assert not torch.equal(twin(x), relation(x))
    twin.load_state_dict(torch.load(file, weights_only=True), strict=True)
    assert torch.equal(twin(x), relation(x))


def test_safetensors_save_and_load(relation_and_input, tmp_path):
    relation, x = relation_and_input
    save_file(relation.state_dict(), tmp_path / "relation.safetensors")
    twin = other(relation)
    twin.load_state_dict(load_file(tmp_path / "relation.safetensors"), strict=True)
    assert torch.equal(twin(x), relation(x))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("training", [True, False])
def test_it_compiles_into_one_graph(relation_and_input, training):
    relation, x = relation_and_input
    relation.train(training)
    compiled = torch.compile(relation, backend="eager", fullgraph=True, dynamic=False)
    torch.testing.assert_close(compiled(x), relation(x))


@pytest.mark.usefixtures("unchecked")
def test_it_compiles_with_a_mask_in_float16():
    relation, x, mask = BatchFormer(C, dropout=0.0).half(), torch.randn(B, C).half(), torch.eye(B, dtype=torch.bool)
    compiled = torch.compile(relation, backend="eager", fullgraph=True, dynamic=False)
    torch.testing.assert_close(compiled(x, mask), relation(x, mask))


@pytest.mark.usefixtures("unchecked")
def test_in_evaluation_it_leaves_nothing_in_an_exported_model():
    model = torch.nn.Sequential(torch.nn.Linear(4, C), BatchFormer(C), torch.nn.Linear(C, 3)).eval()
    batch = torch.export.Dim("batch")
    program = torch.export.export(model, (torch.randn(2, 4),), dynamic_shapes=({0: batch},))
    assert {n.target.__name__ for n in program.graph.nodes if n.op == "call_function"} == {"linear.default"}
    x = torch.randn(5, 4)
    torch.testing.assert_close(program.module()(x), model(x))


def test_checkpointed_gradients_equal_plain_ones(relation_and_input):
    relation, x = relation_and_input
    relation(x).pow(3).sum().backward()
    expected = [p.grad.clone() for p in relation.parameters()]
    relation.zero_grad()
    torch.utils.checkpoint.checkpoint(relation, x.requires_grad_(), use_reentrant=False).pow(3).sum().backward()
    for parameter, gradient in zip(relation.parameters(), expected, strict=True):
        assert torch.equal(parameter.grad, gradient)


def test_on_the_meta_device_it_says_the_shape():
    with torch.device("meta"):
        assert BatchFormer(2048)(torch.empty(64, 2048)).shape == (128, 2048)
        assert BatchFormerV2(384)(torch.empty(16, 196, 384)).shape == (32, 196, 384)


def test_its_repr_says_what_it_is():
    assert "dim=12" in repr(BatchFormer(C))
    assert "channels_first=True" in repr(BatchFormerV2(C, channels_first=True))
