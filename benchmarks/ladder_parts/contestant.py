"""A contestant's process: ``python -m ladder_parts.contestant JSON``, started by the referee."""

from __future__ import annotations

import importlib
import json
import os
import sys
from typing import Any

from ladder_parts.turns import TURNS, NotHere

# Module and function of each kind of contestant.
JOBS = {"machine": ("machine", "run"), "plain": ("plain", "run"), "fit": ("ours", "fit"), "pack": ("ours", "pack")}


def main(spec: dict[str, Any]) -> None:
    if "LOCAL_RANK" not in os.environ:  # set for the other ranks, which Lightning starts
        TURNS.open()
    module, name = JOBS[spec["kind"]]
    # Imported here: not all of it works with the older version.
    job = getattr(importlib.import_module(f"ladder_parts.{module}"), name)
    try:
        job(spec)
    except NotHere as reason:
        TURNS.answer({"skip": str(reason)})


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
