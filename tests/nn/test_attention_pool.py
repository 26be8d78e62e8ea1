"""Attention pooling against loops written from the paper's description, and what its users may rely on."""

import math
import subprocess
import sys

import numpy as np
import pytest
import torch

from setwise.errors import InvalidInput
from setwise.nn import AttentionPool, BatchFormer, PerClassLinear, record_attention
from setwise.nn.recompute import recomputed

B, N, C = 3, 7, 12


def pool(**options):
    """A pool in float64 whose every parameter matters."""
    torch.manual_seed(0)
    made = AttentionPool(C, **options).double()
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "gamma" in name:
                parameter.uniform_(0.1, 1)
            elif parameter.dim() > 1:
                parameter.normal_(std=0.5)
            else:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return made


def tokens(*shape):
    return torch.randn(*(shape or (B, N, C)), dtype=torch.float64)


# ------------------------------------------------------------------------------------------------------------ oracle
def layer_norm(x, p, name):
    mean = sum(x) / len(x)
    variance = sum((v - mean) ** 2 for v in x) / len(x)
    return (x - mean) / math.sqrt(variance + 1e-6) * p[f"{name}.weight"] + p[f"{name}.bias"]


def linear(x, p, name):
    return (
        np.array([sum(w * v for w, v in zip(row, x, strict=True)) for row in p[f"{name}.weight"]]) + p[f"{name}.bias"]
    )


def gelu(x):
    return np.array([0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in x])


def pool_by_loops(made, patches, num_heads):
    """One image: the class token (or tokens) attend, then are fed forward; one head's width is C / num_heads."""
    p = {name: value.detach().numpy() for name, value in made.state_dict().items()}
    queries = list(p["query"][0])
    maps = []
    for index in range(len(made.layers)):
        at = f"layers.{index}."
        seen = [*queries, *patches] if len(queries) == 1 else patches  # several class tokens are no keys
        seen = [layer_norm(token, p, at + "norm1") for token in seen]
        keys, values = ([linear(token, p, at + name) for token in seen] for name in "kv")
        updated, layer_map = [], []
        for query in queries:
            q = linear(layer_norm(query, p, at + "norm1"), p, at + "q")
            width, gathered, head_maps = C // num_heads, [], []
            for head in range(num_heads):
                part = slice(head * width, (head + 1) * width)
                weights = np.exp([q[part] @ key[part] / math.sqrt(width) for key in keys])
                weights = weights / weights.sum()
                gathered.extend(sum(w * value[part] for w, value in zip(weights, values, strict=True)))
                head_maps.append(weights)
            query = query + p[at + "gamma_1"] * linear(np.array(gathered), p, at + "proj")
            hidden = gelu(linear(layer_norm(query, p, at + "norm2"), p, at + "fc1"))
            updated.append(query + p[at + "gamma_2"] * linear(hidden, p, at + "fc2"))
            layer_map.append(head_maps)
        queries = updated
        maps.append(np.array(layer_map).transpose(1, 0, 2))  # [heads, K, keys]
    return np.array([layer_norm(query, p, "norm") for query in queries]), maps


@pytest.mark.parametrize("num_queries", [1, 5])
@pytest.mark.parametrize("num_heads", [1, 3])
@pytest.mark.parametrize("num_layers", [1, 2])
def test_pool_and_maps_are_those_of_the_loops(num_queries, num_heads, num_layers):
    made = pool(num_queries=num_queries, num_heads=num_heads, num_layers=num_layers)
    x = tokens()
    with record_attention(made) as maps:
        pooled = made(x).detach()
    for image in range(B):
        expected, expected_maps = pool_by_loops(made, list(x[image].numpy()), num_heads)
        np.testing.assert_allclose(pooled[image].reshape(num_queries, C), expected, atol=1e-12)
        for layer in range(num_layers):
            np.testing.assert_allclose(maps[""][layer][image], expected_maps[layer], atol=1e-12)


# ---------------------------------------------------------------------------------------------------------- property
@pytest.mark.parametrize("num_queries", [1, 4])
def test_the_order_of_the_patches_does_not_matter_and_the_map_follows_it(num_queries):
    made, x, order = pool(num_queries=num_queries), tokens(), torch.randperm(N)
    with record_attention(made) as maps:
        torch.testing.assert_close(made(x[:, order]), made(x), rtol=0, atol=1e-13)
    own = 1 if num_queries == 1 else 0
    torch.testing.assert_close(maps[""][0][..., own:], maps[""][1][..., own:][..., order], rtol=0, atol=1e-13)


