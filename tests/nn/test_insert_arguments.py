"""Whatever way a model of transformers is called, both streams get their rows, and what comes first runs once."""

import copy

import pytest
import tiny
import torch
import transformers
from torch import nn

from setwise.errors import InvalidInput
from setwise.nn import insert, record_attention, remove
from setwise.nn.insertion.places import find_classifiers, find_layers

B = 8
TEXT = tiny.text(B, padded=True)
IDS, MASK, LABELS = TEXT["input_ids"], TEXT["attention_mask"], TEXT["labels"]


def inserted(plain, relation="batchformer-v2", **options):
    """A copy with a relation without dropout, of the same weights every time."""
    torch.manual_seed(1)
    return insert(copy.deepcopy(plain), relation, dropout=0.0, **options)


CALLS = {
    "by position": ((IDS, MASK), {}),
    "with segments": ((IDS,), {"attention_mask": MASK, "token_type_ids": torch.zeros_like(IDS)}),
    "with one row of positions": (
        (),
        {"position_ids": torch.arange(6)[None], "attention_mask": MASK, "input_ids": IDS},
    ),
    "with rows of positions": ((IDS, MASK), {"position_ids": torch.arange(6).expand(B, 6)}),
    "with a mask for every query": ((IDS, MASK[:, None, None].expand(B, 1, 6, 6).bool()), {}),
    "without labels": ((IDS, MASK), {"labels": None}),
}


@pytest.mark.parametrize("at", [None, [0], [2]])
@pytest.mark.parametrize("call", CALLS)
def test_arguments_can_be_given_in_every_way(call, at):
    args, kwargs = CALLS[call]
    plain = tiny.bert()
    model = inserted(plain, "batchformer-v2" if at else "batchformer", at=at)
    out, expected = model(*args, **{"labels": LABELS, **kwargs}), plain(*args, **{"labels": LABELS, **kwargs})
    torch.testing.assert_close(out.logits[:B], expected.logits, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(out.logits, model(IDS, MASK).logits, rtol=1e-5, atol=1e-6)
    assert (out.loss is None) == (call == "without labels")


def test_embeddings_can_be_given_instead_of_text():
    model = inserted(tiny.bert(), at=[0])
    embedded = model.get_input_embeddings()(IDS)
    torch.testing.assert_close(model(inputs_embeds=embedded, attention_mask=MASK).logits, model(IDS, MASK).logits)


def test_a_tuple_can_be_asked_for():
    model = inserted(tiny.bert(), at=[0])
    loss, logits = model(IDS, MASK, labels=LABELS, return_dict=False)[:2]
    expected = model(IDS, MASK, labels=LABELS)
    assert torch.equal(loss, expected.loss)
    assert torch.equal(logits, expected.logits)


@pytest.mark.parametrize(("make", "at"), [(tiny.bert, None), (tiny.bert, [1]), (tiny.hf_vit, None), (tiny.detr, [0])])
def test_what_comes_before_the_relation_runs_on_one_stream_and_the_rest_on_both(make, at):
    model = inserted(make(), "batchformer-v2" if at else "batchformer", at=at)
    rows = []

    def note(module, args, kwargs):
        rows.append(len(next(iter((*args, *kwargs.values())))))

    for name, module in model.named_modules():
        if name.endswith("backbone.model") or isinstance(
            module, transformers.modeling_layers.GradientCheckpointingLayer
        ):
            module.register_forward_pre_hook(note, with_kwargs=True)
    model(**(tiny.scenes(B) if make is tiny.detr else TEXT if make is tiny.bert else {"pixel_values": tiny.images(B)}))
    single = 3 if at is None else 2  # layers of the classifiers; DETR's backbone and first layer
    assert rows == [B] * single + [2 * B] * (len(rows) - single)
    assert len(rows) == (5 if make is tiny.detr else 3)


class Weighted(transformers.BertForSequenceClassification):
    """Somebody's own model: takes a weight for each sample, and a temperature for all."""

    def forward(self, input_ids=None, weights=None, temperature=None, labels=None):
        out = super().forward(input_ids)
        out.logits = out.logits * weights[:, None] / (1.0 if temperature is None else temperature)
        return out


def test_a_tensor_of_unknown_meaning_is_refused_until_it_is_named():
    weights = torch.linspace(1, 2, B)
    model = inserted(tiny.bert(Weighted), at=[0], example={"input_ids": IDS, "weights": weights})
    with pytest.raises(InvalidInput, match=r'whether `weights` \(8,\) has one row.*doubled=\["weights"\]'):
        model(IDS, weights)
    remove(model)
    torch.manual_seed(1)
    insert(
        model,
        "batchformer-v2",
        at=[0],
        dropout=0.0,
        doubled=["weights"],
        example={"input_ids": IDS, "weights": weights},
    )
    one = model(IDS, torch.ones(B)).logits
    torch.testing.assert_close(model(IDS, weights).logits, one * torch.cat([weights, weights])[:, None])
    torch.testing.assert_close(model(IDS, weights, torch.tensor(2.0)).logits, model(IDS, weights).logits / 2)


@pytest.mark.parametrize("labels", [torch.zeros(B - 1, dtype=torch.long), torch.zeros(2 * B, dtype=torch.long)])
def test_labels_of_another_batch_are_refused_with_both_numbers(labels):
    model = inserted(tiny.bert(), at=[0])
    with pytest.raises(
        InvalidInput, match=rf"`labels` must have one row for each of 8 samples, but it has {len(labels)}"
    ):
        model(labels=labels, input_ids=IDS)


@pytest.mark.parametrize("count", [30, torch.tensor(30)])
def test_a_loss_that_is_divided_by_a_count_is_the_mean_of_both_streams(count):
    plain = tiny.gpt2(transformers.GPT2LMHeadModel)
    model = inserted(plain, at=[0])
    out = model(IDS, labels=IDS, num_items_in_batch=count)
    halves = [plain.loss_function(half, IDS, tiny.LETTERS, num_items_in_batch=count) for half in out.logits.chunk(2)]
    torch.testing.assert_close(out.loss, sum(halves) / 2)
    torch.testing.assert_close(halves[0], plain(IDS, labels=IDS, num_items_in_batch=count).loss)
    assert inserted(tiny.bert(), "batchformer")(**TEXT, num_items_in_batch=count).logits.shape == (2 * B, 4)


def test_a_classifier_that_was_replaced_is_noticed_at_the_first_step():
    model = inserted(tiny.bert(), "batchformer")
    model.classifier = nn.Linear(16, 4)
    with pytest.raises(InvalidInput, match=r"classifier of this Bert.* was replaced.*remove\(model\) and insert again"):
        model(**TEXT)
    assert model.eval()(**TEXT).logits.shape == (B, 4)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("make", "at", "shapes"),
    [
        (tiny.bert, None, [(4, B, B)]),
        (tiny.bert, [0, 2], [(6, 4, B, B)] * 2),
        (tiny.gpt2, None, [(6, 4, B, B)]),
        (tiny.detr, [0, 1], [(4, 4, B, B)] * 2),
        (tiny.deformable_detr, [1], [(84, 4, B, B)]),
    ],
)
def test_attention_is_recorded_and_the_output_stays_the_same(make, at, shapes, training):
    model = inserted(make(), "batchformer-v2" if at else "batchformer", at=at).train(training)
    batch = TEXT if make in (tiny.bert, tiny.gpt2) else tiny.scenes(B, padded=True)
    expected = model(**batch)
    with record_attention(model) as maps:
        out = model(**batch)
    assert torch.equal(out.logits, expected.logits)
    assert torch.equal(out.loss, expected.loss)
    (found,) = maps.values()
    assert [tuple(weights.shape) for weights in found] == shapes


