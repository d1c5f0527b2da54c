"""Write predictions.csv: the predicted class and its probability for every image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ickd_pl.errors import UserError
from ickd_pl.files import write_text
from ickd_pl.plain import csv_text


def write_predictions(path: Path, outputs: Sequence[Tensor], data: Any) -> Path:
    """Write one row per image: its path (or index), the predicted class, and that class's probability.

    The file is valid UTF-8 whatever the names are: :func:`ickd_pl.plain.csv_cell` says how they are written, and
    :func:`ickd_pl.plain.from_csv_cell` gives them back.

    Args:
        path: the file to write.
        outputs: class probabilities by batch, each (B, K).
        data: the data module; its ``predict_paths()`` and ``class_names`` are used if it has them. A run with
            ``limit_predict_batches`` predicts the first images only.

    Raises:
        UserError: nothing was predicted.
    """
    if not outputs:
        raise UserError("there are no images to predict: the loader is empty, or trainer.limit_predict_batches is 0")
    probability, label = torch.cat(list(outputs)).max(dim=1)
    names = getattr(data, "class_names", None)
    paths = data.predict_paths() if hasattr(data, "predict_paths") else [str(i) for i in range(len(label))]
    first = "index" if all(p == str(i) for i, p in enumerate(paths)) else "path"
    rows = [
        [path_or_index, names[k] if names else k, f"{p:.6f}"]
        for path_or_index, k, p in zip(list(paths)[: len(label)], label.tolist(), probability.tolist(), strict=True)
    ]
    write_text(path, csv_text([[first, "class", "probability"], *rows]))
    return path
