"""What tables call methods and networks."""

from __future__ import annotations

import re

# The names of configs/methods/, as the published tables write them; what is not here keeps its own name.
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
}
TEACHER = "Teacher"


def row_name(method: str | None) -> str:
    """The row of a method; None is the teacher."""
    return TEACHER if method is None else ROWS.get(method, method)


def network_name(name: str) -> str:
    """``resnet8x4`` -> ``ResNet8x4``, ``wrn_40_2`` -> ``WRN-40-2``, ``vgg13`` -> ``VGG13``; others as they are."""
    if found := re.fullmatch(r"resnet(\d+(x\d+)?)", name):
        return f"ResNet{found[1]}"
    if found := re.fullmatch(r"wrn_(\d+)_(\d+)", name):
        return f"WRN-{found[1]}-{found[2]}"
    if found := re.fullmatch(r"vgg(\d+)", name):
        return f"VGG{found[1]}"
    return name
