"""The audit finds what makes a prediction depend on its batch-mates, names the module, and leaves the model alone."""

import copy
import random
import re
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

from setwise.errors import InvalidInput
from setwise.nn import BatchFormer, BatchFormerV2, audit

B, N, C = 5, 6, 8


def mlp(norm=nn.BatchNorm1d, **options):
    return nn.Sequential(nn.Linear(C, C), norm(C, **options), nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Linear(C, 3))


def cnn():
    trunk = nn.Sequential(nn.Conv2d(3, C, 3), nn.BatchNorm2d(C), nn.ReLU(inplace=True))
    return nn.Sequential(trunk, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(C, 3))


class Calls(nn.Module):
    """Calls a function of itself and its input, which a test may write in a line."""

    def __init__(self, function, **modules):
        super().__init__()
        self.function = function
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, *args, **kwargs):
        return self.function(self, *args, **kwargs)


def encoder(**options):
    return nn.TransformerEncoderLayer(C, 2, 16, **options)


def found_in(answer):
    return answer.entry.kind, answer.entry.name, answer.entry.module


# ----------------------------------------------------------------------------------------------------- what it finds
@pytest.mark.parametrize(
    ("model", "batch", "name"), [(mlp(), torch.randn(B, C), "1"), (cnn(), torch.randn(B, 3, 9, 9), "0.1")]
)
def test_batch_norm_in_training_mode_is_named(model, batch, name):
    found = audit(model, batch)
    assert not found.evaluation.depends
    assert found.evaluation.change == 0
    assert found_in(found.training) == ("batch-norm", name, type(model.get_submodule(name)).__name__)
    assert "statistics of the batch" in found.training.entry.reason
    assert found.related is None


def test_batch_norm_without_running_statistics_is_named_in_evaluation():
    found = audit(mlp(track_running_stats=False), torch.randn(B, C))
    assert found_in(found.evaluation) == ("batch-norm", "1", "BatchNorm1d")
    assert "track_running_stats=False" in found.evaluation.entry.reason


def test_batch_norm_left_in_training_mode_is_named_in_evaluation():
    model = mlp().eval()
    model[1].train()
    found = audit(model, torch.randn(B, C))
    assert found_in(found.evaluation) == ("batch-norm", "1", "BatchNorm1d")
    assert "though the model is not" in found.evaluation.entry.reason


def test_batch_norm_frozen_in_training_is_audited_as_it_is_found():
    model = mlp()
    model[1].eval()
    assert not audit(model, torch.randn(B, C)).training.depends
    assert audit(model.train(), torch.randn(B, C)).training.depends


def test_norms_and_attention_within_a_sample_are_independent_in_both_modes():
    vit = Calls(
        lambda self, x: self.head(self.layers(self.patches(x).flatten(2).mT).mean(1)),
        patches=nn.Conv2d(3, C, 4, 4),
        layers=nn.TransformerEncoder(encoder(batch_first=True), 2, enable_nested_tensor=False),
        head=nn.Linear(C, 3),
    )
    images = torch.randn(B, 3, 12, 12)
    found = audit(vit, images)
    assert not found.evaluation.depends
    assert not found.training.depends
    assert not audit(mlp(nn.LayerNorm), torch.randn(B, C)).training.depends
    vit.layers = nn.Sequential(vit.layers, Calls(lambda self, x: x - x.mean(0)))  # and it would have been noticed
    found = audit(vit, images)
    assert found_in(found.evaluation) == found_in(found.training) == ("code", "layers.1", "Calls")


@pytest.mark.parametrize("batch_former", [BatchFormer(C), BatchFormer(C, num_layers=2, dropout=0.0)])
def test_a_relation_makes_the_related_row_depend_and_the_plain_row_not(batch_former):
    found = audit(nn.Sequential(nn.Linear(C, C), batch_former, nn.Linear(C, 3)), torch.randn(B, C))
    assert not found.evaluation.depends
    assert not found.training.depends
    assert found_in(found.related) == ("relation", "1", "BatchFormer")


def test_later_relations_of_tokens_are_told_from_the_first():
    class Tokens(nn.Module):
        def __init__(self, first, second):
            super().__init__()
            self.first, self.layer, self.second = first, encoder(batch_first=True), second

        def forward(self, x):
            return self.second(self.layer(self.first(x)), first=False)

    batch = torch.randn(B, N, C)
    found = audit(Tokens(BatchFormerV2(C), BatchFormerV2(C)), batch)
    assert (found.evaluation.depends, found.training.depends) == (False, False)
    assert found_in(found.related) == ("relation", "first", "BatchFormerV2")
    twice = Calls(lambda self, x: torch.cat([x, x]) if self.training else x)
    assert found_in(audit(Tokens(twice, BatchFormerV2(C)), batch).related) == ("relation", "second", "BatchFormerV2")


