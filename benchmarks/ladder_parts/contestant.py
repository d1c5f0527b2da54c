"""A contestant's process: ``python -m ladder_parts.contestant JSON``, started by the referee."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from ladder_parts.turns import TURNS


def main(spec: dict[str, Any]) -> None:
    if "LOCAL_RANK" not in os.environ:  # set for the other ranks, which Lightning starts
        TURNS.open()
    # Imported one by one: not all of it works with the older version.
    if spec["kind"] == "machine":
        from ladder_parts import machine

        machine.run(spec)
    elif spec["kind"] == "plain":
        from ladder_parts import plain

        (plain.evaluate if spec["evaluate"] else plain.run)(spec)
    else:
        from ladder_parts import ours

        try:
            (ours.fit if spec["kind"] == "fit" else ours.pack)(spec)
        except ours.NotHere as reason:
            TURNS.answer({"skip": str(reason)})


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
