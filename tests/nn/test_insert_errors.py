"""What cannot be inserted is refused in a sentence, and leaves the model as it was."""

import pytest
import timm
import tiny
import torch
from torch import nn

from setwise.errors import InvalidInput, SetwiseError, UnknownName
from setwise.nn import BatchFormer, BatchFormerV2, insert, remove

B = 8
IMAGES = tiny.images(B)
LAYERS = "0: blocks.0, 1: blocks.1, 2: blocks.2"


class Pyramid(nn.Module):
    """Stages of other widths; no attribute is named as classifiers are."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 6, 3, 2, 1), nn.Conv2d(6, 12, 3, 2, 1)
        self.scores = nn.Linear(12, 5)

    def forward(self, x):
        return self.scores(self.two(self.one(x)).mean((2, 3)))


class Strange(Pyramid):
    """Takes no image, and its first module gives a dictionary."""

    class Inner(nn.Module):
        def forward(self, x):
            return {"x": x}

    def __init__(self):
        super().__init__()
        self.inner = self.Inner()

    def forward(self, x, rows):
        return super().forward(self.inner(x.repeat(rows, 1, 1, 1))["x"])


class Twice(Pyramid):
    """Runs one layer twice."""

    def __init__(self):
        super().__init__()
        self.again = nn.Linear(5, 5)

    def forward(self, x):
        return self.again(self.again(super().forward(x)))


class Square(nn.Module):
    """Maps whose height, width and channels are equal."""

    def __init__(self):
        super().__init__()
        self.patches, self.norm, self.fc = nn.Conv2d(3, 4, 4, 4), nn.Identity(), nn.Linear(4, 2)

    def forward(self, x):
        return self.fc(self.norm(self.patches(x)).mean((2, 3)))


# fmt: off
REFUSED = {
    "V2 without a place": (tiny.vit, "batchformer-v2", {}, rf'"batchformer-v2" goes behind layers.*`at`.*{LAYERS}'),
    "a V2 module without a place": (tiny.vit, BatchFormerV2(12), {}, rf"goes behind layers.*{LAYERS}"),
    "an index out of range": (tiny.vit, "batchformer-v2", {"at": 3}, rf"`at` \(3\) is not the index.*{LAYERS}"),
    "a negative index out of range": (tiny.vit, "batchformer-v2", {"at": [-4]}, rf"`at` \(-4\).*{LAYERS}"),
    "a truth value": (tiny.vit, "batchformer-v2", {"at": True}, "True is of type bool"),
    "a fraction": (tiny.vit, "batchformer-v2", {"at": [0.5]}, "0.5 is of type float"),
    "no place": (tiny.vit, "batchformer-v2", {"at": []}, rf"at least one place, but it is empty.*{LAYERS}"),
    "a place twice": (tiny.vit, "batchformer-v2", {"at": [1, "blocks.1"]}, r"every place once, but \[1, 'blocks.1'\]"),
    "an unknown name": (tiny.vit, "batchformer-v2", {"at": "block.1"}, r"(?s)'block.1'; did you mean 'blocks.1'\?"),
    "an unknown relation": (tiny.vit, "batchformerv2", {"at": 0}, r"'batchformerv2'; did you mean 'batchformer-v2'\?"),
    "options with a module": (tiny.vit, BatchFormer(12), {"num_heads": 2}, r"\['num_heads'\].*set them there"),
    "one module for each": (tiny.vit, BatchFormerV2(12), {"at": [0, 1], "shared": False}, "shared=False"),
    "a module of another width": (tiny.vit, BatchFormerV2(8), {"at": 0}, "`dim` 8, but 12 at blocks.0"),
    "the classifier as a place of V1": (tiny.vit, "batchformer", {"at": "head"}, r"the classifier \(head\).*scores"),
    "no classifier": (Pyramid, "batchformer", {}, r"No classifier.*Pyramid.*get_classifier\(\).*fc, classifier.*`at`"),
    "no layers": (Pyramid, "batchformer-v2", {"at": 0}, "No list of layers was found in Pyramid: name a submodule"),
    "other widths": (Pyramid, "batchformer-v2", {"at": ["one", "two"]}, "6 at one, 12 at two pass. Pass shared=False"),
    "an unknown input": (Strange, "batchformer-v2", {"at": "one"}, "Strange did not run.*example.*`dim`"),
    "a dictionary": (Strange, "batchformer-v2", {"at": "inner", "example": {"x": IMAGES, "rows": 1}}, None),
    "a layer that runs twice": (Twice, "batchformer-v2", {"at": "again"}, "runs once in a forward pass.*again ran 2"),
    "square maps": (Square, "batchformer-v2", {"at": "norm", "example": tiny.images(2, 16)},
                    r"norm gives \(2, 4, 4, 4\).*which axis holds the channels.*channels_first=True"),
    "another width than passes": (tiny.vit, "batchformer-v2", {"at": 0, "dim": 8}, r"`dim` is 8.*\[12\] channels"),
    "no module": (lambda: "resnet50", "batchformer", {}, "`model` must be a torch module, but it is of type str"),
}
# fmt: on


def marks(model):
    hooks = [h for m in model.modules() for h in (*m._forward_hooks, *m._forward_pre_hooks)]
    return hooks, [sorted(m.__dict__) for m in model.modules()], list(model.state_dict())


@pytest.mark.parametrize("name", [name for name, case in REFUSED.items() if case[3]])
@pytest.mark.usefixtures("unchecked")
def test_it_is_refused_in_a_sentence_and_the_model_is_as_before(name):
    make, relation, options, sentence = REFUSED[name]
    model = make()
    before = marks(model) if isinstance(model, nn.Module) else None
    with pytest.raises(ValueError, match=sentence) as caught:
        insert(model, relation, **options)
    assert isinstance(caught.value, SetwiseError)
    assert before is None or marks(model) == before


def test_unknown_names_list_the_layers_nearest_first():
    with pytest.raises(UnknownName, match=r"Choices: blocks\.2, blocks\.\d, blocks\.\d\."):
        insert(tiny.vit(), "batchformer-v2", at="blocks2")


@pytest.mark.parametrize("name", ["batchformer", "batchformer-v2"])
def test_a_second_insertion_is_refused(name):
    model = insert(tiny.vit(), "batchformer")
    before = marks(model)
    with pytest.raises(InvalidInput, match=r"has a relation already \(in the model\).*remove\(model\)"):
        insert(model, name, at=0)
    with pytest.raises(InvalidInput, match=r"has a relation already \(in 0\)"):
        insert(nn.Sequential(model), name, at="0")
    assert marks(model) == before
    insert(remove(model), name, at=0)


def test_remove_without_insert_is_refused():
    with pytest.raises(InvalidInput, match="Nothing was inserted into this VisionTransformer"):
        remove(tiny.vit())
    model = remove(insert(tiny.vit(), "batchformer"))
    with pytest.raises(InvalidInput, match="Nothing was inserted"):
        remove(model)


class Listed(nn.Module):
    """Code behind the layer counts its rows, and its arguments have no names."""

    def __init__(self):
        super().__init__()
        self.embed, self.block, self.fc = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 5)

    def forward(self, *given):
        x = self.embed(given[0])
        return self.fc(x + self.block(x))


@pytest.mark.usefixtures("unchecked")
def test_inputs_without_names_that_must_be_doubled_are_refused_at_the_first_step():
    model = insert(Listed(), "batchformer", at="block", example=torch.randn(2, 4))
    with pytest.raises(
        InvalidInput, match=r"inputs of Listed are doubled by their names, but its forward takes \(given\)"
    ):
        model(torch.randn(B, 4))
    assert model.eval()(torch.randn(B, 4)).shape == (B, 5)

    class Rest(Listed):
        def forward(self, x, /, *rest):
            return super().forward(x)

    model = insert(Rest(), "batchformer", at="block", example=torch.randn(2, 4))
    assert model(torch.randn(B, 4)).shape == (2 * B, 5)
    with pytest.raises(InvalidInput, match=r"takes \(x, rest\)"):
        model(torch.randn(B, 4), torch.randn(B, 4))


class Through(nn.Sequential):
    """Goes through whatever it holds, by code of its own."""

    def forward(self, x):
        for part in self.children():
            x = part(x)
        return x


def test_models_that_go_through_their_children_would_run_the_relation_too():
    for model, example in (
        (timm.create_model("test_resnet", features_only=True), None),
        (Through(nn.Linear(4, 4), nn.Linear(4, 4)), torch.randn(2, 4)),
    ):
        before = marks(model)
        name = next(name for name, part in model.named_children() if isinstance(part, nn.Sequential | nn.Linear))
        with pytest.raises(InvalidInput, match="runs all of its children one after the other"):
            insert(model, "batchformer-v2" if example is None else "batchformer", at=name, example=example)
        assert marks(model) == before


def test_a_number_before_the_rows_of_an_output_is_no_row():
    class WithLoss(Square):
        def forward(self, x):
            scores = super().forward(x)
            return {"beside": scores.mean(), "scores": scores}

    model = insert(WithLoss(), "batchformer-v2", at="norm", channels_first=True, example=tiny.images(2, 16))
    assert model(tiny.images(B, 16))["scores"].shape == (2 * B, 2)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("at", ["blocks.0", 0, "norm"])
def test_v1_on_tokens_is_refused_at_the_first_step(at):
    model = insert(tiny.vit(), "batchformer", at=at)
    with pytest.raises(InvalidInput, match=r"one feature vector \[B, C\].*\(8, 5, 12\).*batchformer-v2"):
        model(IMAGES)
    assert model.eval()(IMAGES).shape == (B, 5)


def test_other_widths_take_one_relation_each():
    model = insert(Pyramid(), "batchformer-v2", at=["one", "two"], shared=False)
    assert [relation.dim for relation in model.setwise_relation] == [6, 12]
    assert model(IMAGES).shape == (2 * B, 5)


@pytest.mark.parametrize("channels_first", [True, False])
def test_square_maps_are_related_as_the_caller_says(channels_first):
    options = {"example": tiny.images(1, 16), "channels_first": channels_first, "dropout": 0.0}
    model = insert(Square(), "batchformer-v2", at="norm", **options)
    inside = []
    model.fc.register_forward_pre_hook(lambda module, args: inside.append(args[0]))
    model(tiny.images(B, 16))
    maps = model.patches(tiny.images(B, 16))
    twin = BatchFormerV2(dim=4, channels_first=channels_first, dropout=0.0)
    twin.load_state_dict(model.setwise_relation.state_dict())
    torch.testing.assert_close(inside[0], twin(maps).mean((2, 3)))


def test_what_follows_a_dictionary_is_refused_at_the_first_step_at_the_latest():
    with pytest.raises(InvalidInput, match=r"inner|Inner"):
        insert(Strange(), "batchformer-v2", at="inner", example={"x": IMAGES[:1], "rows": 2})(IMAGES[:1], 2)


@pytest.mark.parametrize("replace", ["reset_classifier", "by hand", "block"])
def test_a_hooked_module_that_was_replaced_is_noticed_at_the_first_step(replace):
    block = replace == "block"
    model = insert(tiny.vit(), "batchformer-v2" if block else "batchformer", at=[0, 2] if block else None)
    if replace == "reset_classifier":
        model.reset_classifier(7)
    elif replace == "by hand":
        model.head = nn.Linear(12, 7)
    else:
        model.blocks[2] = tiny.vit().blocks[2]
    with pytest.raises(
        InvalidInput, match=r"(head|blocks.2) of this .* was replaced .*remove\(model\) and insert again"
    ):
        model(IMAGES)
    model.eval()(IMAGES)
    remove(model)
    assert len(model.train()(IMAGES)) == B


@pytest.mark.usefixtures("unchecked")
def test_a_code_path_around_the_relation_is_noticed():
    class Around(Square):
        def forward(self, x):
            return self.fc(self.patches(x).mean((2, 3))) if self.training else super().forward(x)

    model = insert(Around(), "batchformer-v2", at="norm", dim=4, channels_first=True)
    with pytest.raises(InvalidInput, match=r"must have 16 rows, both streams of 8 samples.*\(8, 2\).*not reached"):
        model(tiny.images(B, 16))


def test_a_detector_whose_boxes_need_the_decoders_points_says_where_else_a_relation_fits():
    model = tiny.conditional_detr(num_labels=7)
    before = set(dict(model.named_modules()))
    with pytest.raises(
        InvalidInput, match=r'adds points of its decoder .* insert\(model, "batchformer-v2", at=\[0\]\)'
    ):
        insert(model, "batchformer")
    assert set(dict(model.named_modules())) == before
