"""BatchFormerV2 is BatchFormer at every position, in each layout."""

import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from setwise.errors import InvalidInput
from setwise.nn import BatchFormer, BatchFormerV2, record_attention

B, C, H, W = 8, 12, 2, 3
LAYOUTS = {"tokens": (B, H * W, C), "channels last": (B, H, W, C), "channels first": (B, C, H, W)}


def samples(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def relation(layout="tokens", **options):
    torch.manual_seed(0)
    options = {"dropout": 0.0, **options}
    return BatchFormerV2(C, channels_first=layout == "channels first", **options).double()


def as_tokens(x, layout):
    return {"tokens": x, "channels last": x.flatten(1, 2)}.get(layout, x.flatten(2).transpose(1, 2))


def one_by_one(model, tokens):
    """The same weights as a BatchFormer, called on one position after the other."""
    single = BatchFormer(C, num_layers=len(model.layers), dropout=0.0).double()
    single.load_state_dict(model.state_dict(), strict=True)
    return torch.stack([single(tokens[:, n]) for n in range(tokens.shape[1])], 1)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("num_layers", [1, 2])
def test_it_is_batchformer_position_by_position(layout, num_layers):
    model, x = relation(layout, num_layers=num_layers), samples(*LAYOUTS[layout])
    out = model(x)
    assert out.shape == (2 * B, *x.shape[1:])
    torch.testing.assert_close(as_tokens(out, layout), one_by_one(model, as_tokens(x, layout)))
    assert torch.equal(out[:B], x)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_later_insertion_relates_the_second_half_only(layout):
    model, x = relation(layout), samples(2 * B, *LAYOUTS[layout][1:])
    out = model(x, first=False)
    assert out.shape == x.shape
    assert torch.equal(out[:B], x[:B])
    torch.testing.assert_close(out[B:], model(x[B:])[B:])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("size", [1, B])
def test_evaluation_returns_the_input_itself(layout, first, size):
    x = samples(size, *LAYOUTS[layout][1:])
    assert relation(layout).eval()(x, first=first) is x


@settings(max_examples=15)
@given(st.permutations(range(B)), st.sampled_from(sorted(LAYOUTS)))
def test_the_order_of_the_set_does_not_matter(order, layout):
    model, x = relation(layout), samples(*LAYOUTS[layout])
    plain, related = model(x).chunk(2)
    plain_of_permuted, related_of_permuted = model(x[order]).chunk(2)
    assert torch.equal(plain_of_permuted, plain[order])
    torch.testing.assert_close(related_of_permuted, related[order])


def test_a_related_token_depends_on_its_own_position_of_every_sample_and_on_nothing_else():
    n = H * W
    jacobian = torch.autograd.functional.jacobian(relation(), samples(B, n, C)).abs().amax((2, 5))  # [2B, N, B, N]
    same_position = torch.eye(n, dtype=torch.bool)[None, :, None].expand(B, n, B, n)
    assert torch.equal(jacobian[B:] > 1e-10, same_position)
    itself = torch.eye(B, dtype=torch.bool)[:, None, :, None]
    assert torch.equal(jacobian[:B] > 0, same_position & itself)


def test_permuting_positions_permutes_the_output():
    model, x = relation(), samples(B, H * W, C)
    order = torch.randperm(H * W, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model(x[:, order]), model(x)[:, order])


def test_non_contiguous_input_is_fine():
    model, x = relation("channels first"), samples(B, H, W, C).permute(0, 3, 1, 2)
    torch.testing.assert_close(model(x), model(x.contiguous()))


@pytest.mark.parametrize("first", [True, False])
def test_few_samples_warn_exactly_once_and_count_one_stream(first):
    model = relation()
    x = samples(2 if first else 4, H * W, C)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model(x, first=first)
        model(x, first=first)
    assert [str(w.message)[:38] for w in caught] == ["BatchFormerV2 relates only 2 samples: t"[:38]]


def test_one_pixel_maps_equal_batchformer():
    model, x = relation("channels first"), samples(B, C, 1, 1)
    torch.testing.assert_close(model(x)[..., 0, 0], one_by_one(model, x[:, None, :, 0, 0])[:, 0])


# ------------------------------------------------------------------------------------------------------------ padding
def some_padding():
    """[B, N]: at the first position all are real, at the second one is, at the last nobody; elsewhere at random."""
    padding = torch.rand(B, H * W, generator=torch.Generator().manual_seed(3)) > 0.5
    padding[:, 0], padding[:, 1], padding[:, -1] = False, True, True
    padding[4, 1] = False
    return padding


def among_the_real(model, tokens, padding):
    """The oracle: at each position a BatchFormer of the samples that are real there; the others keep their input."""
    single = BatchFormer(C, num_layers=len(model.layers), dropout=0.0).double()
    single.load_state_dict(model.state_dict(), strict=True)
    out = tokens.clone()
    for position in range(tokens.shape[1]):
        real = [row for row in range(len(tokens)) if not padding[row, position]]
        if real:
            out[real, position] = single.relate(tokens[real, position])
    return out


@pytest.mark.filterwarnings("ignore:BatchFormer relates only")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("num_layers", [1, 2])
def test_padding_is_attended_by_nobody_and_keeps_its_input(layout, first, num_layers):
    model = relation(layout, num_layers=num_layers)
    x, padding = samples(B if first else 2 * B, *LAYOUTS[layout][1:]), some_padding()
    shaped = padding if layout == "tokens" else padding.unflatten(1, (H, W))
    plain, related = (as_tokens(stream, layout) for stream in model(x, first, shaped).chunk(2))
    tokens = as_tokens(x[-B:], layout)
    assert torch.equal(plain, as_tokens(x[:B], layout))
    assert torch.equal(related[padding], tokens[padding])
    torch.testing.assert_close(related, among_the_real(model, tokens, padding))


def test_what_stands_in_padding_changes_nobody_else():
    model, x, padding = relation(), samples(B, H * W, C), some_padding()
    for value in (1e3, torch.nan):
        other = torch.where(padding.unsqueeze(-1), value, x)
        assert torch.equal(model(x, padding=padding)[B:][~padding], model(other, padding=padding)[B:][~padding])


def test_no_padding_is_as_none():
    model, x = relation(), samples(B, H * W, C)
    torch.testing.assert_close(model(x, padding=torch.zeros(B, H * W, dtype=torch.bool)), model(x))


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_gradients_are_finite_where_all_are_padding(dropout, dtype):
    model = relation(num_layers=2, dropout=dropout).to(dtype)
    x = samples(B, H * W, C).to(dtype).requires_grad_()
    for padding in (some_padding(), torch.ones(B, H * W, dtype=torch.bool)):
        out = model(x, padding=padding)
        gradients = torch.autograd.grad(out.float().pow(2).sum(), [x, *model.parameters()])
        assert out.isfinite().all()
        assert all(gradient.isfinite().all() for gradient in gradients)
        assert torch.equal(out[B:][padding], x[padding])
    assert torch.equal(out, torch.cat([x, x]))
    assert not any(gradient.any() for gradient in gradients[1:])


@pytest.mark.parametrize("training", [True, False])
def test_recorded_maps_give_padding_no_weight(training):
    model, padding = relation().train(training), some_padding()
    x = samples(B, H * W, C)
    with record_attention(model) as maps:
        model(x, padding=padding)
    (weights,) = maps[""]
    partly = ~padding.all(0)
    assert torch.equal(weights[partly] > 0, ~padding.T[partly, None, None].expand(-1, 4, B, -1))
    torch.testing.assert_close(weights.sum(-1), torch.ones(H * W, 4, B, dtype=torch.float64))


@pytest.mark.parametrize("first", [True, False])
def test_evaluation_with_padding_returns_the_input_itself(first):
    x = samples(B, H * W, C)
    assert relation().eval()(x, first, some_padding()) is x


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("padding", [torch.zeros(B, H * W), torch.zeros(2 * B, H * W) > 0, torch.zeros(B, W) > 0])
def test_padding_of_another_type_or_shape_is_refused_with_both(padding):
    shape = list(padding.shape)
    with pytest.raises(InvalidInput, match=rf"`padding` must be boolean.*\[8, 6\].*{padding.dtype} of shape \{shape}"):
        relation()(samples(B, H * W, C), padding=padding)
