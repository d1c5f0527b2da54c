"""The images that ``correlations`` compares networks on."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from ickd_pl.data.batch import as_batch
from ickd_pl.errors import UserError
from ickd_pl.runs.data_options import data_from_args
from ickd_pl.runs.stored_settings import DataArguments, data_settings
from ickd_pl.weights.checkpoint import RunCheckpoint

BATCH = 100
"""Images in one forward pass."""
RECALIBRATION_IMAGES = 1000
"""About this many training images re-estimate the batch norms of untrained modules."""


def data_of(
    args: Sequence[str], parsed: DataArguments, known: dict[str, type], run: RunCheckpoint, num_classes: int
) -> tuple[Any, str]:
    """A prepared data module: the checkpoint's with the user's arguments, or another one that the user names.

    Args:
        args: options of the data, such as ``--data Digits``.
        parsed: the same, parsed; see :func:`ickd_pl.runs.stored_settings.data_arguments`.
        known: classes that the checkpoint may name; see :func:`ickd_pl.runs.stored_settings.known_data`.
        run: the checkpoint.
        num_classes: of its student.

    Returns:
        The data module, and a note on where its data are read if the checkpoint decides that; may be empty.

    Raises:
        UserError: no data set is named, wrong options, or a different number of classes.
    """
    settings, source = data_settings(run, parsed, known)
    args = _without_class(args)
    if settings is not None:
        arguments = {k: v if isinstance(v, str) else json.dumps(v) for k, v in settings["init_args"].items()}
        kept = [f"--data.init_args.{key}={value}" for key, value in arguments.items()]
        data = data_from_args([f"--data={settings['class_path']}", *kept, *args])
        # The constants that the student was trained with.
        if run.data_state and hasattr(data, "load_state_dict"):
            data.load_state_dict(run.data_state)
    elif parsed.name is None:
        raise UserError(f"{run.path} does not say on which data it was trained: give --data NAME")
    else:
        data = data_from_args([f"--data={parsed.name}", *args])
    classes = getattr(data, "num_classes", num_classes)
    if classes != num_classes:
        raise UserError(
            f"the data have {classes} classes, {run.path} has {num_classes}: give --data with as many classes"
        )
    data.prepare_data()
    return data, source


def _without_class(args: Sequence[str]) -> list[str]:
    """The arguments without ``--data NAME``."""
    rest, expects = [], False
    for arg in args:
        if not expects and arg != "--data" and not arg.startswith("--data="):
            rest.append(arg)
        expects = arg == "--data" and not expects
    if expects:
        raise UserError("--data: expected the name of a data set after it")
    return rest


def test_images(data: Any, most: int) -> Iterator[Tensor]:
    """Test images evenly spaced over the test set, which may be sorted by class, in batches."""
    data.setup("test")
    total = sum(len(as_batch(batch).label) for batch in data.test_dataloader())
    count, position = min(most, total), 0
    chosen = {number * total // count for number in range(count)}
    for batch in data.test_dataloader():
        images = as_batch(batch).image
        rows = [row for row in range(len(images)) if position + row in chosen]
        position += len(images)
        yield from (images[part] for part in (rows[i : i + BATCH] for i in range(0, len(rows), BATCH)))


def training_images(data: Any) -> Iterator[Tensor]:
    """The first training batches."""
    data.setup("fit")
    seen = 0
    for batch in data.train_dataloader():
        images = as_batch(batch).image
        if len(images) > 1:  # one image alone may have no variance
            yield images
        seen += len(images)
        if seen >= RECALIBRATION_IMAGES:
            return
