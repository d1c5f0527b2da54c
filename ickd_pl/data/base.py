"""Base class of the project's data modules: splits, loaders, normalisation constants."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor

from ickd_pl.checks import plain_arguments, short
from ickd_pl.data.augment import channel_stats, table_needed
from ickd_pl.data.batch import Batch
from ickd_pl.data.images import Images, Pixels
from ickd_pl.data.loader import TensorLoader, suitable_batch
from ickd_pl.data.splits import check_sizes, split_rows
from ickd_pl.data.stored import read_data, refuse_paths
from ickd_pl.errors import UserError
from ickd_pl.weights.normalization import three_numbers

if TYPE_CHECKING:
    from typing_extensions import Self


class TensorDataModule(pl.LightningDataModule, ABC):
    """A data set of uint8 images, in memory or read when they are needed.

    A subclass implements :meth:`_read` and sets ``name``, ``num_classes``, ``image_size`` and ``num_available``, as
    class attributes or in its ``__init__`` before it calls this one.

    Args:
        batch_size: for training, over all ranks.
        eval_batch_size: for validation, test and predict, over all ranks; None: what suits the device.
        val_size: images split off the training set for validation, class-balanced, the same for every seed. With 0
            nothing is split off and validation uses the TEST images, as the benchmark's protocol does.
        train_size: number of images to train on, class-balanced, the same for every seed. None: all that remain.
        seed: for order and augmentation.

    Attributes:
        name: short name of the data set, safe as a folder name.
        num_classes: K.
        image_size: height and width in pixels.
        num_available: training images before anything is split off.
        image_order: name of the order in which images are stored, where it has changed between versions.

    Raises:
        UserError: a size out of its range.
    """

    name: str | None
    num_classes: int
    image_size: int
    num_available: int
    padding: int = 4
    flip: bool = True
    known_constants: ClassVar[tuple[Sequence[float], Sequence[float]] | None] = None
    predict_split: str = "test"
    image_order: ClassVar[str | None] = None

    def __init__(
        self,
        batch_size: int = 64,
        eval_batch_size: int | None = None,
        val_size: int = 0,
        train_size: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.val_size = val_size
        self.train_size = train_size
        self.seed = seed
        for key, value in (("batch_size", batch_size), ("eval_batch_size", eval_batch_size)):
            if value is not None and value < 1:
                raise UserError(f"{key} must be at least 1, got {value}.")
        check_sizes(self.name, self.num_available, self.num_classes, val_size, train_size)
        self._parts: dict[str, Images] = {}
        self._constants: tuple[list[float], list[float]] | None = None
        if self.known_constants is not None:
            self._constants = list(self.known_constants[0]), list(self.known_constants[1])
        self._class_names: list[str] | None = None

    def __str__(self) -> str:
        # Lightning's own reads the data and fails on loaders that are not torch's.
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.hparams.items())})"

    @property
    def num_train(self) -> int:
        """Number of images trained on; known before any image is read."""
        return self.num_available - self.val_size if self.train_size is None else self.train_size

    @property
    def eval_split(self) -> str:
        """The split that ``val_dataloader`` loads: "val" or "test"."""
        return "val" if self.val_size > 0 else "test"

    @property
    def train_labels(self) -> Tensor:
        """(num_train,) int64 on the CPU, labels of the images trained on, by ``Batch.index``. Reads them if needed."""
        return self._part("train").label

    @property
    def mean(self) -> list[float]:
        """Mean per channel of pixels scaled to 0..1: from a loaded checkpoint, else from the data."""
        return self._stats()[0]

    @property
    def std(self) -> list[float]:
        """Std per channel of pixels scaled to 0..1: from a loaded checkpoint, else from the data."""
        return self._stats()[1]

    @property
    def class_names(self) -> list[str]:
        """One name for each class, in the order of the labels: from a loaded checkpoint, else from the data."""
        if self._class_names is None:
            self._class_names = self._read_class_names()
        return self._class_names

    def predict_paths(self) -> list[str]:
        """One string for each image of ``predict_dataloader``, by ``Batch.index``: its file, or its number."""
        return [str(i) for i in range(len(self._part(self.predict_split).label))]

    @abstractmethod
    def _read(self, split: str) -> Images:
        """Read "train" (all images, before the split) or "test", or another split that the subclass knows.

        Labels are from 0 to num_classes - 1; -1 is "no label", which training images must not have.
        """

    @abstractmethod
    def _read_class_names(self) -> list[str]:
        """Names in the order of the labels."""

    def _part(self, split: str) -> Images:
        """The images of a split, read once: "train" (those trained on), "val", "test" or what ``_read`` knows."""
        if split not in self._parts:
            if split in ("train", "val"):
                self._read_training()
            else:
                self._parts[split] = self._checked(split)
        return self._parts[split]

    def _checked(self, split: str) -> Images:
        """Read a split and check its labels: on a GPU, the error for a wrong label would not show it."""
        images = self._read(split)
        least = 0 if split == "train" else -1
        if len(images.label):
            low, high = int(images.label.min()), int(images.label.max())
            if low < least or high >= self.num_classes:
                wrong = f"largest is {high}" if high >= self.num_classes else f"smallest is {low}"
                raise UserError(
                    f"labels of the {split} images of {self.name} must be from 0 to {self.num_classes - 1} "
                    f"({self.num_classes} classes); the {wrong}."
                )
        return images

    def _read_training(self) -> None:
        images = self._checked("train")
        if self._constants is None:
            self._constants = channel_stats(images.image)
        if self.val_size == 0 and self.train_size is None:
            self._parts["train"] = images
            return
        for split, rows in zip(("train", "val"), split_rows(images.label, self.val_size, self.train_size), strict=True):
            self._parts[split] = images.subset(rows)

    def _stats(self) -> tuple[list[float], list[float]]:
        if self._constants is None:
            self._read_training()
        assert self._constants is not None
        return self._constants

    def setup(self, stage: str | None = None) -> None:
        """Read the splits that the stage needs, each only once.

        Args:
            stage: "fit", "validate", "test", "predict", or None for the training and the test images.
        """
        wanted = {
            "fit": ("train", self.eval_split),
            "validate": (self.eval_split,),
            "test": ("test",),
            "predict": (self.predict_split,),
        }
        for split in wanted.get(stage or "", ("train", self.eval_split, "test")):
            self._part(split)

    def train_dataloader(self) -> TensorLoader:
        """Shuffled and augmented batches of the images trained on; in one order for ``overfit_batches``."""
        return self._loader("train", self.batch_size, train=True)

    def val_dataloader(self) -> TensorLoader:
        """The validation split where there is one, else the test images."""
        return self._loader(self.eval_split, self.eval_batch_size)

    def test_dataloader(self) -> TensorLoader:
        """The test images."""
        return self._loader("test", self.eval_batch_size)

    def predict_dataloader(self) -> TensorLoader:
        """The images to predict: the test images, unless the data module has others."""
        return self._loader(self.predict_split, self.eval_batch_size)

    def _loader(self, split: str, batch_size: int | None, train: bool = False) -> TensorLoader:
        images, labels = self._part(split)
        trainer = self.trainer
        device = trainer.strategy.root_device if trainer is not None else torch.device("cpu")
        device = device if device.type == "cuda" else torch.device("cpu")
        if self._fits(images, train, device):
            images = images.to(device)
        return TensorLoader(
            images,
            labels,
            device=device,
            batch_size=suitable_batch(trainer) if batch_size is None else batch_size,
            mean=self.mean,
            std=self.std,
            train=train,
            seed=self.seed,
            flip=self.flip,
            padding=self.padding,
            rank=trainer.global_rank if trainer is not None else 0,
            world_size=trainer.world_size if trainer is not None else 1,
            same_order=getattr(trainer, "overfit_batches", 0) > 0,
        )

    def _fits(self, images: Pixels, train: bool, device: torch.device) -> bool:
        """Whether the images, and the table of a small set, take less than half of what is free on a GPU."""
        if device.type != "cuda":
            return False
        table = table_needed(images.shape, self.padding, self.flip) if train else 0
        return math.prod(images.shape) + table < torch.cuda.mem_get_info(device)[0] / 2

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Copy a batch to the device, unless it was built there, as is usual."""
        if not isinstance(batch, Batch):
            return super().transfer_batch_to_device(batch, device, dataloader_idx)
        if batch.image.device == device:
            return batch
        return Batch(*(tensor.to(device, non_blocking=True) for tensor in batch))

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: str | Path, **overrides: Any) -> Self:  # type: ignore[override]
        """The data module of a run's checkpoint; keyword arguments override the stored ones.

        Raises:
            UserError: the file stores another data module, or arguments that are not numbers and strings.
        """
        arguments, state = read_data(checkpoint_path, cls)
        arguments = {name: value for name, value in arguments.items() if name not in overrides}
        where = f"{checkpoint_path}: its data.init_args"
        plain = plain_arguments(cls, arguments, where, "give it to load_from_checkpoint as an argument")
        refuse_paths(cls, plain, where)
        data = cls(**plain, **overrides)
        data.load_state_dict(state)
        return data

    def state_dict(self) -> dict[str, Any]:
        """``mean``, ``std`` and ``class_names`` as plain lists; empty as long as nothing was read."""
        if not self._parts or self._constants is None:
            return {}
        return {"mean": list(self.mean), "std": list(self.std), "class_names": list(self.class_names)}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Use a checkpoint's constants and class names, so that it is evaluated as it was trained.

        Raises:
            UserError: the checkpoint has another number of classes, or is damaged.
        """
        if not isinstance(state_dict, Mapping):
            raise UserError(f"the checkpoint's state of {self.name} is damaged: got {short(state_dict)}")
        mean, std, names = (state_dict.get(name) for name in ("mean", "std", "class_names"))
        if mean is not None and std is not None:
            numbers = [three_numbers(values) if isinstance(values, list) else None for values in (mean, std)]
            if numbers[0] is None or numbers[1] is None:
                wrong = mean if numbers[0] is None else std
                raise UserError(f"the checkpoint's mean or std is damaged: expected three numbers, got {short(wrong)}")
            self._constants = numbers[0], numbers[1]
        if names is None:
            return
        if not isinstance(names, list):
            raise UserError(f"the checkpoint's class_names are damaged: expected a list of strings, got {short(names)}")
        if len(names) != self.num_classes:
            raise UserError(f"the checkpoint was trained on {len(names)} classes, {self.name} has {self.num_classes}.")
        if self._parts and list(names) != self.class_names:
            rank_zero_warn(f"The checkpoint's class names differ from those of {self.name}: labels may not match.")
        self._class_names = [str(name) for name in names]
