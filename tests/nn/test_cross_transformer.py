"""CrossTransformer and the prototypical head: values, gradients, order, unequal shots, errors."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from setwise.errors import InvalidInput
from setwise.nn import CrossTransformer, Prototypical, rebuilding, record_attention

FIXTURES = Path(os.environ.get("SETWISE_FIXTURES", Path(__file__).parents[3] / "shared" / "fixtures"))
FILES = sorted((FIXTURES / "cross_transformer").glob("*.pt"))
SKIPPED = [pytest.param(None, marks=pytest.mark.skip(reason=f"no reference values in {FIXTURES}/cross_transformer"))]
Q, C = 3, 6
RAGGED = torch.tensor([2, 0, 1, 2, 2, 0, 2])


@pytest.fixture(params=["in_tiles", "fused"])
def way(request, monkeypatch):
    monkeypatch.setattr(rebuilding, "squared_distances", getattr(rebuilding, request.param))
    monkeypatch.setattr("setwise.nn.cross_transformer.squared_distances", getattr(rebuilding, request.param))
    return request.param


def episode(target=RAGGED, *, grid=(4, 3), support_grid=(2, 5), dtype=torch.float64, queries=Q):
    generator = torch.Generator().manual_seed(1)
    query = torch.randn(queries, C, *grid, generator=generator, dtype=dtype)
    return query, torch.randn(len(target), C, *support_grid, generator=generator, dtype=dtype), target


def head(key=5, value=7, dtype=torch.float64):
    torch.manual_seed(0)
    model = CrossTransformer(C, dim_key=key, dim_value=value).to(dtype)
    for weight in model.parameters():
        torch.nn.init.normal_(weight)
    return model


def by_loops(model, query, support, target):
    """Section 3.2 of the paper, one location at a time."""
    key, value, query, support = (x.detach().numpy() for x in (model.key.weight, model.value.weight, query, support))
    scores = np.zeros((len(query), int(target.max()) + 1))
    for i, image in enumerate(query):
        for c in range(scores.shape[1]):
            own = [
                support[j][:, a, b]
                for j in range(len(support))
                if target[j] == c
                for a, b in np.ndindex(*support.shape[2:])
            ]
            places = list(np.ndindex(*image.shape[1:]))
            for a, b in places:
                asked = key @ image[:, a, b]
                weights = np.exp([asked @ (key @ x) / np.sqrt(len(key)) for x in own])
                rebuilt = sum(w * (value @ x) for w, x in zip(weights / weights.sum(), own, strict=True))
                scores[i, c] -= ((value @ image[:, a, b] - rebuilt) ** 2).sum() / len(places)
    return torch.from_numpy(scores)


@pytest.mark.parametrize("file", FILES or SKIPPED, ids=lambda file: getattr(file, "stem", ""))
def test_scores_are_the_reference_values(file, way):
    given = torch.load(file)
    model = CrossTransformer(
        given["key_weight"].shape[1], dim_key=len(given["key_weight"]), dim_value=len(given["value_weight"])
    ).double()
    model.load_state_dict({"key.weight": given["key_weight"], "value.weight": given["value_weight"]})
    scores = model(given["query"], given["support"], given["support_target"])
    torch.testing.assert_close(scores, given["scores"], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("value", [5, 7, 3])
def test_scores_are_those_of_loops_written_from_the_paper(way, value):
    model = head(value=value)
    torch.testing.assert_close(model(*episode()), by_loops(model, *episode()), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kept", [2**30, 0], ids=["kept", "rebuilt"])
@pytest.mark.parametrize("value", [5, 7])
def test_gradients_are_those_of_finite_differences(way, kept, value, monkeypatch):
    monkeypatch.setattr(rebuilding, "KEPT_BYTES", kept)
    model = head(value=value)
    query, support, target = episode(grid=(2, 2), support_grid=(1, 2))
    names = list(dict(model.named_parameters()))

    def scores(query, support, *weights):
        return torch.func.functional_call(model, dict(zip(names, weights, strict=True)), (query, support, target))

    inputs = [x.detach().requires_grad_() for x in (query, support, *model.parameters())]
    assert torch.autograd.gradcheck(scores, inputs)


def test_many_small_tiles_and_pieces_give_the_same_scores_and_gradients(way, monkeypatch):
    model, (query, support, target) = head(), episode(grid=(7, 7))
    results = []
    for bytes_ in (None, 1):
        if bytes_ is not None:
            monkeypatch.setattr(rebuilding, "TILE_SCORES", 1)
            monkeypatch.setattr(rebuilding, "LEAST_ROWS", 16)
            monkeypatch.setattr(rebuilding, "PIECE_BYTES", {"cpu": 700})
        x = query.clone().requires_grad_()
        scores = model(x, support, target)
        results.append((scores.detach(), *torch.autograd.grad(scores.sin().sum(), [x, *model.parameters()])))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("convolve", [True, False])
def test_float32_agrees_with_float64_whether_products_are_convolutions_or_not(convolve, monkeypatch):
    monkeypatch.setattr(rebuilding, "convolutions_are_faster", lambda: convolve)
    query, support, target = episode(grid=(8, 8), dtype=torch.float32)
    wide, narrow = head(), head(dtype=torch.float32)
    narrow.load_state_dict(wide.state_dict())
    for model, x in ((wide, (query.double(), support.double())), (narrow, (query, support))):
        F.cross_entropy(model(*x, target), torch.tensor([0, 1, 2])).backward()
    torch.testing.assert_close(
        narrow(query, support, target).double(), wide(query.double(), support.double(), target), rtol=1e-5, atol=1e-5
    )
    for one, other in zip(narrow.parameters(), wide.parameters(), strict=True):
        torch.testing.assert_close(one.grad.double(), other.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model", [head(), Prototypical(C)], ids=["cross transformer", "prototypical"])
def test_the_order_of_the_support_does_not_matter(model):
    query, support, target = episode()
    order = torch.randperm(len(target), generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(model(query, support[order], target[order]), model(query, support, target))


def test_an_image_that_is_in_the_support_has_distance_zero_when_it_stands_alone():
    query, _, _ = episode(grid=(1, 1))
    assert head()(query, query, torch.arange(Q)).diagonal().abs().max() < 1e-12


def test_many_images_without_gradients_are_projected_in_parts_to_the_same_scores():
    query, support, target = episode(queries=35)
    with torch.no_grad():
        alone = head()(query, support, target)
    torch.testing.assert_close(alone, head()(query, support, target))


def test_no_queries_have_no_scores():
    query, support, target = episode()
    assert head()(query[:0], support, target).shape == (0, 3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_finite_and_near(dtype):
    query, support, target = episode(dtype=torch.float32)
    expected = head(dtype=torch.float32)(query, support, target)
    found = head(dtype=torch.float32).to(dtype)(query.to(dtype), support.to(dtype), target)
    assert found.dtype == torch.float32
    assert found.isfinite().all()
    torch.testing.assert_close(found, expected, rtol=0.1, atol=0.5)


@pytest.mark.parametrize("convolve", [True, False])
def test_under_autocast_distances_are_summed_in_float32(convolve, monkeypatch):
    monkeypatch.setattr(rebuilding, "convolutions_are_faster", lambda: convolve)
    query, key = torch.randn(40, 512), torch.randn(60, 512)
    far = 50 * torch.randn(40, 512)  # about 1.3 million, where bfloat16 goes in steps of 8192
    expected = rebuilding.squared_distances(query, far, key, torch.zeros(60, 512), (30, 30))
    with torch.autocast("cpu", torch.bfloat16):
        found = rebuilding.squared_distances(query, far, key, torch.zeros(60, 512), (30, 30))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=0)


def test_prototypical_scores_are_those_of_loops():
    query, support, target = episode()
    scores = Prototypical(C)(query, support, target)
    for i in range(Q):
        for c in range(3):
            prototype = np.mean([support[j].mean((1, 2)).numpy() for j in range(len(target)) if target[j] == c], axis=0)
            assert float(scores[i, c]) == pytest.approx(-((query[i].mean((1, 2)).numpy() - prototype) ** 2).sum())


def test_recorded_attention_rebuilds_the_query_at_that_position():
    model, (query, support, target) = head(), episode()
    with record_attention(model, positions=[(0, 2), (3, 1)]) as maps:
        scores = model(query, support, target)
    assert len(maps[""]) == Q * 3
    assert torch.equal(scores, model(query, support, target))
    for place, weights in enumerate(maps[""]):
        i, c = divmod(place, 3)
        own = support[target == c]
        assert weights.shape == (2, len(own), 2, 5)
        torch.testing.assert_close(weights.sum((1, 2, 3)), torch.ones(2, dtype=weights.dtype))
        asked = model.key.weight @ query[i][:, 3, 1]
        expected = (torch.einsum("nchw,dc,d->nhw", own, model.key.weight, asked) / 5**0.5).flatten().softmax(0)
        torch.testing.assert_close(weights[1].flatten(), expected.detach())


def test_recording_needs_positions_inside_the_map():
    with pytest.raises(InvalidInput, match="positions="), record_attention(head()):
        pass
    model = head()
    with pytest.raises(InvalidInput, match="outside the query's 4x3 map"), record_attention(model, positions=[(4, 0)]):
        model(*episode())


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("model", [head(), Prototypical(C)], ids=["cross transformer", "prototypical"])
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda q, s, t: (q, s, t + 1), "class 0 has no support image"),
        (lambda q, s, t: (q, s, t * 2), "class 1, 3 has no support image"),
        (lambda q, s, t: (q, s, t * 10**12), "without gaps"),
        (lambda q, s, t: (q, s, t - 1), "from 0 on, but it holds -1"),
        (lambda q, s, t: (q, s, t[1:]), "one label for each of the 7"),
        (lambda q, s, t: (q, s, t.double()), "whole numbers"),
        (lambda q, s, t: (q, s[:0], t[:0]), "support set is empty"),
        (lambda q, s, t: (q[:, 1:], s, t), "but have 5 and 6"),
        (lambda q, s, t: (q[:, 1:], s[:, 1:], t), "made for 6"),
        (lambda q, s, t: (q.flatten(2), s, t), "must be feature maps"),
    ],
)
def test_bad_episodes_are_refused_in_one_sentence(model, change, sentence):
    with pytest.raises(InvalidInput, match=sentence) as caught:
        model(*change(*episode()))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("widths", [{"dim": 0}, {"dim": 4, "dim_key": 0}, {"dim": 4, "dim_value": -1}])
def test_widths_below_one_are_refused(widths):
    with pytest.raises(InvalidInput, match="must be at least 1"):
        CrossTransformer(**widths)