def test_a_related_row_that_attends_to_itself_alone_is_independent():
    model = Calls(
        lambda self, x: self.relation(x, torch.eye(len(x), dtype=torch.bool) if self.alone else None),
        relation=BatchFormer(C),
    )
    model.alone = True
    found = audit(model, torch.randn(B, C))
    assert not found.related.depends
    assert "and learns nothing from them" in str(found)
    model.alone = False
    assert audit(model, torch.randn(B, C)).related.depends


def test_each_row_has_its_own_entry():
    model = nn.Sequential(nn.Linear(C, C), BatchFormer(C), nn.Linear(C, C), nn.BatchNorm1d(C), nn.Linear(C, 3))
    found = audit(model, torch.randn(B, C))
    assert found_in(found.training) == ("batch-norm", "3", "BatchNorm1d")
    assert found_in(found.related) == ("relation", "1", "BatchFormer")
    by_hand = Calls(
        lambda self, x: self.norm(torch.cat([x, self.relation.relate(x)]) if self.training else x),
        relation=BatchFormer(C),
        norm=nn.BatchNorm1d(C),
    )
    found = audit(by_hand, torch.randn(B, C))
    assert found_in(found.training) == ("batch-norm", "norm", "BatchNorm1d")
    assert found_in(found.related) == ("relation", "relation", "BatchFormer")


def test_a_relation_left_in_at_evaluation_is_named():
    model = Calls(
        lambda self, x: self.head(self.relation.relate(self.backbone(x))),
        backbone=nn.Linear(C, C),
        relation=BatchFormer(C),
        head=nn.Linear(C, 3),
    )
    found = audit(model, torch.randn(B, C))
    assert found_in(found.evaluation) == ("relation", "relation", "BatchFormer")
    assert "also in evaluation" in found.evaluation.entry.reason


def test_a_relation_in_a_hook_is_named():
    model = nn.Sequential(nn.Linear(C, C), nn.Linear(C, 3))
    model.relation = BatchFormer(C)
    model[0].register_forward_hook(lambda module, args, output: model.relation(output))
    model.forward = lambda x: model[1](model[0](x))
    found = audit(model, torch.randn(B, C))
    assert not found.training.depends
    assert found_in(found.related) == ("relation", "relation", "BatchFormer")


def test_the_code_of_the_parent_that_subtracts_the_batch_mean_is_named():
    parent = Calls(
        lambda self, x: self.head((x := self.body(x)) - x.mean(0)), body=mlp(nn.LayerNorm), head=nn.Linear(3, 3)
    )
    found = audit(nn.Sequential(nn.Linear(C, C), parent), torch.randn(B, C))
    assert found_in(found.evaluation) == ("code", "1", "Calls")
    assert "before it calls `1.head`" in found.evaluation.entry.reason
    whole = audit(parent, torch.randn(B, C)).evaluation
    assert found_in(whole) == ("code", "", "Calls")
    assert "the model itself" in str(whole)


def test_a_module_that_writes_into_its_input_is_named():
    network = nn.Sequential(nn.Linear(C, C), Calls(lambda self, x: x.sub_(x.mean(0))), nn.ReLU(inplace=True))
    assert found_in(audit(network, torch.randn(B, C)).evaluation) == ("code", "1", "Calls")


def test_attention_along_the_batch_by_a_forgotten_batch_first_is_named():
    layers = nn.TransformerEncoder(encoder(), 2, enable_nested_tensor=False)
    found = audit(nn.Sequential(nn.Linear(C, C), layers), torch.randn(B, N, C))
    assert found_in(found.evaluation) == ("code", "1.layers.0.self_attn", "MultiheadAttention")


def test_a_detector_whose_padding_depends_on_its_mates_is_named():
    detection = pytest.importorskip("torchvision").models.detection
    detector = detection.fasterrcnn_mobilenet_v3_large_320_fpn(
        weights=None,
        weights_backbone=None,
        num_classes=3,
        box_score_thresh=0.0,
        rpn_score_thresh=0.0,
        rpn_pre_nms_top_n_test=20,
        rpn_post_nms_top_n_test=20,
        min_size=64,
        max_size=128,
    )
    found = audit(detector, [torch.rand(3, 40, 50), torch.rand(3, 50, 40), torch.rand(3, 40, 40)])
    assert found_in(found.evaluation) == ("padding", "transform", "GeneralizedRCNNTransform")
    assert found.training is None
    assert "targets" in found.notes[0]


