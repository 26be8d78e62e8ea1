"""CIFAR-10-LT and CIFAR-100-LT: from the official files, made long-tailed here, or from folders that are already."""

import io
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from setwise.data.dataset import DataSet, Split, Splits
from setwise.data.folders import existing_root, require_images, scan, to_listing
from setwise.data.images import Cache, StackedImages
from setwise.data.long_tail import exponential_counts, hold_out, pick
from setwise.data.parts import arrange, load_parts
from setwise.data.problems import OnError
from setwise.errors import DataError, InvalidInput, MissingFile
from setwise.seeds import generator

__all__ = ["CIFAR10_LT", "CIFAR100_LT"]

IMBALANCE_FACTOR = 100.0
"""Where most papers on long-tailed recognition measure."""

OFFICIAL_TEST_IMAGES = 10_000
SIDE = 32


@dataclass(frozen=True, kw_only=True)
class Cifar:
    """What differs between the two sets: the names in their official archive, and the statistics."""

    name: str
    num_classes: int
    folder: str
    train_files: tuple[str, ...]
    test_files: tuple[str, ...]
    meta_file: str
    label_key: str
    class_names_key: str
    mean: tuple[float, ...]
    """Per channel, of pixels in 0..1, over the 50,000 official training images."""
    std: tuple[float, ...]


CIFAR10 = Cifar(
    name="cifar10-lt",
    num_classes=10,
    folder="cifar-10-batches-py",
    train_files=tuple(f"data_batch_{number}" for number in range(1, 6)),
    test_files=("test_batch",),
    meta_file="batches.meta",
    label_key="labels",
    class_names_key="label_names",
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
)

CIFAR100 = Cifar(
    name="cifar100-lt",
    num_classes=100,
    folder="cifar-100-python",
    train_files=("train",),
    test_files=("test",),
    meta_file="meta",
    label_key="fine_labels",
    class_names_key="fine_label_names",
    mean=(0.5071, 0.4865, 0.4409),
    std=(0.2673, 0.2564, 0.2762),
)


def load(
    cifar: Cifar,
    *,
    root: str | None = None,
    seed: int,
    imbalance_factor: float | None = None,
    val_fraction: float = 0.1,
    image_size: int | None = None,
    cache: Cache = "auto",
    on_error: OnError = "raise",
) -> Splits:
    """Read either layout, whichever is there.

    Args:
        cifar: which of the two.
        root: folder that holds ``cifar-10-batches-py/`` (``cifar-100-python/``), or ``train/`` and ``test/`` with one
            folder per class that are long-tailed already.
        seed: draws the long tail (official files) and the validation part.
        imbalance_factor: official files: largest class over smallest; None: 100. Folders: must be None.
        val_fraction: part of every training class held out for validation.
        image_size: side of what the network sees; None: 32.
        cache: folders: decode once into memory, or read every epoch.
        on_error: folders: what an unreadable image does.

    Raises:
        InvalidInput: if an option is out of range or does not fit the layout.
        MissingFile: if neither layout is there.
        DataError: if files are not what they should be.
    """
    folder = existing_root(root, data_set=cifar.name)
    if (folder / cifar.folder).is_dir():
        factor = IMBALANCE_FACTOR if imbalance_factor is None else imbalance_factor
        return load_official(cifar, folder, factor, val_fraction=val_fraction, image_size=image_size, seed=seed)
    if not (folder / "train").is_dir() or not (folder / "test").is_dir():
        raise MissingFile(
            f"{cifar.name} finds neither {cifar.folder}/ (the official files) nor train/ and test/ with one folder per "
            f"class in {folder}."
        )
    if imbalance_factor is not None:
        raise InvalidInput(
            f"`imbalance_factor` ({imbalance_factor:g}) must be left out: {folder} holds class folders, which "
            f"are taken as they are; only the official files ({cifar.folder}/) are made long-tailed here."
        )
    folders, _ = scan(folder / "train")
    require_images(folders, folder / "train")
    if len(folders) != cifar.num_classes:
        raise DataError(f"{cifar.name} has {cifar.num_classes} classes; {folder / 'train'} has {len(folders)}.")
    class_names = list(folders)
    test = to_listing(scan(folder / "test")[0], class_names, part="test")
    train = to_listing(folders, class_names, part="train")
    return load_parts(
        arrange(train, test=test, val_fraction=val_fraction, seed=seed).noting(partial_test(len(test.paths))),
        root=folder,
        class_names=class_names,
        mean=cifar.mean,
        std=cifar.std,
        image_size=image_size,
        cache=cache,
        on_error=on_error,
    )


def partial_test(num_images: int) -> str | None:
    """A note where the test part is not the official one, so that nobody compares unlike with like."""
    if num_images == OFFICIAL_TEST_IMAGES:
        return None
    return f"The test part has {num_images:,} of the official 10,000 images: say so beside numbers from the literature."


