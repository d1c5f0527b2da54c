"""Images for a teacher that was trained with another mean and std than those of the data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ickd_pl.checks import short
from ickd_pl.errors import UserError
from ickd_pl.weights.normalization import fault_of, three_numbers
from ickd_pl.weights.student import normalisation_of

Constants: TypeAlias = tuple[list[float], list[float]]
"""Mean and std, three numbers each."""
CHOICES = ("auto", "data")


def check_normalization(value: Any, setting: str = "teacher_normalization") -> None:
    """Check what a ``teacher_normalization`` is: ``auto``, ``data``, or mean and std.

    Args:
        value: as given.
        setting: its name, for an error.

    Raises:
        UserError: it is none of them, or mean and std are not those of pixels scaled to 0..1.
    """
    if isinstance(value, str) and value in CHOICES:
        return
    given = [value.get(name) for name in ("mean", "std")] if isinstance(value, Mapping) and len(value) == 2 else []
    numbers = [three_numbers(each) if isinstance(each, Sequence) else None for each in given] or [None, None]
    mean, std = numbers
    fault = "" if mean is None or std is None else fault_of(mean, std)
    if mean is None or std is None or fault:
        raise UserError(
            f"{setting}: expected auto, data or {{mean: [R, G, B], std: [R, G, B]}} of pixels scaled to 0..1, std "
            f"above 0, got {short(value)}{fault and f': {fault}'}"
        )


class TeacherImages:
    """Turns images that are normalised for the student into the same images, normalised for the teacher.

    Args:
        path: the teacher's weights file, which may say its mean and std; None: there is none.
        setting: name of the setting that says them otherwise, for an error.
    """

    def __init__(self, path: str | None, setting: str = "model.teacher_normalization") -> None:
        self._path, self._setting = path, setting
        self._stated: Constants | None = None
        self._was_read = False
        self._prepared: tuple[Any, Constants | None] | None = None
        self._scale: Tensor | None = None
        self._shift: Tensor | None = None

    def ignore_file(self) -> None:
        """Do not look into the file: timing needs no weights."""
        self._path = None

    def prepare(self, choice: Any, data: Any) -> None:
        """Choose the teacher's mean and std.

        Args:
            choice: ``auto``: those that the teacher's file says, if any, else the data's; ``data``: the data's; or a
                dictionary with ``mean`` and ``std``.
            data: the data module; None: unknown.

        Raises:
            UserError: mean and std are given, and the data module does not say its own.
        """
        theirs = _of_data(data)
        if self._prepared == (choice, theirs):
            return
        own = self._constants(choice)
        self._scale = self._shift = None
        if own is not None and theirs is None and choice != "auto":
            raise UserError(
                f"{self._setting} needs the mean and std with which the data module normalises images: give it "
                f"attributes mean and std, three numbers each, or set {self._setting} to data"
            )
        if own is not None and theirs is not None and own != theirs:
            mean, std, to_mean, to_std = (torch.tensor(each, dtype=torch.float64) for each in (*theirs, *own))
            self._scale = (std / to_std).float().view(1, 3, 1, 1)
            self._shift = ((mean - to_mean) / to_std).float().view(1, 3, 1, 1)
        self._prepared = (choice, theirs)

    def __call__(self, image: Tensor) -> Tensor:
        """Images for the teacher.

        Args:
            image: (B, 3, H, W), normalised for the student.

        Returns:
            (B, 3, H, W) of the same type; the same tensor where both have one mean and std.
        """
        if self._scale is None or self._shift is None:
            return image
        if self._scale.device != image.device:
            self._scale, self._shift = self._scale.to(image.device), self._shift.to(image.device)
        return torch.addcmul(self._shift, image, self._scale).to(image.dtype)

    def _constants(self, choice: Any) -> Constants | None:
        if choice == "data":
            return None
        if choice != "auto":
            return [float(v) for v in choice["mean"]], [float(v) for v in choice["std"]]
        if not self._was_read and self._path is not None:
            self._stated, self._was_read = normalisation_of(self._path, self._setting), True
        return self._stated


def _of_data(data: Any) -> Constants | None:
    mean, std = (three_numbers(getattr(data, name, None)) for name in ("mean", "std"))
    return None if mean is None or std is None else (mean, std)
