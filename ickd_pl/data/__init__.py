"""The data modules of the project, their loader and the batch format.

Every data module in a file of this folder can be imported from here, and has its class name on the command line.
"""

from typing import TYPE_CHECKING, Any

from pytorch_lightning import LightningDataModule

from ickd_pl.data.base import TensorDataModule
from ickd_pl.data.batch import Batch, DataInfo
from ickd_pl.data.cifar import CIFAR10, CIFAR100
from ickd_pl.data.digits import Digits
from ickd_pl.data.image_folder import ImageFolder
from ickd_pl.data.loader import TensorLoader
from ickd_pl.models.discovery import classes_in

# For type checkers: classes of new files, beside the imports above.
if TYPE_CHECKING:

    def __getattr__(name: str) -> Any: ...


_found = classes_in(__name__, LightningDataModule)
globals().update(_found)

__all__ = [  # noqa: PLE0604
    "CIFAR10",
    "CIFAR100",
    "Batch",
    "DataInfo",
    "Digits",
    "ImageFolder",
    "TensorDataModule",
    "TensorLoader",
    *_found,
]
