"""The linear layer that may be a convolution: torch's own numbers, and its own layer wherever it is not."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from setwise.nn import linear
from setwise.nn.linear import Linear


@pytest.fixture
def convolutions(monkeypatch):
    """Have convolutions be faster from the first product on, and count them."""
    monkeypatch.setattr(linear, "convolutions_are_faster", lambda: True)
    monkeypatch.setattr(linear, "LEAST_PRODUCTS", 1)
    monkeypatch.setattr(linear, "LEAST_INPUT", 0)
    convolve, calls = F.conv2d, []

    def counted(*args, **options):
        calls.append(args)
        return convolve(*args, **options)

    monkeypatch.setattr(linear.F, "conv2d", counted)
    return calls


@pytest.mark.parametrize("shape", [(6,), (1, 6), (3, 6), (2, 5, 6), (2, 3, 4, 6), (0, 6)])
@pytest.mark.parametrize("bias", [True, False])
def test_values_and_gradients_are_those_of_torchs_layer(shape, bias, convolutions):
    torch.manual_seed(0)
    ours, results = Linear(6, 7, bias=bias), []
    plain = nn.Linear(6, 7, bias=bias)
    plain.load_state_dict(ours.state_dict())
    x = torch.randn(shape)
    for layer in (ours, plain):
        given = x.clone().requires_grad_()
        out = layer(given)
        out.square().sum().backward()
        results.append([out, given.grad, *(p.grad for p in layer.parameters())])
    assert len(convolutions) == (x.numel() > 0)
    for own, other in zip(*results, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-5, atol=1e-6)


def test_rows_that_do_not_lie_in_order_give_the_same(convolutions):
    layer, x = Linear(6, 7), torch.randn(2, 6, 3, 4).permute(0, 2, 3, 1)
    torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias), rtol=1e-5, atol=1e-6)
    assert convolutions
    assert layer(x).is_contiguous()


def test_other_types_autocast_and_small_products_are_torchs_own(convolutions, monkeypatch):
    layer, x = Linear(6, 7), torch.randn(3, 6)
    assert torch.equal(layer.double()(x.double()), F.linear(x.double(), layer.weight, layer.bias))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer.float()(x).dtype == torch.bfloat16
    monkeypatch.setattr(linear, "LEAST_PRODUCTS", 3 * 6 * 7 + 1)
    assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))
    monkeypatch.setattr(linear, "LEAST_PRODUCTS", 1)
    monkeypatch.setattr(linear, "convolutions_are_faster", lambda: False)
    assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))
    assert layer.to("meta")(x.to("meta")).shape == (3, 7)
    assert not convolutions


def test_a_wrong_width_is_torchs_error(convolutions):
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        Linear(6, 7)(torch.randn(3, 5))


SCRIPT_TRACE_AND_EXPORT = """
import torch
from setwise.nn import linear
linear.LEAST_PRODUCTS, linear.LEAST_INPUT, linear.convolutions_are_faster = 1, 0, lambda: True
layer, x = linear.Linear(6, 7).eval(), torch.randn(3, 6)
expected = torch.nn.functional.linear(x, layer.weight, layer.bias)
for made in (torch.jit.script(layer), torch.fx.symbolic_trace(layer), torch.export.export(layer, (x,)).module()):
    assert torch.equal(made(x), expected)
linear.F.conv2d = None  # it would have been taken otherwise
try:
    layer(x)
except TypeError:
    print("convolved")
"""


def test_scripted_traced_and_exported_it_is_torchs_layer():
    """In a process of its own: the shape checks of the tests wrap every method, which none can look through."""
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT_TRACE_AND_EXPORT]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "convolved\n"), done.stderr


def test_few_rows_do_not_repay_laying_out_the_weights_anew(convolutions, monkeypatch):
    monkeypatch.setattr(linear, "LEAST_INPUT", 1)
    layer = Linear(6, 7)
    for rows, counted in ((6, 0), (7, 1)):
        layer(torch.randn(rows, 6))
        assert len(convolutions) == counted
