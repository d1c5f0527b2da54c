"""Runs parts in a process of their own, so that one that crashes or hangs costs only itself."""

from __future__ import annotations

import importlib
import json
import logging
import os
import platform
import sys
import warnings
from pathlib import Path
from typing import Any

import torch

import ickd_pl
from gpu_checks.record import Record


def machine() -> dict[str, Any]:
    """The card, and what drives it."""
    card = torch.cuda.get_device_properties(0) if torch.cuda.is_available() else None
    return {
        "card": None if card is None else card.name,
        "card_MiB": None if card is None else card.total_memory >> 20,
        "capability": None if card is None else f"{card.major}.{card.minor}",
        "cards": torch.cuda.device_count(),
        "cuda": torch.version.cuda,
        "cudnn": None if card is None else torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "ickd_pl": ickd_pl.__version__,
    }


def main(parts: list[dict[str, Any]], path: Path, tiny: bool) -> None:
    """Run the parts one after the other; their lines go to ``path``, and a last one of each says that it ended."""
    warnings.filterwarnings("ignore")
    for name in ("pytorch_lightning", "lightning_fabric", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.ERROR)
        for child in ("utilities.rank_zero", "utilities.seed"):
            logging.getLogger(f"{name}.{child}").setLevel(logging.ERROR)
    if tiny:
        torch.set_num_threads(1)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"machine": machine()}) + "\n")
    for part in parts:
        record = Record(part["name"], path, part["seconds"], tiny, part["pair"])
        try:
            importlib.import_module(part["module"]).run(record)
        except Exception as error:
            record.fail("the part itself", error)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"ended": part["name"]}) + "\n")


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] == "tiny")
