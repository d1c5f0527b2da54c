"""What the command line's Trainer does for a short step: a bar that is seldom drawn, hooks without a profiler."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
from pytorch_lightning.callbacks import TQDMProgressBar
from pytorch_lightning.demos.boring_classes import BoringModel
from pytorch_lightning.profilers import SimpleProfiler
from pytorch_lightning.trainer.connectors import callback_connector

from ickd_pl.runs import bar, trainer
from ickd_pl.runs.trainer import CommandLineTrainer


def make(**options: Any) -> pl.Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False, "accelerator": "cpu"}
    return CommandLineTrainer(max_epochs=1, default_root_dir=Path.cwd(), **{**quiet, **options})


@pytest.mark.filterwarnings("ignore")
def test_the_bar_is_drawn_seldom_and_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[str, int]] = []
    for name in ("train", "validation", "test", "predict"):

        def note(self: Any, t: Any, m: Any, out: Any, batch: Any, batch_idx: int, *rest: Any, name: str = name) -> None:
            drawn.append((name, batch_idx))

        monkeypatch.setattr(TQDMProgressBar, f"on_{name}_batch_end", note)
    clock = iter(range(1000))
    monkeypatch.setattr(bar.time, "monotonic", lambda: 0.03 * next(clock))
    module, own = BoringModel(), make()  # 64 batches
    own.fit(module)
    shown = [number for name, number in drawn if name == "train"]
    assert shown[-1] == 63 and 12 <= len(shown) <= 20
    own.test(module, verbose=False)
    own.predict(module)
    for name in ("validation", "test", "predict"):
        shown = [number for each, number in drawn if each == name]
        assert shown[-1] == 63 and len(shown) <= 20, name


class Other(TQDMProgressBar):
    """Another bar than tqdm's."""


def test_the_users_bar_and_profiler_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    own, profiler = TQDMProgressBar(refresh_rate=7), SimpleProfiler()
    for given in (own, [own]):
        assert make(callbacks=given, profiler=profiler).progress_bar_callback is own
    assert make(profiler=profiler).profiler is profiler
    assert make(enable_progress_bar=False).progress_bar_callback is None
    assert isinstance(make().profiler, trainer.NoProfiler) and isinstance(make().progress_bar_callback, bar.SparingBar)
    monkeypatch.setattr(callback_connector, "RichProgressBar", Other)
    monkeypatch.setattr(callback_connector, "TQDMProgressBar", Other)
    assert isinstance(make().progress_bar_callback, bar.SparingBar)  # whichever Lightning takes
    assert isinstance(make(callbacks=[Other()]).progress_bar_callback, Other)
    assert make(barebones=True, logger=None, enable_checkpointing=None).progress_bar_callback is None
