"""A wrong axis, a forgotten stream, an undoubled target: each ends in a sentence, not in a wrong loss."""

import pytest
import torch

from setwise.errors import InvalidInput, SetwiseError
from setwise.nn import BatchFormer, BatchFormerV2, functional, streams
from setwise.nn.attention import EncoderLayer

pytestmark = pytest.mark.usefixtures("unchecked")

B, N, C = 9, 5, 12
TOKENS, MAPS = torch.zeros(B, N, C), torch.zeros(B, C, 2, 3)
FEATURES, TARGET = torch.zeros(B, C), torch.zeros(B)


def v1(x, **inputs):
    return lambda: BatchFormer(C)(x, **inputs)


def v2(x, *, channels_first=False, **inputs):
    return lambda: BatchFormerV2(C, channels_first=channels_first)(x, **inputs)


def masked(mask):
    return v1(FEATURES, mask=mask)


MISTAKES = {
    "tokens into V1": (v1(TOKENS), r"\[B, C\].*shape \(9, 5, 12\).*BatchFormerV2"),
    "maps into V1": (v1(MAPS), r"\[B, C\].*shape \(9, 12, 2, 3\)"),
    "one sample without its axis into V1": (v1(torch.zeros(C)), r"shape \(12,\)"),
    "transposed features": (v1(FEATURES.T), r"`dim` \(12\).*\(12, 9\).*Transpose it"),
    "another width": (v1(torch.zeros(B, 7)), r"`dim` \(12\).*\(9, 7\)\.$"),
    "features into V2": (v2(FEATURES), r"\[B, N, C\].*shape \(9, 12\).*use BatchFormer\."),
    "features into V2, channels first": (v2(FEATURES, channels_first=True), r"\[B, C, H, W\].*shape \(9, 12\)"),
    "tokens into V2, channels first": (v2(TOKENS, channels_first=True), r"\[B, C, H, W\].*shape \(9, 5, 12\)"),
    "tokens transposed": (v2(TOKENS.mT), r"`dim` \(12\).*\(9, 12, 5\)"),
    "maps without channels_first": (v2(MAPS), r"`dim` \(12\).*\(9, 12, 2, 3\).*channels_first is False"),
    "channels-last maps with channels_first": (
        v2(MAPS.permute(0, 2, 3, 1), channels_first=True),
        r"`dim` \(12\).*\(9, 2, 3, 12\).*channels_first is True",
    ),
    "odd rows in a later insertion": (v2(TOKENS, first=False), r"even number of rows, but it has 9.*left out"),
    "empty batch into V1": (v1(FEATURES[:0]), "at least one sample, but the batch is empty"),
    "empty batch into V2": (v2(TOKENS[:0]), "at least one sample, but the batch is empty"),
    "empty batch into a later insertion": (v2(TOKENS[:0], first=False), "the batch is empty"),
    "mask of numbers": (masked(torch.ones(B, B)), r"must be boolean.*\[9, 9\].*torch.float32 of shape \[9, 9\]"),
    "mask of one row": (masked(torch.ones(B, dtype=torch.bool)), r"\[9, 9\].*of shape \[9\]"),
    "mask of another batch": (masked(torch.ones(4, 4, dtype=torch.bool)), r"\[9, 9\].*of shape \[4, 4\]"),
    "mask with too few columns": (masked(torch.ones(B, 4, dtype=torch.bool)), r"\[9, 9\].*of shape \[9, 4\]"),
    "mask of both streams": (masked(torch.ones(2 * B, 2 * B, dtype=torch.bool)), r"\[9, 9\].*of shape \[18, 18\]"),
    "heads that do not divide": (lambda: BatchFormer(10, num_heads=4), r"`dim` \(10\).*`num_heads` \(4\)"),
    "no heads": (lambda: BatchFormerV2(10, num_heads=0), r"`num_heads`.*0"),
    "dropout above one": (lambda: BatchFormer(C, dropout=1.5), r"`dropout`.*0\.\.1.*1\.5"),
    "negative dropout": (lambda: BatchFormerV2(C, dropout=-0.1), r"`dropout`.*-0\.1"),
    "attention dropout above one": (lambda: BatchFormer(C, attention_dropout=2), r"`attention_dropout`.*2"),
    "no width": (lambda: BatchFormer(0), r"`dim` must be above 0.*0"),
    "no layers": (lambda: BatchFormer(C, num_layers=0), r"`num_layers`.*0"),
    "negative ratio": (lambda: BatchFormer(C, mlp_ratio=-1.0), r"`mlp_ratio`.*-1\.0"),
    "a ratio that leaves nothing": (lambda: BatchFormer(C, mlp_ratio=0.01), r"`mlp_ratio`.*0\.01"),
    "target doubled by hand and tiled": (
        lambda: streams.tile(torch.cat([TARGET, TARGET]), like=FEATURES),
        "but it has 9 and the target 18",
    ),
    "target of another batch": (lambda: streams.tile(TARGET[:4], like=FEATURES), "but it has 9 and the target 4"),
    "three streams": (lambda: streams.tile(TARGET[:3], like=FEATURES), "but it has 9 and the target 3"),
    "target without samples": (lambda: streams.tile(TARGET[:0], like=FEATURES[:0]), "but it has 0 and the target 0"),
    "a number as target": (lambda: streams.tile(torch.tensor(3), like=FEATURES), "`target`.*batch axis"),
    "a string as target": (lambda: streams.tile("cat", like=FEATURES), "`target` must be a tensor.*str"),
    "uneven entries": (
        lambda: streams.tile({"a": TARGET, "b": TARGET[:2]}, like=FEATURES),
        r"`target`.*'a': 9, 'b': 2",
    ),
    "an entry without a batch axis": (
        lambda: streams.tile({"a": torch.tensor(1)}, like=FEATURES),
        r"`target\[.a.\]` must have a batch axis",
    ),
    "split of another batch": (lambda: streams.split(FEATURES, like=TARGET[:4]), "it has 9 and `like` 4"),
    "split by the doubled target": (lambda: streams.split(FEATURES[:4], like=TARGET[:8]), "it has 4 and `like` 8"),
    "join of unequal streams": (
        lambda: streams.join(FEATURES, FEATURES[:4]),
        r"plain has \(9, 12\).*related \(4, 12\)",
    ),
    "functional on tokens": (
        lambda: functional.batchformer(TOKENS, TARGET, torch.nn.Identity(), True),
        r"`x` must be features \[B, C\].*\(9, 5, 12\)",
    ),
    "functional on an empty batch": (
        lambda: functional.batchformer(FEATURES[:0], TARGET[:0], EncoderLayer(C, 4), True),
        "the batch is empty",
    ),
    "functional with a target of another batch": (
        lambda: functional.batchformer(FEATURES, TARGET[:4], torch.nn.Identity(), True),
        "it has 18 and the target 4",
    ),
    "functional with a batch-first encoder": (
        lambda: functional.batchformer(
            FEATURES, TARGET, torch.nn.TransformerEncoderLayer(C, 4, batch_first=True), True
        ),
        "batch_first=True.*batch_first=False",
    ),
    "functional with a whole relation": (
        lambda: functional.batchformer(FEATURES, TARGET, BatchFormer(C), True),
        r"doubles the batch itself.*`layers\[0\]`",
    ),
    "functional with an encoder that pools": (
        lambda: functional.batchformer(FEATURES, TARGET, lambda x: x.mean(0), True),
        r"\(9, 1, 12\).*returned \(1, 12\)",
    ),
    "functional with an encoder that returns more than a tensor": (
        lambda: functional.batchformer(FEATURES, TARGET, lambda x: (x, None), True),
        r"`encoder`.*tuple",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake_ends_in_a_sentence_with_its_numbers(mistake):
    attempt, sentence = MISTAKES[mistake]
    with pytest.raises(InvalidInput, match=sentence) as caught:
        attempt()
    assert isinstance(caught.value, SetwiseError)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("mistake", ["tokens into V1", "features into V2", "empty batch into V1", "mask of numbers"])
def test_a_wrong_input_is_refused_in_evaluation_too(monkeypatch, mistake):
    for kind in (BatchFormer, BatchFormerV2):
        monkeypatch.setattr(kind, "__init__", _then_eval(kind.__init__))
    with pytest.raises(InvalidInput, match=MISTAKES[mistake][1]):
        MISTAKES[mistake][0]()


def _then_eval(init):
    def patched(self, *args, **kwargs):
        init(self, *args, **kwargs)
        self.eval()

    return patched


def test_a_forgotten_second_stream_ends_in_a_sentence():
    """The relation doubled the features; whoever compares them with the loader's target through `tile` is safe."""
    logits = BatchFormer(C)(torch.randn(B, C))
    assert streams.tile(TARGET, like=logits).shape == (2 * B,)
    with pytest.raises(InvalidInput, match="it has 36 and the target 9"):
        streams.tile(TARGET, like=BatchFormer(C)(logits))  # a second relation doubled again
