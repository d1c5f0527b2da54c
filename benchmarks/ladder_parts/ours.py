"""The project's own contestants: whole runs by the command line or as the benchmark packs them, of any version."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ladder_parts.turns import NotHere


def arguments(spec: dict[str, Any], method: str, folder: str) -> list[str]:
    """Of ``fit``: the shipped files, random images, the barrier, then the settings of the rung."""
    return [
        "--config=configs/base.yaml",
        f"--config=configs/pairs/{spec['pair']}.yaml",
        f"--config=configs/methods/{method}.yaml",
        "--data=ladder_parts.images.RandomImages",
        f"--data.init_args.images={spec['images']}",
        f"--data.init_args.test_images={spec['test_images']}",
        f"--data.init_args.batch_size={spec['batch']}",
        f"--model.teacher_weights={'null' if method == 'vanilla' else spec['weights']}",
        f"--trainer.default_root_dir={folder}",
        *usable(spec["settings"]),
    ]


def usable(settings: Iterable[str]) -> list[str]:
    """The settings that this version has. It also lacks what another one can switch off.

    Raises:
        NotHere: a hyper-parameter or file that this version does not have.
    """
    from ickd_pl import DistillationModule
    from ickd_pl.errors import UserError

    known, found = inspect.signature(DistillationModule.__init__).parameters, []
    for setting in settings:
        flag, _, value = setting.partition("=")
        if flag.startswith("--model.") and flag.removeprefix("--model.") not in known:
            if value == "false":
                continue
            raise NotHere(f"no {flag.removeprefix('--')}")
        if flag == "--config":
            try:
                _find_config(value)
            except UserError as error:
                raise NotHere(f"no {value}") from error
        found.append(setting)
    return found


def _find_config(path: str) -> str:
    try:
        from ickd_pl.runs.configs import find_config
    except ImportError:  # before the rooms
        from ickd_pl.runtime.configs import find_config
    return str(find_config(path))


def fit(spec: dict[str, Any]) -> None:
    """``fit`` of one method; with ``evaluate``, epochs of one step and a whole evaluation."""
    from ickd_pl.cli import main

    barrier = "EpochBarrier" if spec["evaluate"] else "StepBarrier"
    more = [f"--trainer.callbacks+=ladder_parts.barrier.{barrier}"]
    if spec["evaluate"]:
        more.append("--trainer.limit_train_batches=1")
    if spec["ranks"] > 1:
        more += [f"--trainer.devices={spec['ranks']}", "--trainer.strategy=ddp"]
    status = main(["fit", *arguments(spec, spec["methods"][0], "runs"), *more])
    raise SystemExit(f"the run ended by itself, status {status}")


def pack(spec: dict[str, Any]) -> None:
    """The methods as a pack, as ``bench run`` trains one."""
    from ickd_pl.benchmark import cells
    from ladder_parts.barrier import StepBarrier

    known = inspect.signature(cells.train_pack).parameters
    if unknown := sorted(set(spec["pack"]) - set(known)):
        raise NotHere(f"packs have no {unknown[0]}")
    jobs = [
        cells.Job(_cell(method), ["fit", *arguments(spec, method, "runs")], Path("runs") / method)
        for method in spec["methods"]
    ]
    outcomes = cells.train_pack(jobs, Path("pack.ckpt"), [StepBarrier()], **spec["pack"])
    raise SystemExit(f"the pack ended by itself: {[(outcome.status, outcome.reason) for outcome in outcomes]}")


def _cell(method: str) -> Any:
    class Cell(SimpleNamespace):
        def __str__(self) -> str:
            return method

    return Cell(method=method)
