"""Models of transformers: what has a row for each sample is doubled by name, their loss is the mean of both streams."""

import copy
import functools
import pickle

import pytest
import tiny
import torch
import transformers
from safetensors.torch import load_file
from torch import nn

from setwise.nn import insert, remove

B = 8


def picture(rows, seed=0, padded=False):
    generator = torch.Generator().manual_seed(seed)
    return {"pixel_values": tiny.images(rows, seed=seed), "labels": torch.randint(4, (rows,), generator=generator)}


def padded_text(rows, seed=0):
    return tiny.text(rows, padded=True, seed=seed)


def padded_scenes(rows, seed=0):
    return tiny.scenes(rows, padded=True, seed=seed)


def scenes_without_mask(rows, seed=0):
    scenes = tiny.scenes(rows, seed=seed)
    return {key: scenes[key] for key in ("pixel_values", "labels")}


CASES = {
    "BERT, V1": (tiny.bert, "batchformer", None, padded_text),
    "BERT, V2": (tiny.bert, "batchformer-v2", [0, 2], padded_text),
    "BERT, eager attention": (lambda: tiny.bert(attn_implementation="eager"), "batchformer-v2", [1], padded_text),
    "GPT-2, V1": (tiny.gpt2, "batchformer", None, padded_text),
    "GPT-2, V2": (tiny.gpt2, "batchformer-v2", [0, 1], padded_text),
    "ViT, V1": (tiny.hf_vit, "batchformer", None, picture),
    "ViT, V2": (tiny.hf_vit, "batchformer-v2", [0, 2], picture),
    "DETR": (tiny.detr, "batchformer-v2", [0, 1], padded_scenes),
    "Conditional DETR": (tiny.conditional_detr, "batchformer-v2", [1], padded_scenes),
    "Deformable DETR": (tiny.deformable_detr, "batchformer-v2", [0, 1], padded_scenes),
    "RT-DETR": (tiny.rt_detr, "batchformer-v2", [0], scenes_without_mask),
}


@functools.cache
def made(name):
    make, relation, at, batch = CASES[name]
    plain = frozen(make())
    return plain, inserted(plain, relation, at=at), batch


@pytest.fixture(params=CASES)
def case(request):
    """A plain model, the same with a relation, and a function that makes batches: copies, to do with as one likes."""
    return copy.deepcopy(made(request.param))


def inserted(plain, relation="batchformer-v2", **options):
    """A copy with a relation without dropout, of the same weights every time."""
    torch.manual_seed(1)
    return insert(copy.deepcopy(plain), relation, dropout=0.0, **options)


def frozen(model):
    """Training mode, but BatchNorm as in evaluation: it mixes the samples by itself."""
    for module in model.train().modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    return model


def tensors(out):
    """The tensors of an output with one row a sample."""
    found = {"logits": out.logits, "boxes": getattr(out, "pred_boxes", None)}
    return {name: value for name, value in found.items() if value is not None}


def changed(batch):
    """The same batch, with another sample 1."""
    batch = copy.deepcopy(batch)
    if "input_ids" in batch:
        batch["input_ids"][1] = (batch["input_ids"][1] + 5) % (tiny.LETTERS - 2) * batch["attention_mask"][1]
    else:
        batch["pixel_values"][1] *= -1
    return batch


def test_evaluation_equals_the_plain_model_bit_for_bit(case):
    plain, model, batch = case
    plain.eval(), model.eval()
    for rows in (1, B):
        expected, out = plain(**batch(rows)), model(**batch(rows))
        assert out.keys() == expected.keys()
        assert torch.equal(out.loss, expected.loss)
        assert all(torch.equal(value, tensors(expected)[name]) for name, value in tensors(out).items())


def test_training_gives_both_streams_and_the_plain_one_equals_the_plain_model(case):
    plain, model, batch = case
    expected = tensors(plain(**batch(B)))
    for name, value in tensors(model(**batch(B))).items():
        assert len(value) == 2 * B
        torch.testing.assert_close(value[:B], expected[name], rtol=1e-5, atol=1e-6)
        assert not torch.allclose(value[B:], value[:B], atol=1e-3)


def test_related_rows_depend_on_batch_mates_and_plain_rows_do_not(case):
    _, model, batch = case
    one, two = tensors(model(**batch(B))), tensors(model(**changed(batch(B))))
    for name in one:
        change = (two[name] - one[name]).abs().flatten(1).amax(1)
        assert change[1] > 1e-5
        assert change[[row for row in range(B) if row != 1]].max() < 1e-6
        assert change[B] > 1e-6


