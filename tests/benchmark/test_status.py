"""``bench status`` while a pack runs."""

from __future__ import annotations

import os
from pathlib import Path

from filelock import FileLock

from ickd_pl.benchmark.status import status


def test_a_running_pack_runs_the_members_that_it_has_started() -> None:
    """FSP has a first stage of its own, so it is trained alone, before or after."""
    Path("benchmark.yaml").write_text(
        "{name: x, data: {class_path: Digits}, pairs: [resnet20_resnet8], methods: [kd, fsp], seeds: [0], pack: true}"
    )
    pack, times = Path("packs/resnet20_resnet8/seed_0"), {"fsp": 100, "kd": 300}
    pack.mkdir(parents=True)
    for method, time in times.items():
        started = Path(f"cells/resnet20_resnet8/{method}/seed_0/identity.json")
        started.parent.mkdir(parents=True)
        started.touch()
        os.utime(started, (time, time))
    with FileLock(pack / ".lock"):
        (pack / ".holder").write_text("process 1 on x")
        os.utime(pack / ".holder", (200, 200))
        lines = status(Path()).splitlines()
    assert lines[:3] == [
        "to do     teachers/resnet20/seed_0",
        "running   resnet20_resnet8/kd/seed_0 epoch 0 of 240 (process 1 on x)",
        "to do     resnet20_resnet8/fsp/seed_0",
    ]
    assert "running" not in status(Path())
