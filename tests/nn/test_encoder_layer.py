"""The encoder layer against torch's own and against the paper's formula in plain loops."""

import loops
import numpy as np
import pytest
import torch
from torch import nn

from setwise.nn import BatchFormer
from setwise.nn import attention as attention_module
from setwise.nn.attention import EncoderLayer, SetAttention

B, N, C = 9, 5, 12
SHAPES = [(B, C), (B, N, C)]


def samples(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def layer_and_torchs(*, num_heads=4, dropout=0.0, dtype=torch.float32):
    theirs = nn.TransformerEncoderLayer(C, num_heads, C, dropout, dtype=dtype)
    ours = EncoderLayer(C, num_heads, dropout=dropout, attention_dropout=dropout).to(dtype)
    for parameter in theirs.parameters():  # biases too: torch starts them at zero
        nn.init.normal_(parameter, std=0.5)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return ours, theirs


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("num_heads", [1, 3, 4])
@pytest.mark.parametrize("training", [True, False])
def test_layer_equals_torchs_encoder_layer(shape, num_heads, training):
    ours, theirs = layer_and_torchs(num_heads=num_heads)
    x = samples(*shape)
    expected = theirs.train(training)(x if len(shape) == 3 else x[:, None])
    torch.testing.assert_close(ours.train(training)(x), expected.reshape(x.shape), rtol=1e-5, atol=1e-5)


def test_layer_has_the_gradients_of_torchs_encoder_layer():
    ours, theirs = layer_and_torchs(dtype=torch.float64)
    x = samples(B, N, C, dtype=torch.float64)
    ours(x).pow(3).sum().backward()
    theirs(x).pow(3).sum().backward()
    for name, parameter in theirs.named_parameters():
        torch.testing.assert_close(ours.get_parameter(name).grad, parameter.grad, rtol=1e-8, atol=1e-8)


def test_evaluation_equals_torchs_whatever_the_dropout():
    ours, theirs = layer_and_torchs(dropout=0.5)
    x = samples(B, N, C)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("num_heads", [1, 3, 4])
def test_layer_equals_the_papers_formula_in_plain_loops(num_heads):
    ours, _ = layer_and_torchs(num_heads=num_heads, dtype=torch.float64)
    x = samples(B, C, dtype=torch.float64)
    np.testing.assert_allclose(ours(x).detach().numpy(), loops.encoder_layer(ours, x.numpy()), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("num_layers", [1, 3])
def test_batchformer_appends_the_papers_formula(num_layers):
    relation = BatchFormer(C, num_layers=num_layers, dropout=0.0).double()
    x = samples(B, C, dtype=torch.float64)
    expected = x.numpy()
    for layer in relation.layers:
        expected = loops.encoder_layer(layer, expected)
    out = relation(x).detach()
    np.testing.assert_array_equal(out[:B].numpy(), x.numpy())
    np.testing.assert_allclose(out[B:].numpy(), expected, rtol=1e-10, atol=1e-10)


def test_layers_of_a_relation_load_torchs_layer_strictly_and_back():
    relation, theirs = BatchFormer(C), nn.TransformerEncoderLayer(C, 4, C, 0.5)
    relation.layers[0].load_state_dict(theirs.state_dict(), strict=True)
    theirs.load_state_dict(relation.layers[0].state_dict(), strict=True)


def test_initial_weights_follow_torchs_rule():
    ours, theirs = SetAttention(64, 4), nn.MultiheadAttention(64, 4)
    assert not ours.in_proj_bias.any()
    assert not ours.out_proj.bias.any()
    bound = (6 / (4 * 64)) ** 0.5  # Xavier over the packed matrix
    for attention in (ours, theirs):
        assert attention.in_proj_weight.abs().max() <= bound
        assert attention.in_proj_weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)


@pytest.mark.parametrize("ratio", [0.5, 1.0, 4.0])
def test_mlp_ratio_sets_the_width_of_the_feed_forward_part(ratio):
    assert BatchFormer(C, mlp_ratio=ratio).layers[0].linear1.weight.shape == (C * ratio, C)


def test_default_number_of_heads_is_the_largest_divisor_up_to_four():
    heads = {dim: BatchFormer(dim).layers[0].self_attn.num_heads for dim in (8, 9, 10, 7, 1)}
    assert heads == {8: 4, 9: 3, 10: 2, 7: 1, 1: 1}


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("limit", ["MAX_GRID", "MAX_INDEX"])
def test_cutting_positions_into_chunks_changes_nothing(monkeypatch, masked, limit):
    attention = SetAttention(C, 4).double()
    x = samples(B, 2 * N + 1, C, dtype=torch.float64).requires_grad_()
    mask = torch.rand(B, B, generator=torch.Generator().manual_seed(1)) > 0.5 if masked else None
    whole = attention(x, mask)
    (expected,) = torch.autograd.grad(whole.pow(3).sum(), x)
    # four heads at 128 padded rows of 32 channels: three positions a chunk, which leaves a shorter last one
    monkeypatch.setattr(attention_module, limit, {"MAX_GRID": 3 * 4, "MAX_INDEX": 3 * 4 * 128 * 32}[limit])
    chunked = attention(x, mask)
    torch.testing.assert_close(chunked, whole)
    torch.testing.assert_close(torch.autograd.grad(chunked.pow(3).sum(), x)[0], expected)


def test_a_chunk_holds_at_least_one_position(monkeypatch):
    attention, x = SetAttention(C, 4), samples(B, 3, C)
    expected = attention(x)
    monkeypatch.setattr(attention_module, "MAX_GRID", 1)
    torch.testing.assert_close(attention(x), expected)