@pytest.mark.parametrize("num_queries", [1, 4])
def test_an_image_does_not_see_the_other_images(num_queries):
    made, x = pool(num_queries=num_queries), tokens()
    torch.testing.assert_close(made(x)[1:2], made(x[1:2]), rtol=0, atol=1e-13)


def test_a_class_does_not_see_the_queries_of_other_classes():
    made, x = pool(num_queries=4), tokens()
    before = made(x)
    with torch.no_grad():
        made.query[0, 2] += torch.randn(C)  # a constant would go unseen: LayerNorm takes it off
    changed = (made(x) - before).abs().amax((0, 2)) > 1e-9
    assert changed.tolist() == [False, False, True, False]


@pytest.mark.parametrize("num_queries", [1, 4])
def test_maps_are_read_row_by_row_as_tokens(num_queries):
    made = pool(num_queries=num_queries, channels_first=True)
    x = tokens(B, C, 2, 5)
    like_tokens = pool(num_queries=num_queries)
    assert torch.equal(made(x), like_tokens(x.flatten(2).transpose(1, 2)))


@pytest.mark.parametrize(
    ("options", "keys"),
    [
        ({}, (1, 1, 1 + N)),
        ({"query_in_keys": False}, (1, 1, N)),
        ({"num_queries": 4}, (1, 4, N)),
        ({"num_queries": 4, "query_in_keys": True}, (1, 4, 4 + N)),
        ({"num_queries": 4, "num_heads": 3}, (3, 4, N)),
    ],
)
def test_shapes_of_outputs_and_maps(options, keys):
    made = pool(**options)
    with record_attention(made) as maps:
        pooled = made(tokens())
    assert pooled.shape == ((B, 4, C) if options.get("num_queries") else (B, C))
    (weights,) = maps[""]
    assert weights.shape == (B, *keys)
    assert not weights.requires_grad
    torch.testing.assert_close(weights.sum(-1), torch.ones(B, *keys[:-1], dtype=torch.float64))


@pytest.mark.parametrize("training", [True, False])
def test_recording_changes_nothing_and_leaves_no_hook(training):
    made, x = pool(dropout=0.3, attention_dropout=0.3).train(training), tokens()
    torch.manual_seed(1)
    plain = made(x)
    torch.manual_seed(1)
    with record_attention(made) as maps:
        recorded = made(x)
    assert torch.equal(plain, recorded)
    assert len(maps[""]) == 1
    made(x)
    assert len(maps[""]) == 1


@pytest.mark.parametrize("options", [{}, {"num_queries": 4}, {"num_queries": 4, "num_layers": 2}, {"num_heads": 2}])
def test_every_parameter_gets_its_gradient(options):
    made, x = pool(**options).train(), tokens().requires_grad_()
    made(x).square().sum().backward()
    # The bias of the keys adds the same to all scores of a query, and softmax does not see it.
    assert all(p.grad.abs().max() > 1e-9 for name, p in made.named_parameters() if not name.endswith("k.bias"))
    assert x.grad.any()