def load_official(
    cifar: Cifar, root: Path, imbalance_factor: float, *, val_fraction: float, image_size: int | None, seed: int
) -> Splits:
    """Read the official files and make the training part long-tailed: class sizes fall in label order."""
    folder = root / cifar.folder
    images, target, names = read_part(cifar, folder, cifar.train_files)
    counts = torch.bincount(target, minlength=cifar.num_classes)
    sizes = exponential_counts(int(counts.max()), num_classes=cifar.num_classes, imbalance_factor=imbalance_factor)
    tail = pick(target, sizes, generator=generator(seed, "long tail"))
    kept, held = hold_out(target[tail], val_fraction, generator=generator(seed, "validation"))

    def split(images: Tensor, target: Tensor, names: list[str], places: Tensor) -> Split:
        return Split(
            images=StackedImages(images[places]),
            target=target[places],
            names=tuple(names[place] for place in places.tolist()),
            image_size=image_size,
        )

    test = read_part(cifar, folder, cifar.test_files)
    note = partial_test(len(test[2]))
    validation = f"Validation is {val_fraction:.0%} of every training class, drawn by the seed: {len(held)} images."
    return Splits(
        train=split(images, target, names, tail[kept]),
        val=split(images, target, names, tail[held]),
        test=split(*test, torch.arange(len(test[2]))),
        class_names=_class_names(folder / cifar.meta_file, cifar),
        mean=cifar.mean,
        std=cifar.std,
        val_from_train=True,
        val_by_seed=True,
        notes=(
            f"Train is made long-tailed by the seed: {len(tail):,} of {len(target):,} images, largest class over "
            f"smallest {imbalance_factor:g}.",
            *([validation] if val_fraction else []),
            *([note] if note else []),
        ),
    )


def _class_names(file: Path, cifar: Cifar) -> tuple[str, ...]:
    try:
        return tuple(read_pickle(file)[cifar.class_names_key])
    except (KeyError, TypeError) as error:
        raise _not_official(file, cifar, error) from error


def _not_official(file: Path, cifar: Cifar, error: Exception) -> DataError:
    return DataError(f"{file} is no official file of {cifar.name} ({error!r}).")


def read_part(cifar: Cifar, folder: Path, files: tuple[str, ...]) -> tuple[Tensor, Tensor, list[str]]:
    """Images, labels and names of the images in some of the official files."""
    images, target, names = [], [], []
    for file in files:
        content = read_pickle(folder / file)
        try:
            pixels = np.asarray(content["data"], dtype=np.uint8).reshape(-1, 3, SIDE, SIDE)
            images.append(torch.from_numpy(pixels.copy()))
            target.append(torch.tensor(content[cifar.label_key], dtype=torch.long))
            names += [f"{file}/{name}" for name in content["filenames"]]
        except (KeyError, ValueError, TypeError) as error:
            raise _not_official(folder / file, cifar, error) from error
    return torch.cat(images), torch.cat(target), names


ARRAY_PARTS: Mapping[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
}
"""All that a pickled array of numbers needs; the official files were written by numpy 1."""


class ArrayUnpickler(pickle.Unpickler):
    """Reads plain values and numpy arrays and nothing else: a pickle may otherwise run any program."""

    def find_class(self, module: str, name: str) -> Any:
        """What a pickle may call."""
        if (module, name) not in ARRAY_PARTS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return ARRAY_PARTS[module, name]


def read_pickle(path: Path) -> dict[str, Any]:
    """The dictionary in one of the official files, which Python 2 wrote: hence latin1."""
    if not path.is_file():
        raise MissingFile(f"{path} is missing; extract the whole archive.")
    try:
        content = ArrayUnpickler(io.BytesIO(path.read_bytes()), encoding="latin1").load()
    except Exception as error:  # a damaged pickle can fail in any way
        raise DataError(f"{path} cannot be read as an official CIFAR file ({error}).") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} cannot be read as an official CIFAR file (it holds no dictionary).")
    return content


def entry(cifar: Cifar, *, images: str, archive: str) -> DataSet:
    """The line of the table for one of the two."""
    return DataSet(
        name=cifar.name,
        summary=f"{images} photographs of 32x32 pixels in {cifar.num_classes} classes, long-tailed in training",
        licence="none stated by the author; cite the report",
        source="Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009; long-tailed as in Cui et al., "
        "Class-Balanced Loss, CVPR 2019, arXiv:1901.05555",
        how_to_get=f"Download https://www.cs.toronto.edu/~kriz/{archive} and extract it: --data.root is the folder in "
        f"which {cifar.folder}/ lies. Or class folders that are long-tailed already: root/train/<class>/ and "
        "root/test/<class>/.",
        load=partial(load, cifar),
    )


CIFAR10_LT = entry(CIFAR10, images="60,000", archive="cifar-10-python.tar.gz")
CIFAR100_LT = entry(CIFAR100, images="60,000", archive="cifar-100-python.tar.gz")