def test_the_loss_is_the_mean_of_both_streams(case):
    plain, model, batch = case
    out = model(**batch(B))
    if "boxes" not in tensors(out):
        losses = [nn.functional.cross_entropy(half, batch(B)["labels"]) for half in out.logits.chunk(2)]
    else:
        losses = [_detection_loss(plain, out, half, batch(B)["labels"]) for half in (slice(B), slice(B, 2 * B))]
        torch.testing.assert_close(losses[0], plain(**batch(B)).loss, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(out.loss, sum(losses) / 2, rtol=1e-5, atol=1e-5)


def _detection_loss(model, out, rows, labels):
    """The model's own loss function on the rows of one stream."""
    device, config = out.logits.device, model.config
    if isinstance(model, transformers.RTDetrForObjectDetection):
        auxiliary = {
            "outputs_class": out.intermediate_logits[rows],
            "outputs_coord": out.intermediate_reference_points[rows],
            "enc_topk_logits": out.enc_topk_logits[rows],
            "enc_topk_bboxes": out.enc_topk_bboxes[rows],
            "denoising_meta_values": None,
        }
    else:
        auxiliary = {}
    return model.loss_function(out.logits[rows], labels, device, out.pred_boxes[rows], config, **auxiliary)[0]


def test_gradient_reaches_every_weight_that_the_plain_model_trains(case):
    plain, model, batch = case
    plain(**batch(B)).loss.backward()
    model(**batch(B)).loss.backward()
    trained = {name for name, p in plain.named_parameters() if p.grad is not None}
    reached = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.isfinite().all()}
    assert reached == trained | {f"setwise_relation.{name}" for name, _ in model.setwise_relation.named_parameters()}
    assert all(p.grad.any() for p in model.setwise_relation.parameters())


def test_saved_checkpoints_hold_plain_keys_only_and_load_into_the_plain_class(case, tmp_path):
    plain, model, batch = case
    model.save_pretrained(tmp_path)
    plain.save_pretrained(tmp_path / "plain")
    saved = load_file(tmp_path / "model.safetensors")
    assert saved.keys() == load_file(tmp_path / "plain" / "model.safetensors").keys()
    loaded, report = type(plain).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    torch.testing.assert_close(loaded.eval()(**batch(B)).logits, plain.eval()(**batch(B)).logits)
    assert set(model.state_dict()) - set(plain.state_dict()) == {
        f"setwise_relation.{key}" for key in model.setwise_relation.state_dict()
    }


def test_remove_leaves_no_trace(case):
    plain, model, batch = case
    model(**batch(B)).loss.backward()
    assert type(remove(model)) is type(plain)
    for one, two in zip(plain.modules(), model.modules(), strict=True):
        assert one.__dict__.keys() ^ two.__dict__.keys() <= {"_output_capturing_hooks_installed"}  # transformers' own
        for kind in ("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs"):
            assert len(getattr(one, kind)) == len(getattr(two, kind))
        ours = [hook for hook in two._forward_hooks.values() if "setwise" in getattr(hook, "__module__", "")]
        assert not ours
        assert not two._forward_hooks_with_kwargs
    assert model._keys_to_ignore_on_save == plain._keys_to_ignore_on_save
    plain.load_state_dict(model.state_dict(), strict=True)
    assert len(model(**batch(B)).logits) == B


@pytest.mark.parametrize("make", [tiny.bert, tiny.gpt2, tiny.hf_vit, tiny.detr])
def test_the_pickle_of_a_model_knows_nothing_of_setwise_after_remove(make):
    model = make()
    before = pickle.dumps(model)
    removed = remove(insert(model, "batchformer-v2", at=[0]))
    assert pickle.dumps(removed) == before
    assert b"setwise" not in before


# ------------------------------------------------------------------------------------ named, never guessed by size
SIZES = [
    ("Deformable DETR", 3, "levels"),
    ("Deformable DETR", 5, "queries"),
    ("Deformable DETR", 32, "channels"),
    ("Deformable DETR", 84, "positions of all levels"),
    ("DETR", 5, "queries"),
    ("DETR", 16, "channels"),
    ("DETR", 4, "positions"),
    ("DETR", 2, "coordinates and layers"),
    ("Conditional DETR", 5, "queries"),
    ("Conditional DETR", 16, "channels"),
]


@pytest.mark.parametrize(("name", "rows", "of"), SIZES)
def test_a_batch_as_large_as_the_number_of_is_no_special_case(name, rows, of):
    plain = frozen(tiny.DETECTORS[name]())
    model = inserted(plain, at=[0])
    batch = padded_scenes(rows)
    with torch.no_grad():
        expected, out, other = plain(**batch), model(**batch), model(**changed(batch))
    for key in ("logits", "pred_boxes"):
        assert len(out[key]) == 2 * rows
        torch.testing.assert_close(out[key][:rows], expected[key], rtol=0, atol=1e-5)
        change = (other[key] - out[key]).abs().flatten(1).amax(1)
        assert change[0] < 1e-6 < change[rows]
        assert change[1] > 1e-5


@pytest.mark.parametrize("rows", [2, 3, 6, 16])
@pytest.mark.parametrize("at", [None, [0], [1]])
def test_a_batch_as_large_as_the_text_or_the_hidden_size_is_no_special_case(rows, at):
    plain = tiny.bert()
    model = inserted(plain, "batchformer-v2" if at else "batchformer", at=at)
    for batch in (tiny.text(rows), padded_text(rows), tiny.text(rows, length=rows)):
        logits, expected = model(**batch).logits, plain(**batch).logits
        torch.testing.assert_close(logits[:rows], expected, rtol=0, atol=1e-6)
        change = (model(**changed(batch)).logits - logits).abs().amax(1)
        assert change[0] < 1e-6 < change[rows]


