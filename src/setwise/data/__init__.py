"""Files -> batches: the data sets by name, and what turns a split of one into batches.

To add a data set: a file (or a class in its family's file) that defines a :class:`DataSet`, a line here, and a function
in ``tests/fakes.py`` that writes a tiny copy of it.
"""

from setwise.data.batch import Batch, BatchOfViews
from setwise.data.cifar import CIFAR10_LT, CIFAR100_LT
from setwise.data.dataset import STATISTICS, DataSet, Split, Splits
from setwise.data.digits import DIGITS_LT
from setwise.data.folders import IMAGE_EXTENSIONS
from setwise.data.image_folder import IMAGE_FOLDER
from setwise.data.image_list import IMAGE_LIST
from setwise.data.loader import Loader, make_loader
from setwise.data.transforms import TRANSFORMS, Transform

__all__ = [
    "DATASETS",
    "IMAGE_EXTENSIONS",
    "STATISTICS",
    "TRANSFORMS",
    "Batch",
    "BatchOfViews",
    "DataSet",
    "Loader",
    "Split",
    "Splits",
    "Transform",
    "make_loader",
]

DATASETS: dict[str, DataSet] = {
    data_set.name: data_set for data_set in (DIGITS_LT, CIFAR10_LT, CIFAR100_LT, IMAGE_FOLDER, IMAGE_LIST)
}
"""Data sets by name."""
