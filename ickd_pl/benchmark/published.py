"""Published accuracies to compare with, and the names of methods and networks in tables.

``published.csv`` contains the 98 values of ICKD's table (``ICKD/Cifar100/README.md``; its 77 baselines are
RepDistiller's) and, for what it lacks, of RepDistiller's README: the cross-family pairs, AB, FT and CRD. CRD+KD is in
neither; its values are the CRD paper's as copied by another repository, which their source states. ``epoch`` is the
epoch of a value: the last for RepDistiller's, unstated for ICKD's own two rows. The source prints a top-1 of 0.00 for
"not applicable" (FSP on a pair with different channels); the file keeps it, but it is never returned.
"""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

EPOCHS = 240
DATA = "cifar100"
NUM_TEST = 10_000
# Methods (names in configs/methods/) as the published tables write them; others keep their own names.
ROWS = {
    "vanilla": "Vanilla",
    "kd": "KD",
    "fitnet": "FitNet",
    "at": "AT",
    "sp": "SP",
    "cc": "CC",
    "vid": "VID",
    "rkd": "RKD",
    "pkt": "PKT",
    "fsp": "FSP",
    "nst": "NST",
    "ickd": "ICKD-C (w/o KL)",
    "ickd_kl": "ICKD-C (with KL)",
    "ab": "AB",
    "ft": "FT",
    "crd": "CRD",
    "crd_kd": "CRD+KD",
    "kdsvd": "KDSVD",
    "dkd": "DKD",
    "kd_ls": "KD + LS",
    "dkd_ls": "DKD + LS",
    "reviewkd": "ReviewKD",
    "srrl": "SRRL",
    "wsld": "WSLD",
    "simkd": "SimKD",
    "dist": "DIST",
    "itrd": "ITRD",
    "ctkd": "CTKD",
    "catkd": "CAT-KD",
    "nkd": "NKD",
    "ofa": "OFA",
    "ttm": "TTM",
    "wttm": "WTTM",
    "sdd": "SDD",
    "rld": "RLD",
}
TEACHER = "Teacher"


@dataclass(frozen=True)
class Published:
    """A published test accuracy in %."""

    top1: float
    source: str
    epoch: str  # last, best or unstated


def published(method: str | None, teacher: str, student: str) -> Published | None:
    """The published accuracy of a method (a name in configs/methods/; None: the teacher) on a pair, if any."""
    return _table().get((row_name(method), teacher, student))


@cache
def _table() -> dict[tuple[str, str, str], Published]:
    with (Path(__file__).parent / "published.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {
        (r["method"], r["teacher"], r["student"]): Published(float(r["top1"]), r["source"], r["epoch"])
        for r in rows
        if float(r["top1"]) > 0
    }


def row_name(method: str | None) -> str:
    """The name of a method's row; None is the teacher."""
    return TEACHER if method is None else ROWS.get(method, method)


def network_name(name: str) -> str:
    """``resnet8x4`` -> ``ResNet8x4``, ``wrn_40_2`` -> ``WRN-40-2``, ``vgg13`` -> ``VGG13``; others unchanged."""
    if found := re.fullmatch(r"resnet(\d+(x\d+)?)", name):
        return f"ResNet{found[1]}"
    if found := re.fullmatch(r"wrn_(\d+)_(\d+)", name):
        return f"WRN-{found[1]}-{found[2]}"
    if found := re.fullmatch(r"vgg(\d+)", name):
        return f"VGG{found[1]}"
    return name
