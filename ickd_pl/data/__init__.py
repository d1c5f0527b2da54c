"""The data: one batch format, one loader and the data sets of the project."""

from ickd_pl.data.base import TensorDataModule
from ickd_pl.data.batch import Batch, DataInfo
from ickd_pl.data.cifar import CIFAR10, CIFAR100
from ickd_pl.data.digits import Digits
from ickd_pl.data.image_folder import ImageFolder
from ickd_pl.data.loader import TensorLoader

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "Batch",
    "DataInfo",
    "Digits",
    "ImageFolder",
    "TensorDataModule",
    "TensorLoader",
]