@pytest.mark.parametrize("make", [tiny.bert, tiny.hf_vit])
def test_a_relation_in_evaluation_mode_is_off_in_a_model_that_trains(make):
    plain = make()
    batch = TEXT if make is tiny.bert else {"pixel_values": tiny.images(B)}
    for at in (None, [0, 2]):
        model = inserted(plain, "batchformer-v2" if at else "batchformer", at=at)
        with torch.no_grad():
            assert len(model(**batch).logits) == 2 * B
        model.base_model.eval()
        assert len(model(**batch).logits) == 2 * B
        model.setwise_relation.eval()
        assert torch.equal(model(**batch).logits, plain(**batch).logits)


def test_text_is_generated_as_by_the_plain_model():
    plain = tiny.gpt2(transformers.GPT2LMHeadModel)
    model = inserted(plain, at=[0])
    options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(model.eval().generate(IDS, **options), plain.eval().generate(IDS, **options))


def test_a_classifier_is_told_from_other_layers_with_as_many_outputs():
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    for kind in ("Roberta", "Electra"):  # a head of two layers, as wide as there are labels
        config = getattr(transformers, f"{kind}Config")(vocab_size=tiny.LETTERS, num_labels=16, **sizes)
        model = getattr(transformers, f"{kind}ForSequenceClassification")(config)
        assert find_classifiers(model) == ["classifier.out_proj"]
        assert insert(model, "batchformer")(**tiny.text(B)).logits.shape == (2 * B, 16)
    with pytest.raises(InvalidInput, match="No classifier was found in DetrForObjectDetection"):
        insert(tiny.detr(num_labels=4), "batchformer")  # as many labels as a box has coordinates
    assert find_classifiers(tiny.deformable_detr()) == ["class_embed.0", "class_embed.1"]


def test_indices_count_the_layers_of_the_encoder_and_not_those_of_a_backbone():
    swin = transformers.SwinConfig(
        image_size=64, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[1, 1], out_features=["stage1", "stage2"]
    )
    assert find_layers(tiny.detr(backbone_config=swin)) == ["model.encoder.layers.0", "model.encoder.layers.1"]
    assert find_layers(tiny.detr()) == ["model.encoder.layers.0", "model.encoder.layers.1"]
    assert find_layers(tiny.rt_detr()) == ["model.encoder.aifi.0.layers.0"]
    assert find_layers(tiny.bert()) == [f"bert.encoder.layer.{index}" for index in range(3)]
    assert find_layers(tiny.gpt2()) == [f"transformer.h.{index}" for index in range(3)]
