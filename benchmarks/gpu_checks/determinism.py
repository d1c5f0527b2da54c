"""Two runs of one command with ``trainer.deterministic``: can every method, and are the weights equal, bit for bit?"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from common import ROWS, build, members, shipped
from gpu_checks.record import Record, Values
from gpu_checks.trainer import fit
from ickd_pl.training.pack import Pack

STEPS = 8


def run(record: Record) -> None:
    methods = ("ickd", "crd") if record.tiny else shipped("methods")
    for method in methods:
        part = partial(_compared, record, partial(_solo, record, method))
        record.check("two deterministic runs", part, {"pair": record.pair, "method": method}, {"difference": 0})
    part = partial(_compared, record, partial(_pack, record, ROWS[:3] if record.tiny else ROWS))
    record.check("two deterministic runs of a captured pack", part, {"pair": record.pair}, {"difference": 0})


def _solo(record: Record, method: str) -> Any:
    return build(record.pair, method, lr=0.01, num_samples=record.num_images, cuda_graphs=False)


def _pack(record: Record, rows: tuple[str, ...]) -> Any:
    settings: dict[str, Any] = {"lr": 0.01, "num_samples": record.num_images, "cuda_graphs": True}
    return Pack(members(record.pair, rows, **settings), list(rows))


def _compared(record: Record, make: Any) -> Values:
    """The largest difference of two runs' weights, and of the first one's to a run that is not deterministic."""
    runs = []
    try:
        for deterministic in (True, True, False):
            module = make()
            fit(record, module, STEPS, deterministic=deterministic)
            runs.append(torch.cat([p.detach().float().cpu().flatten() for p in _trained(module)]))
    finally:
        torch.use_deterministic_algorithms(False)
    return {"difference": _apart(*runs[:2]), "from_another": _apart(runs[0], runs[2])}


def _trained(module: Any) -> list[Tensor]:
    return [p for p in module.parameters() if p.requires_grad]


def _apart(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max())
