"""A relation with a memory of past samples is that relation on the joined set, and keeps no gradient of them."""

import copy

import loops
import numpy as np
import pytest
import torch

from setwise.errors import InvalidInput
from setwise.nn import BatchFormer, insert, record_attention, remove
from setwise.nn.memory import Memory

B, C, SIZE = 6, 12, 10


def samples(seed, rows=B):
    return torch.randn(rows, C, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def relation(**options):
    torch.manual_seed(0)
    return BatchFormer(C, memory=SIZE, dropout=0.0, **options).double()


def without_memory(related):
    plain = BatchFormer(C, dropout=0.0).double()
    plain.load_state_dict({n: v for n, v in related.state_dict().items() if not n.startswith("memory")})
    return plain


def test_the_first_batch_is_related_to_itself():
    with_memory = relation()
    assert torch.equal(with_memory(samples(1)), without_memory(with_memory)(samples(1)))


def test_later_batches_are_related_to_the_batch_and_the_last_samples_before_it():
    memory = relation()
    for seed in (1, 2, 3):
        memory(samples(seed))
    kept = torch.cat([samples(1), samples(2), samples(3)])[-SIZE:]
    expected = loops.encoder_layer(memory.layers[0], samples(4).numpy(), torch.cat([samples(4), kept]).numpy())
    out = memory(samples(4)).detach()
    assert torch.equal(out[:B], samples(4))
    np.testing.assert_allclose(out[B:], expected, rtol=1e-10, atol=1e-10)


def test_a_batch_larger_than_the_memory_leaves_its_last_samples():
    memory = relation()
    memory(samples(1, rows=25))
    torch.testing.assert_close(memory.memory.features.sum(0), samples(1, rows=25)[-SIZE:].sum(0))


def test_no_gradient_reaches_past_samples():
    memory, past, now = relation(), samples(1).requires_grad_(), samples(2).requires_grad_()
    memory(past)
    memory(now)[B:].pow(3).sum().backward()
    assert past.grad is None
    assert now.grad.abs().sum(1).min() > 0


def test_evaluation_returns_the_input_itself_and_writes_nothing():
    memory = relation()
    memory(samples(1))
    before = copy.deepcopy(memory.state_dict())
    x = samples(2)
    assert memory.eval()(x) is x
    memory.relate(x)
    assert all(torch.equal(value, before[name]) for name, value in memory.state_dict().items())


def test_at_test_a_sample_is_related_to_itself_and_the_memory_alone():
    memory = relation()
    memory(samples(1))
    memory.eval()
    out = memory.relate(samples(2))
    for i in range(B):
        torch.testing.assert_close(out[i : i + 1], memory.relate(samples(2)[i : i + 1]))
    seen = torch.cat([samples(2)[:1], samples(1)])
    expected = loops.encoder_layer(memory.layers[0], samples(2)[:1].numpy(), seen.numpy())
    np.testing.assert_allclose(out[:1].detach(), expected, rtol=1e-10, atol=1e-10)


def test_the_memory_is_saved_and_goes_on():
    memory = relation()
    for seed in (1, 2):
        memory(samples(seed))
    again = relation()
    again.load_state_dict(memory.state_dict())
    for seed in (3, 4):
        assert torch.equal(memory(samples(seed)), again(samples(seed)))


def test_a_batch_with_nan_is_not_kept():
    memory = relation()
    memory(samples(1))
    broken = samples(2)
    broken[3, 3] = float("nan")
    memory(broken)
    assert memory(samples(3)).isfinite().all()
    assert len(memory.memory) == SIZE  # the first and the third batch


def test_it_goes_on_through_inducing_points():
    memory = relation(num_inducing=4)
    memory(samples(1))
    expected = loops.induced_layer(memory.layers[0], samples(2).numpy(), torch.cat([samples(2), samples(1)]).numpy())
    np.testing.assert_allclose(memory(samples(2)).detach()[B:], expected, rtol=1e-10, atol=1e-10)


def test_maps_have_a_column_for_every_sample_kept():
    memory = relation()
    memory(samples(1))
    with record_attention(memory) as maps:
        memory(samples(2))
    assert maps[""][0].shape == (4, B, 2 * B)


def test_small_batches_are_no_reason_to_warn_once_there_is_a_memory(recwarn):
    memory = BatchFormer(C, memory=SIZE)
    memory.memory.write(torch.randn(SIZE, C))
    memory(torch.randn(2, C))
    assert not recwarn.list


def test_in_a_model_it_leaves_no_key_behind():
    model = torch.nn.Sequential(torch.nn.Linear(3, C), torch.nn.ReLU(), torch.nn.Linear(C, 2))
    insert(model, "batchformer", at="2", memory=SIZE, example=torch.zeros(1, 3))
    model(torch.randn(8, 3))
    kept = [len(module) for module in model.modules() if isinstance(module, Memory)]
    assert kept == [8]  # the blank samples of insert() are not among them
    assert not any("memory" in name for name in remove(model).state_dict())


def test_errors_say_what_to_do():
    with pytest.raises(InvalidInput, match=r"`memory` \(10\) goes with one layer, but `num_layers` is 2"):
        relation(num_layers=2)
    with pytest.raises(InvalidInput, match=r"there is none for the memory of 10 past samples: use one of both"):
        relation()(samples(1), torch.eye(B, dtype=torch.bool))
    with pytest.raises(InvalidInput, match=r"`memory` must be at least 0, but it is -1"):
        Memory(-1, C)