def test_images_of_one_size_are_given_mates_of_other_sizes():
    def pad(images):
        height, width = (max(image.shape[axis] for image in images) for axis in (1, 2))
        return torch.stack([nn.functional.pad(i, (0, width - i.shape[2], 0, height - i.shape[1])) for i in images])

    images = [torch.rand(3, 8, 8) for _ in range(3)]
    network = nn.Sequential(Calls(lambda self, x: pad(x)), cnn())
    found = audit(network, images)
    assert found_in(found.evaluation) == ("padding", "0", "Calls")
    assert found.evaluation.mates in ("mates three times as high", "mates three times as wide")
    inside = Calls(lambda self, x: self.network(pad(x)), network=cnn())
    assert found_in(audit(inside, images).evaluation) == ("padding", "", "Calls")
    stacking = audit(nn.Sequential(Calls(lambda self, x: torch.stack(x)), cnn()), images)
    assert not stacking.evaluation.depends
    assert sum("three times as" in note and "equal size" in note for note in stacking.notes) == 2


# ------------------------------------------------------------------------------------------- batches, axes, outputs
@pytest.mark.parametrize("size", [2, 3, C])
def test_a_batch_as_large_as_the_channels_is_no_other(size):
    found = audit(mlp(), torch.randn(size, C))
    assert not found.evaluation.depends
    assert found_in(found.training) == ("batch-norm", "1", "BatchNorm1d")
    assert not audit(mlp(nn.LayerNorm), torch.randn(size, C)).training.depends


@pytest.mark.parametrize("positions", [B, 2 * B, 7])
def test_sequences_before_the_batch_are_told_by_what_they_follow(positions):
    swapped = Calls(lambda self, x: self.layer(x.transpose(0, 1)), layer=encoder())
    found = audit(swapped, torch.randn(B, positions, C))
    assert not found.evaluation.depends
    assert not found.training.depends
    swapped.layer = encoder(batch_first=True)  # attends along the batch now
    assert found_in(audit(swapped, torch.randn(B, positions, C)).evaluation)[1] == "layer.self_attn"


