"""A benchmark small enough for tests, and readers of its results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from ickd_pl.runs.configs import config_root
from tests.runs.helpers import cli

# The shipped quick.yaml, shortened: these tests do not depend on the training length.
SHORT = {"trainer": {"max_epochs": 2}, "model": {"milestones": [1]}}


def quick(name: str = "short.yaml", **changes: Any) -> str:
    """Write a benchmark file based on the shipped quick.yaml."""
    content = yaml.safe_load((config_root() / "benchmarks" / "quick.yaml").read_text())
    content["data"]["init_args"]["train_size"] = 64
    content["seeds"] = [0, 1]
    content["trainer"].update(SHORT["trainer"])
    content["model"].update(SHORT["model"])
    content["teachers"]["trainer"] = {"max_epochs": 1}
    content["teachers"]["model"] = {"milestones": []}
    content["teachers"]["data"] = {"init_args": {"train_size": 128}}
    content.update(changes)
    Path(name).write_text(yaml.safe_dump(content))
    return name


def results(folder: Path) -> dict[str, dict[str, Any]]:
    """All results, without values that depend on machine and time."""
    found = {}
    for path in sorted(folder.glob("cells/*/*/*/result.json")):
        content = json.loads(path.read_text())
        for key in ("seconds", "images_per_second", "config"):
            content.pop(key)
        found[path.parent.relative_to(folder / "cells").as_posix()] = content
    return found


def run(*more: object) -> Any:
    return cli("bench", "run", "--config", "short.yaml", "--output", "out", *more)


def refused(*args: object) -> str:
    outcome = cli("bench", *args)
    assert outcome.status == 2, outcome.out
    message = outcome.err.strip().splitlines()[-1]
    assert message.startswith("error: "), outcome.err
    return message
