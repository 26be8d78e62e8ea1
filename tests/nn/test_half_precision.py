"""Finite in, finite out: float16 and bfloat16, as weights, as input and as autocast."""

import pytest
import torch

from setwise.nn import BatchFormer, BatchFormerV2, record_attention

B, N, C = 16, 3, 32
HUGE = torch.finfo(torch.float16).max
MODULES = {"BatchFormer": (BatchFormer, (B, C)), "BatchFormerV2": (BatchFormerV2, (B, N, C))}


@pytest.fixture(params=MODULES)
def relation_and_input(request):
    kind, shape = MODULES[request.param]
    torch.manual_seed(0)
    return kind(C, num_layers=2, dropout=0.1), torch.randn(shape)


@pytest.mark.parametrize("scale", [HUGE, 1e4, 1.0, 1e-6])
def test_float16_is_finite_for_every_finite_input(relation_and_input, scale):
    relation, x = relation_and_input
    x = (x.clamp(-1, 1) * scale).half().requires_grad_()
    assert x.isfinite().all()
    out = relation.half()(x)
    assert out.dtype == torch.float16
    assert out.isfinite().all()
    assert torch.equal(out[:B], x)


def test_float16_scores_would_overflow_if_they_were_not_computed_in_float32():
    layer = BatchFormer(C).half().layers[0]
    x = (torch.randn(B, C).sign() * 1e4).half()
    query, key, _ = layer.self_attn._project(x[:, None])
    assert not (query @ key.transpose(-2, -1)).isfinite().all()


def test_float16_input_meets_float32_weights(relation_and_input):
    relation, x = relation_and_input
    out = relation((x * 100).half())
    assert out.dtype == torch.float16
    assert out.isfinite().all()


def test_float16_equals_float32_but_for_the_rounding_of_its_ends(relation_and_input):
    relation, x = relation_and_input
    relation = relation.half()
    x = x.half()
    for module in relation.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    for layer in relation.layers:
        layer.self_attn.dropout = 0.0
    half = relation(x)
    full = relation.float()(x.float())
    # the first layer's result is rounded to float16 before the second
    torch.testing.assert_close(half.float(), full, rtol=4e-3, atol=4e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_autocast_is_finite_and_gradient_flows(relation_and_input, dtype, scale):
    relation, x = relation_and_input
    x = (x * scale).requires_grad_()
    with torch.autocast("cpu", dtype=dtype):
        out = relation(x)
    assert out.isfinite().all()
    torch.testing.assert_close(out[:B].float(), x)
    out[B:].float().pow(3).mean().backward()
    assert x.grad.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in relation.parameters())


def test_float16_autocast_computes_what_float32_computes(relation_and_input):
    relation, x = relation_and_input
    torch.manual_seed(1)
    expected = relation(x)
    torch.manual_seed(1)
    with torch.autocast("cpu", dtype=torch.float16):
        out = relation(x)
    torch.testing.assert_close(out, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_output_has_the_type_of_the_input_and_gradient_that_of_the_weights(relation_and_input, dtype):
    relation, x = relation_and_input
    x = x.to(dtype).requires_grad_()
    out = relation.to(dtype)(x)
    assert out.dtype == dtype
    out[B:].float().pow(3).sum().backward()
    assert x.grad.dtype == dtype
    assert x.grad.isfinite().all()
    for parameter in relation.parameters():
        assert parameter.grad.dtype == dtype
        assert parameter.grad.isfinite().all()
        assert parameter.grad.any()


def test_masks_and_maps_work_in_float16():
    relation, x = BatchFormer(C, dropout=0.0).half(), (torch.randn(B, C) * 1000).half()
    mask = torch.eye(B, dtype=torch.bool)
    mask[0] = False
    with record_attention(relation) as maps:
        assert relation(x, mask).isfinite().all()
    assert torch.equal(maps[""][0], torch.eye(B).expand(4, B, B))
