"""CIFAR-10 from wherever it can be had, and batches of it.

`load_cifar10` uses the files on this machine, else a download, else the generated stand-in, and
says which. A damaged or wrong file is never used and never deleted: `DataError` says how to mend
it. `BatchLoader` makes seeded batches that can be taken up in the middle of an epoch.
"""

from shipyard.data.cifar10 import load_cifar10
from shipyard.data.loader import BatchLoader, Transform, random_crop_flip
from shipyard.data.sets import CLASSES, MEAN, STD, Cifar10, ImageSet, denormalize, normalize, split
from shipyard.errors import DataError, DownloadError

__all__ = [
    "CLASSES",
    "MEAN",
    "STD",
    "BatchLoader",
    "Cifar10",
    "DataError",
    "DownloadError",
    "ImageSet",
    "Transform",
    "denormalize",
    "load_cifar10",
    "normalize",
    "random_crop_flip",
    "split",
]
