"""Freed memory is kept for the next step, where the C library is glibc, and no result depends on it."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from ickd_pl import Digits, DistillationModule
from ickd_pl.training import memory
from ickd_pl.training.memory import keep_memory

CPU = torch.device("cpu")
on_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
# In a process of its own: what is set stays set. Prints the results and the page faults of a step, before and after.
STEPS = """
import resource, torch
from torch import nn
from ickd_pl.training.memory import keep_memory

torch.set_num_threads(1)
image = torch.randn(64, 3, 32, 32, generator=torch.Generator().manual_seed(1))

def run():
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Conv2d(width, 16, 3, 1, 1), nn.BatchNorm2d(16), nn.ReLU()) for width in (3, 16, 16)]
    net = nn.Sequential(*layers, nn.Flatten(2))
    optimizer = torch.optim.SGD(net.parameters(), 0.01)
    for step in range(5):
        if step == 2:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        optimizer.zero_grad()
        loss = net(image).mean(2).logsumexp(1).mean()
        loss.backward()
        optimizer.step()
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    print(loss.item().hex(), sum(p.double().sum().item() for p in net.parameters()).hex(), faults / 3)

run()
assert keep_memory(torch.device("cpu"))
run()
"""


@on_glibc
def test_results_are_the_same_and_pages_are_kept() -> None:
    done = subprocess.run([sys.executable, "-c", STEPS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (*before, many), (*after, few) = (line.split() for line in done.stdout.splitlines())
    assert before == after
    assert float(few) < 0.1 * float(many)  # about 0 and 5,000


@on_glibc
@pytest.mark.parametrize(
    ("name", "value", "kept"),
    [
        ("MALLOC_ARENA_MAX", "2", True),
        ("MALLOC_TRIM_THRESHOLD_", "131072", False),
        ("GLIBC_TUNABLES", "glibc.malloc.mmap_threshold=131072", False),
    ],
)
def test_the_users_own_thresholds_stay(name: str, value: str, kept: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    assert keep_memory(CPU) == kept


def test_other_devices_and_systems_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[Any] = []
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda *args: called.append(args))
    assert not keep_memory(torch.device("cuda"))
    for target, name, value in (
        (memory.platform, "libc_ver", lambda: ("", "")),  # musl
        (memory.sys, "platform", "win32"),
    ):
        with monkeypatch.context() as here:
            here.setattr(target, name, value)
            assert not keep_memory(CPU)
    assert called == []


@on_glibc
def test_old_versions_take_a_smaller_threshold(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, int]] = []

    class Library:
        @staticmethod
        def mallopt(what: int, value: int) -> int:
            calls.append((what, value))
            return int(value <= 32 << 20)

    monkeypatch.setattr(memory.ctypes, "CDLL", lambda _: Library)
    assert keep_memory(CPU)
    assert calls == [(-3, 1 << 30), (-3, 32 << 20), (-1, -1)]
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda _: object())  # a library without it
    assert not keep_memory(CPU)


@pytest.mark.filterwarnings("ignore")
def test_every_fit_and_evaluation_keeps_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    devices: list[torch.device] = []
    for user in ("student", "evaluation"):
        monkeypatch.setattr(f"ickd_pl.training.{user}.keep_memory", devices.append)
    trainer = pl.Trainer(
        max_epochs=1, limit_train_batches=1, limit_val_batches=1, limit_test_batches=1, accelerator="cpu",
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=tmp_path,
    )  # fmt: skip
    module, data = DistillationModule("resnet8", num_classes=10), Digits(train_size=20)
    trainer.fit(module, data)
    trainer.test(module, data, verbose=False)
    assert devices == [CPU, CPU]
