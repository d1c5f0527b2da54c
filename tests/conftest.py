"""What all tests share: one thread, a working folder of their own, and a few tiny trained runs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.runs.helpers import Forked, Run, finished_run, made_once, student_args

# The tests compare bits and are of the CPU; those of a GPU, and benchmarks/gpu.py, are asked for.
if os.environ.get("ICKD_TEST_GPU") != "1":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that start two processes of their own run one after the other, also where the tests run in parallel."""
    for item in items:
        if item.get_closest_marker("ddp"):
            item.add_marker(pytest.mark.xdist_group("ddp"))


@pytest.fixture(autouse=True)
def own_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Work in an empty folder; a process that a test starts takes one thread as well."""
    torch.set_num_threads(1)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(tmp_path)
    # LightningCLI warns of pytest's own words.
    monkeypatch.setattr("sys.argv", ["cli.py"])


@pytest.fixture(scope="session")
def forked() -> Iterator[Forked]:
    """Starts commands in processes of their own."""
    server = Forked()
    yield server
    server.close()


@pytest.fixture(scope="session")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A resnet20 trained on a few digits by its shipped configuration. To be read only."""
    where, words = "digits/resnet20/vanilla/seed_0", ["--config", "configs/teachers/resnet20.yaml"]
    root = made_once(tmp_path_factory, "teacher", lambda root: finished_run(root, where, words, epochs=1))
    return Run(root / where, root, words)


@pytest.fixture(scope="session")
def student(teacher: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A resnet8 with ICKD and KD of that teacher, three epochs without a break. To be read only."""
    where, words = "digits/resnet20_resnet8/ickd_kd/seed_0", student_args(teacher)
    root = made_once(tmp_path_factory, "student", lambda root: finished_run(root, where, words, epochs=3))
    return Run(root / where, root, words)
