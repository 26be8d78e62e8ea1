"""What a criterion asks of its input before it computes anything: a wrong target must end in a sentence.

Only shapes and dtypes are looked at on a GPU. A value (is every label below K?) would have to be copied to the CPU,
which makes the GPU wait in every step; there, the kernels of the losses stop at a label out of range by themselves.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Shaped
from torch import Tensor

from setwise.errors import InvalidInput

__all__ = ["check_counts", "check_labels", "check_multi_hot", "check_rows", "full"]


def full(x: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
    """At least float32: a log-softmax in half precision loses the small losses."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def check_rows(logits: Shaped[Tensor, "n k"], target: Shaped[Tensor, "..."]) -> None:
    """There is one target for each row of the logits; the second stream is not forgotten.

    Raises:
        InvalidInput: naming both numbers, and the way out.
    """
    rows, targets = len(logits), len(target) if target.dim() else 1
    if rows == 0:
        raise InvalidInput("`logits` has no rows: the loss of an empty batch has no mean.")
    if rows == targets:
        return
    message = f"`logits` has {rows} rows but `target` has {targets}"
    if rows == 2 * targets:
        raise InvalidInput(
            f"{message}: the relation made a second stream of logits, so the targets must be doubled, too, with "
            "streams.tile(target, like=logits)."
        )
    raise InvalidInput(f"{message}; every row needs one target.")


def check_labels(logits: Shaped[Tensor, "n k"], target: Shaped[Tensor, "..."], *, soft: bool = True) -> None:
    """The target is one label per row ``[N] int64`` or, with ``soft``, class probabilities ``[N, K]``.

    Raises:
        InvalidInput: if rows, shape, dtype or (on the CPU) a label break that.
    """
    check_rows(logits, target)
    num_classes = logits.shape[1]
    if target.is_floating_point():
        if not soft:
            raise InvalidInput(
                "LDAM gives a margin to the one true class and so has no meaning for soft targets: switch mixup and "
                "cutmix off, or take the criterion cross-entropy or balanced-softmax."
            )
        _check_width(logits, target)
    elif str(target.dtype) != "torch.int64":
        raise InvalidInput(f"`target` has dtype {target.dtype}; labels are torch.int64 (target.long()).")
    elif target.dim() != 1:
        raise InvalidInput(
            f"Labels have the shape [N], not {list(target.shape)}; class probabilities [N, K] are floating-point, and "
            "several labels per image need the criterion binary-cross-entropy."
        )
    elif target.device.type == "cpu":
        low, high = int(target.min()), int(target.max())
        if low < 0 or high >= num_classes:
            raise InvalidInput(
                f"The label {low if low < 0 else high} is out of range: `logits` has {num_classes} classes, so labels "
                f"run from 0 to {num_classes - 1}."
            )


def check_multi_hot(logits: Shaped[Tensor, "n k"], target: Shaped[Tensor, "..."]) -> None:
    """The target is multi-hot, ``[N, K]`` floating-point.

    Raises:
        InvalidInput: if rows, shape or dtype break that.
    """
    check_rows(logits, target)
    if not target.is_floating_point():
        raise InvalidInput(
            f"`target` has dtype {target.dtype} and shape {list(target.shape)}; multi-label targets are floating-point "
            "and multi-hot, [N, K]. One label per image needs the criterion cross-entropy."
        )
    _check_width(logits, target)


def check_counts(counts: Shaped[Tensor, "k"], class_names: Sequence[str] | None = None) -> None:
    """Every class has at least one training image.

    Raises:
        InvalidInput: naming the first class that has none.
    """
    empty = [index for index, count in enumerate(counts.tolist()) if count <= 0]
    if empty:
        name = f" ({class_names[empty[0]]!r})" if class_names else ""
        raise InvalidInput(
            f"`counts` must be positive, but class {empty[0]}{name} has {counts[empty[0]].item()} training images "
            f"({len(empty)} such classes in all): leave classes without images out."
        )


def _check_width(logits: Tensor, target: Tensor) -> None:
    if target.shape != logits.shape:
        raise InvalidInput(
            f"A floating-point `target` holds one number per class: {list(logits.shape)} as `logits`, "
            f"not {list(target.shape)}."
        )
