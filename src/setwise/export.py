"""Export the plain model of a run: the relation has done its work, and what ships does not know of it."""

import io
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from setwise.errors import InvalidInput, RunError, choose
from setwise.run import load_run

__all__ = ["FORMATS", "Exported", "export"]

TOLERANCE = 1e-5
"""Largest difference from the evaluated model, over the largest score."""
NEEDED = {"onnx": ("onnx", "onnxscript", "onnxruntime")}
"""Packages of a format that setwise itself does without."""
BATCH = 3
"""Images in the check; one or two would hide a batch size that was frozen in."""


@dataclass(frozen=True)
class Exported:
    """A written file and how far it is from the evaluated model."""

    format: str
    path: Path
    difference: float
    """Largest difference of a score on the check's images, over the largest score."""


def export(run: str | Path, out: Path, formats: Sequence[str] = ("safetensors", "torch")) -> list[Exported]:
    """Write the plain model, load each file again and compare it with the evaluated model.

    Args:
        run: run folder.
        out: folder for ``model.safetensors``, ``model.pt2`` and ``model.onnx``; existing files are not overwritten.
        formats: which of :data:`FORMATS`. All take images ``[B, c, H, W]``, normalised as ``model.json`` of the run
            says, and return scores ``[B, K]``; any batch size.

    Raises:
        InvalidInput: if the run predicts transductively, which no exported model of single images can.
        RunError: if a file exists, a package is missing, or an exported model disagrees.
    """
    files = {name: out / f"model.{choose(name, FORMATS, 'export format')[1]}" for name in formats}
    for name, path in files.items():  # what is wrong is said before the first file
        missing = [package for package in NEEDED.get(name, ()) if find_spec(package) is None]
        if missing:
            raise RunError(
                f"The {name} export needs the package {missing[0]}: pip install 'setwise[export]', or leave {name} out "
                "of --formats."
            )
        if path.exists():
            raise RunError(f"{path} exists already and is not overwritten; name another folder with --out.")
    _, task, model = load_run(run)
    if task.relate_at_test and task.relation is not None:
        raise InvalidInput(
            f"{run} relates at test (relation.relate_at_test), so a prediction depends on other images; export a run "
            "without it."
        )
    plain = task.plain().eval()
    images = torch.randn(
        BATCH, len(model.mean), model.image_size, model.image_size, generator=torch.Generator().manual_seed(0)
    )
    with torch.inference_mode():
        expected = task(images)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(
            f"The folder {out} cannot be written: {error.strerror or error}. Name another with --out."
        ) from error
    written = []
    for name, path in files.items():
        part = path.with_name(f"{path.stem}.part{path.suffix}")  # which torch wants to end as it does
        try:
            got = FORMATS[name][0](plain, images, part)
            difference = float((got - expected).abs().max() / expected.abs().max())
            if not difference <= TOLERANCE:
                raise RunError(
                    f"The model as {name} disagrees with the evaluated one by {difference:.1e} of the largest score, "
                    f"more than {TOLERANCE:g}, so {path.name} was not kept. Leave {name} out of --formats."
                )
            os.replace(part, path)
        except OSError as error:
            raise RunError(f"{path} cannot be written: {error.strerror or error}.") from error
        finally:
            part.unlink(missing_ok=True)
        written.append(Exported(name, path, difference))
    return written


def _safetensors(model: nn.Module, images: Tensor, path: Path) -> Tensor:
    path.write_bytes(save({name: tensor.contiguous() for name, tensor in model.state_dict().items()}))
    model.load_state_dict(load_file(path))
    with torch.inference_mode():
        return model(images)


def _torch_export(model: nn.Module, images: Tensor, path: Path) -> Tensor:
    written = io.BytesIO()  # where the disk is full, torch's own error is not the system's
    torch.export.save(_exported(model, images), written)
    path.write_bytes(written.getbuffer())
    with torch.inference_mode():
        return torch.export.load(path).module()(images)


def _onnx(model: nn.Module, images: Tensor, path: Path) -> Tensor:
    import onnxruntime

    program = torch.onnx.export(_exported(model, images), verbose=False)
    assert program is not None
    program.save(path, external_data=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (scores,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    return torch.from_numpy(np.asarray(scores))


def _exported(model: nn.Module, images: Tensor) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch", min=1)
    return torch.export.export(model, (images,), dynamic_shapes=({0: batch},))


FORMATS: dict[str, tuple[Callable[[nn.Module, Tensor, Path], Tensor], str]] = {
    "safetensors": (_safetensors, "safetensors"),
    "torch": (_torch_export, "pt2"),
    "onnx": (_onnx, "onnx"),
}
"""Writer and file suffix by name; a writer returns what the file it wrote says of the images."""