def test_rows_of_a_sample_that_stand_together_are_one_sample():
    windows = nn.Sequential(Calls(lambda self, x: x.unflatten(1, (2, N // 2)).flatten(0, 1)), encoder(batch_first=True))
    assert not audit(windows, torch.randn(B, N, C)).evaluation.depends
    windows.append(Calls(lambda self, x: x.roll(1, 0) + x))  # the first window of a sample sees the last of another
    assert found_in(audit(windows, torch.randn(B, N, C)).evaluation)[1] == "2"


class Text(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.layer, self.head = nn.Embedding(50, C), encoder(batch_first=True), nn.Linear(C, 2)
        self.leak = False

    def forward(self, input_ids, attention_mask, scale=1.0):
        x = self.layer(self.embed(input_ids), src_key_padding_mask=attention_mask == 0) * scale
        x = x * attention_mask[..., None]
        logits = self.head(x.mean(1) - x.mean((0, 1)) * self.leak)
        return {"loss": logits.mean(), "logits": logits, "hidden": (x, None)}


@pytest.mark.parametrize("size", [2, B, N])
def test_a_dictionary_goes_in_as_named_arguments_and_a_loss_is_left_out(size):
    ids, mask = torch.randint(50, (size, N)), torch.ones(size, N, dtype=torch.int64)
    mask[1, 4:] = 0
    text = Text()
    found = audit(text, {"input_ids": ids, "attention_mask": mask, "scale": 2.0})
    assert not found.evaluation.depends
    assert not found.training.depends
    text.leak = True
    found = audit(text, {"input_ids": ids, "attention_mask": mask})
    assert found_in(found.evaluation) == ("code", "", "Text")
    assert found.evaluation.output == "logits"


def test_tokens_of_the_mates_are_permuted_among_themselves():
    seen = []

    def forward(self, ids):
        seen.append(ids)
        return torch.cat([ids, ids[:, :1] - ids[:, :1].float().mean(0).long()], 1)

    ids = torch.tensor([[7, 1, 1], [7, 2, 3], [7, 5, 4]])  # copies of sample 0 have the same first token
    found = audit(Calls(forward), ids)
    assert found.evaluation.mates == "altered mates"
    assert all(set(batch[1].tolist()) <= set(ids.flatten().tolist()) for batch in seen)


def test_a_tuple_goes_in_as_positional_arguments_and_a_table_is_the_same_for_all():
    network = Calls(lambda self, x, y, table: self.norm(x * y[:, None]) + table, norm=nn.BatchNorm1d(C))
    found = audit(network, (torch.randn(B, C), torch.randn(B), torch.randn(C)))
    assert not found.evaluation.depends
    assert found_in(found.training)[1] == "norm"


@dataclass
class Output:
    logits: torch.Tensor
    anchors: torch.Tensor


@pytest.mark.parametrize(
    ("wrap", "path"),
    [
        (lambda x: (x.mean(), x), "[1]"),
        (lambda x: {"logits": x, "anchors": torch.ones(B, 2)}, "logits"),
        (lambda x: Output(x, torch.ones(4, 2)), "logits"),
        (lambda x: [{"scores": row} for row in x], "scores"),
        (lambda x: [{"labels": row.argsort(), "boxes": row[row > 0, None]} for row in x], "boxes"),
        (list, None),  # a tensor for each sample, any of which may be named
    ],
)
def test_outputs_of_many_kinds_are_compared(wrap, path):
    network = Calls(lambda self, x: wrap(self.norm(self.first(x))), first=nn.Linear(C, C), norm=nn.BatchNorm1d(C))
    found = audit(network, torch.randn(B, C))
    assert not found.evaluation.depends
    assert found_in(found.training) == ("batch-norm", "norm", "BatchNorm1d")
    assert found.training.output == path or (path is None and re.fullmatch(r"\[\d+\]", found.training.output))


def test_another_number_of_boxes_is_a_change():
    boxes = Calls(lambda self, x: [{"boxes": row[row > x.mean()][:, None]} for row in x])
    x = torch.tensor([[0.0, 1, 2, 3], [9, 9, 9, 9]])
    found = audit(boxes, x)
    assert found.evaluation.change == float("inf")
    assert "shape" in str(found.evaluation)


def test_what_is_below_the_tolerance_is_noise():
    faint = nn.Sequential(nn.Linear(C, C), Calls(lambda self, x: x + 1e-6 * x.mean(0)))
    found = audit(faint, torch.randn(B, C))
    assert not found.evaluation.depends
    assert 0 < found.evaluation.relative < 1e-4
    assert "numerical noise" in str(found)
    assert found_in(audit(faint, torch.randn(B, C), tolerance=0).evaluation) == ("code", "1", "Calls")


def test_what_comes_in_small_and_is_amplified_is_found_where_it_comes_in():
    x = torch.randn(B, C)
    faint = Calls(lambda self, x: x + 1e-4 * x.mean(0))
    network = nn.Sequential(nn.Linear(C, C), faint, Calls(lambda self, y: 1e4 * (y - self.plain(x))))
    network[2].function = lambda self, y: torch.sin(1e4 * y)
    assert found_in(audit(network, x, tolerance=1e-3).evaluation)[1] == "1"


def test_the_page_about_it_runs_as_it_is_written(capsys):
    page = (Path(__file__).parents[2] / "docs" / "audit.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert blocks
    for block in blocks:
        exec(block, {"audit": audit})
    said = [line.split(":")[0] for line in capsys.readouterr().out.splitlines()]
    assert said == [
        line.split(":")[0] for line in re.findall(r"^In (?:evaluation|training) the .*", page, re.MULTILINE)
    ]


# --------------------------------------------------------------------------------------------- what it leaves alone
class Counting(nn.Module):
    """Draws, counts and keeps, as memory banks and schedules do."""

    def __init__(self):
        super().__init__()
        self.body, self.relation, self.norm = nn.Linear(C, C), BatchFormer(C), nn.BatchNorm1d(C)
        self.register_buffer("bank", torch.zeros(C))
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        self.bank = self.bank + x.mul_(2).mean(0)
        return self.relation(self.norm(self.body(x))) * random.random() * torch.rand(()) + self.bank.sum() * 0


@pytest.mark.usefixtures("unchecked")  # the checker draws from Python's random state itself
def test_the_model_its_batch_and_the_random_state_are_left_as_they_were():
    model = Counting()
    model.norm.eval()
    model(torch.randn(9, C)).sum().backward()
    batch = torch.randn(B, C)
    kept, state = batch.clone(), copy.deepcopy(model.state_dict())
    tensors = {name: (id(b), b._version) for name, b in model.named_buffers()}
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    modes, drawn, python = [m.training for m in model.modules()], torch.get_rng_state(), random.getstate()
    model.relation._warned = False
    assert audit(model, batch).related.depends
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), drawn)
    assert random.getstate() == python
    assert model.calls == 1
    assert not model.relation._warned
    assert torch.equal(batch, kept)
    assert {name: (id(b), b._version) for name, b in model.named_buffers()} == tensors
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    now = [p.grad for p in model.parameters() if p.grad is not None]
    assert all(torch.equal(a, b) for a, b in zip(gradients, now, strict=True))
    assert not [h for m in model.modules() for h in (*m._forward_hooks, *m._forward_pre_hooks)]


def test_the_model_is_left_as_it_was_when_it_fails():
    model = mlp()
    before = copy.deepcopy(model.state_dict())
    model[4] = nn.Linear(C + 1, 3)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        audit(model, torch.randn(B, C))
    assert all(module.training for module in model.modules())
    model[4] = nn.Linear(C, 3)
    assert audit(model, torch.randn(B, C)).training.depends
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items() if name[0] == "1")


def test_dropout_is_no_dependence():
    noisy = nn.Sequential(nn.Linear(C, C), nn.Dropout(0.5), nn.Linear(C, 3))
    assert audit(noisy, torch.randn(B, C)).training.change == 0
    assert audit(nn.Sequential(nn.Dropout(0.1), mlp()), torch.randn(B, C)).training.depends


# ------------------------------------------------------------------------------------------------- errors and words
def test_the_report_says_which_row_depends_and_why():
    text = str(audit(nn.Sequential(nn.Linear(C, C), BatchFormer(C), nn.Linear(C, 3)), torch.randn(B, C)))
    evaluation, plain, related = text.splitlines()
    assert evaluation.startswith("In evaluation the prediction does not depend on its batch-mates")
    assert plain.startswith("In training the plain row does not depend on its batch-mates")
    assert related.startswith("In training the related row depends on its batch-mates, as a related row is meant to")
    assert related.endswith("They come in at `1` (BatchFormer), a relation, which makes every sample of all.")


def test_a_training_mode_that_cannot_run_is_a_note():
    def forward(self, x):
        if self.training:
            raise ValueError("targets are missing\nand more")
        return x - x.mean(0)

    found = audit(Calls(forward), torch.randn(B, C))
    assert found.evaluation.depends
    assert found.training is None
    assert found.notes == ("Training was not audited: ValueError: targets are missing",)


def test_a_training_mode_that_returns_losses_alone_is_a_note():
    found = audit(Calls(lambda self, x: x.mean() if self.training else x - x.mean(0)), torch.randn(B, C))
    assert found.evaluation.depends
    assert found.training is None
    assert "nothing that follows sample 0" in str(found)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (torch.randn(1, C), "at least 2 samples.* has 1"),
        ([torch.randn(3, 4, 4)], "at least 2 samples.* has 1"),
        ({"x": torch.randn(1, C)}, "at least 2 samples.* has 1"),
        (torch.tensor(3.0), "of what it holds has a batch axis: Tensor"),
        ({}, "batch axis: nothing"),
        ("images", "batch axis: str"),
        (torch.ones(3, 4, dtype=torch.int64), "3 samples of `batch` are all alike"),
    ],
)
def test_a_wrong_batch_is_a_sentence(batch, message):
    with pytest.raises(InvalidInput, match=message):
        audit(nn.Identity(), batch)


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_a_model_that_cannot_be_watched_is_a_sentence():
    traced = torch.jit.trace(nn.Linear(C, C), torch.randn(B, C))
    with pytest.raises(InvalidInput, match="1 is scripted or traced"):
        audit(nn.Sequential(nn.Identity(), traced), torch.randn(B, C))
    with pytest.raises(InvalidInput, match=r"0 \(LazyLinear\) makes them in its first call"):
        audit(nn.Sequential(nn.LazyLinear(C)), torch.randn(B, C))


def test_a_compiled_model_is_audited_as_what_it_was_compiled_from():
    found = audit(torch.compile(mlp(), backend="eager"), torch.randn(B, C))
    assert found_in(found.training) == ("batch-norm", "1", "BatchNorm1d")


def test_a_negative_tolerance_is_a_sentence():
    with pytest.raises(InvalidInput, match=r"`tolerance`.*-1"):
        audit(mlp(), torch.randn(B, C), tolerance=-1)


@pytest.mark.parametrize("output", [None, torch.ones(B, 3), torch.tensor(1.0), [{"boxes": torch.zeros(0, 4)}] * B])
def test_a_model_without_a_prediction_is_a_sentence(output):
    with pytest.raises(InvalidInput, match="no prediction to compare"):
        audit(Calls(lambda self, x: output), torch.randn(B, C))
