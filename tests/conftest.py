"""What all tests share: one thread, a working folder of their own, and a few tiny trained runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.runs.helpers import Run, finished_run, student_words

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def own_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Work in an empty folder; a process that a test starts takes one thread as well."""
    torch.set_num_threads(1)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(tmp_path)
    # LightningCLI warns of pytest's own words.
    monkeypatch.setattr("sys.argv", ["cli.py"])


@pytest.fixture(scope="session")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A resnet20 trained on a few digits by its shipped configuration. To be read only."""
    words = ["--config", "configs/teachers/resnet20.yaml"]
    return finished_run(tmp_path_factory.mktemp("teacher"), "digits/resnet20/vanilla/seed_0", words, epochs=1)


@pytest.fixture(scope="session")
def student(teacher: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A resnet8 with ICKD and KD of that teacher, three epochs without a break. To be read only."""
    where = "digits/resnet20_resnet8/ickd_kd/seed_0"
    return finished_run(tmp_path_factory.mktemp("student"), where, student_words(teacher), epochs=3)