def test_keeping_less_for_the_backward_pass_changes_no_bit():
    x, gradients = tokens(), []
    for thrifty in (True, False):
        made = pool(num_queries=4).train()
        made.layers[0].thrifty = thrifty
        made(x).square().sum().backward()
        gradients.append([p.grad for p in made.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_recomputing_stops_before_the_product_and_keeps_the_input_alone():
    weight = torch.randn(5, 6, requires_grad=True)
    calls, kept = [], []

    def product(x):
        calls.append("steps")
        y = torch.nn.functional.gelu(x).exp()
        y = y @ weight
        calls.append("product")
        return y

    def keep(tensor):
        kept.append(tensor)
        return tensor

    x = torch.randn(4, 5, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        y = recomputed(product, x)
    assert sum(tensor.numel() for tensor in kept if tensor.data_ptr() != x.data_ptr()) == 0
    y.sum().backward()
    assert calls == ["steps", "product", "steps"]
    expected = torch.autograd.grad((torch.nn.functional.gelu(x).exp() @ weight).sum(), x)
    assert torch.equal(x.grad, expected[0])


def test_dropout_works_in_training_alone():
    made, x = pool(dropout=0.5, num_queries=4), tokens()
    assert not torch.equal(made(x), made(x))
    assert torch.equal(made.eval()(x), made(x))


def test_each_class_is_scored_by_its_own_row():
    scores = PerClassLinear(C, 5).double()
    torch.nn.init.normal_(scores.bias)
    x = tokens(B, 5, C)
    expected = torch.nn.functional.linear(x, scores.weight, scores.bias).diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(scores(x), expected, rtol=0, atol=1e-13)
    assert {k: v.shape for k, v in scores.state_dict().items()} == {
        k: v.shape for k, v in torch.nn.Linear(C, 5).state_dict().items()
    }


def test_only_what_can_be_recorded_is_asked_for():
    with pytest.raises(InvalidInput, match=r"can record \['positions'\]"), record_attention(pool(), positions=[]):
        pass
    with pytest.raises(InvalidInput, match="no relation in this Linear"), record_attention(torch.nn.Linear(2, 2)):
        pass
    both = torch.nn.ModuleList([AttentionPool(C), BatchFormer(C)])
    with record_attention(both) as maps:
        pass
    assert set(maps) == {"0", "1"}


SCRIPT_AND_TRACE = """
import itertools, torch
from setwise.nn import AttentionPool
for queries, maps, training in itertools.product((1, 4), (False, True), (True, False)):
    model = AttentionPool(12, num_queries=queries, channels_first=maps, num_layers=2).train(training)
    x = torch.randn(2, 12, 3, 4) if maps else torch.randn(2, 5, 12)
    for compile_ in (torch.jit.script, torch.fx.symbolic_trace, lambda m: torch.jit.script(torch.fx.symbolic_trace(m))):
        made = compile_(model)
        torch.testing.assert_close(made(x), model(x))
        bigger = torch.cat([x, x], 2 if maps else 1)
        torch.testing.assert_close(made(bigger), model(bigger))
"""


def test_it_can_be_scripted_and_traced():
    """In a process of its own: the shape checks of the tests wrap every method, which neither can look through."""
    done = subprocess.run([sys.executable, "-c", SCRIPT_AND_TRACE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# ------------------------------------------------------------------------------------------------------------- error
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_heads": 5}, r"`dim` \(12\) must be divisible by `num_heads` \(5\)"),
        ({"num_queries": 0}, r"`num_queries` must be at least 1, but it is 0"),
        ({"num_layers": 0}, r"`num_layers` must be at least 1, but it is 0"),
        ({"num_heads": 0}, r"`num_heads` must be at least 1, but it is 0"),
        ({"mlp_ratio": 0.01}, r"`mlp_ratio` \(0.01\) leaves no channel of `dim` \(12\)"),
        ({"dropout": 1.0}, r"`dropout` must be at least 0 and below 1, but it is 1.0"),
        ({"attention_dropout": -0.1}, r"`attention_dropout` must be at least 0 and below 1, but it is -0.1"),
    ],
)
def test_a_wrong_argument_is_one_sentence(options, message):
    with pytest.raises(InvalidInput, match=message):
        AttentionPool(C, **options)


@pytest.mark.parametrize(
    ("channels_first", "shape", "message"),
    [
        (
            False,
            (B, C, 2, 2),
            r"takes \[B, N, C\] with C = `dim` \(12\).*\[3, 12, 2, 2\]. Pass channels_first=True",
        ),
        (False, (B, N, C + 1), r"shape \[3, 7, 13\]"),
        (True, (B, 2, 2, C), r"takes \[B, C, H, W\].*shape \[3, 2, 2, 12\]. Pass channels_first=False"),
        (True, (B, N, C), r"shape \[3, 7, 12\]"),
        (False, (B, 0, C), r"needs at least one patch, but the input has shape \[3, 0, 12\]"),
    ],
)
def test_a_wrong_input_is_one_sentence(channels_first, shape, message):
    with pytest.raises(InvalidInput, match=message):
        AttentionPool(C, channels_first=channels_first)(torch.randn(shape))