# ------------------------------------------------------------------------------------------------- layer by layer
def related_by_hand(model, relation, batch, places, *, mask_padding):
    """The related stream of a tiny BERT, layer after layer; at every position only those attend who are not padding."""
    mask = batch["attention_mask"].bool()
    x = model.bert.embeddings(batch["input_ids"])
    attended = mask[:, None, None].expand(-1, 1, mask.shape[1], -1)
    for index, layer in enumerate(model.bert.encoder.layer):
        x = layer(x, attended)
        if index not in places:
            continue
        related = x.clone()
        for position in range(x.shape[1]):
            real = mask[:, position] if mask_padding else torch.ones_like(mask[:, position])
            if real.any():
                related[real, position] = relation.layers[0](x[real, position])
        x = related
    return model.classifier(model.bert.pooler(x))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("mask_padding", [None, True, False])
@pytest.mark.parametrize("places", [[0], [0, 2], [1, 2]])
def test_bert_relates_layer_by_layer_what_is_not_padding(places, mask_padding, attention):
    model = inserted(tiny.bert(attn_implementation=attention), at=places, mask_padding=mask_padding)
    batch = tiny.text(5, padded=True)  # nobody's last position is padding, everybody's is real up to the second
    batch["attention_mask"][:, -1] = 0  # now the last is padding everywhere
    logits = model(**batch).logits
    relation = model.setwise_relation
    remove(model).set_attn_implementation("sdpa")
    expected = related_by_hand(model, relation, batch, places, mask_padding=mask_padding is not False)
    torch.testing.assert_close(logits[5:], expected, rtol=1e-4, atol=1e-6)


def reach_of_padding(model, batch):
    """How far related rows of others move when the padding of sample 1 changes."""
    other = copy.deepcopy(batch)
    if "input_ids" in batch:
        other["input_ids"] = torch.where(batch["attention_mask"].bool(), batch["input_ids"], 7)
        others = [0]
    else:
        other["pixel_values"] = torch.where(batch["pixel_mask"][:, None].bool(), batch["pixel_values"], 3.0)
        others = [0, 2]
    with torch.no_grad():
        out, moved = model(**batch).logits, model(**other).logits
    return (moved - out)[len(out) // 2 :][others].abs().max()


@pytest.mark.parametrize("make", [tiny.bert, tiny.gpt2])
def test_padding_of_text_is_kept_out_unless_asked_for(make):
    batch = padded_text(B)
    assert reach_of_padding(inserted(make(), at=[0]), batch) == 0
    attending = inserted(make(), at=[0], mask_padding=False)
    assert reach_of_padding(attending, batch) > 1e-5


@pytest.mark.parametrize("place", ["bert.embeddings", "bert.embeddings.LayerNorm"])
def test_a_layer_that_is_given_no_mask_keeps_the_models_padding_out(place):
    batch = tiny.text(4, padded=True)
    assert reach_of_padding(inserted(tiny.bert(), at=place), batch) == 0
    assert reach_of_padding(inserted(tiny.bert(), at=place, mask_padding=False), batch) > 1e-5


def test_the_padding_of_images_is_attended_as_in_the_paper_unless_kept_out():
    batch = padded_scenes(4)
    for make in (tiny.detr, tiny.deformable_detr):
        plain = frozen(make())
        attended = []
        for mask_padding in (None, False, True):
            model = inserted(plain, at=[0], mask_padding=mask_padding)
            attended.append(_related_memory(model, batch))
        assert torch.equal(attended[0], attended[1])
        real = _real_positions(plain, batch)
        moved = (attended[2] - attended[0]).abs().amax(-1)
        assert moved[:, real.all(0)].max() < 1e-6
        assert moved[:, ~real.all(0)].max() > 1e-3
        torch.testing.assert_close(attended[2][~real], _memory(plain, batch)[~real], rtol=0, atol=1e-6)


def _memory(model, batch):
    """What the first layer of the encoder gives."""
    seen = []
    hook = model.model.encoder.layers[0].register_forward_hook(lambda module, args, out: seen.append(out))
    with torch.no_grad():
        model(**batch)
    hook.remove()
    return seen[0][0] if isinstance(seen[0], tuple) else seen[0]


def _related_memory(model, batch):
    return _memory(model, batch).chunk(2)[1]


def _real_positions(model, batch):
    seen = []

    def note(module, args, kwargs):
        seen.append(kwargs.get("attention_mask", args[1] if len(args) > 1 else None))

    hook = model.model.encoder.layers[0].register_forward_pre_hook(note, with_kwargs=True)
    model(**batch)
    hook.remove()
    mask = seen[0]
    return (mask.any(1).any(1) if mask.dim() == 4 else mask).bool()
