"""The whole training step, all but the loader, as one CUDA graph."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from gpu_checks.record import NotMeasured, Record, Values
from gpu_checks.steps import BASELINE, METHODS, SETTINGS, Setting, Step
from gpu_checks.timing import against, timed
from ickd_pl import Batch

PAIRS = ("resnet20_resnet8", "resnet32x4_resnet8x4")
LOW = next(setting for setting in SETTINGS if setting.name == "bf16-mixed, channels_last")


def run(record: Record) -> None:
    for method in METHODS:  # CRD is the last: a capture that fails may spoil what follows
        for pair in PAIRS:
            for setting in (BASELINE, LOW):
                part = partial(_captured, record, pair, method, setting)
                settings = {"pair": pair, "method": method, "setting": setting.name}
                record.check("CUDA graph", part, settings, {"loss_difference": 1e-2}, needs_cuda=True)


def _captured(record: Record, pair: str, method: str, setting: Setting) -> Values:
    """The step's time as a graph against without one, and how far their losses are apart on the same batch."""
    step, plain = Step(record, pair, method, setting), Step(record, pair, method, setting)
    try:
        replay = capture(step)
    except RuntimeError as error:
        # Nothing promises that every method can be captured.
        raise NotMeasured(f"cannot be captured: {' '.join(str(error).split())[:200]}") from error
    plain.module.load_state_dict(step.module.state_dict())
    plain.optimizer.load_state_dict(copy.deepcopy(step.optimizer.state_dict()))
    batch = plain.next_batch()
    with torch.autocast("cuda", setting.amp, enabled=setting.amp is not None), torch.no_grad():
        expected = plain.loss(batch).float()
    difference = float((replay(batch).float() - expected).abs() / expected.abs())
    eager = timed(record, plain, rounds=1)
    return against(eager, timed(record, lambda: replay(step.next_batch()))) | {"loss_difference": difference}


def capture(step: Step) -> Callable[[Batch], Tensor]:
    """Capture a step; what is returned trains on a batch and gives its loss, ()."""
    static = step.next_batch()

    def body() -> Tensor:
        step.optimizer.zero_grad(set_to_none=True)
        amp = step.setting.amp
        # Weights that autocast keeps in half would be those of the capture for ever.
        with torch.autocast("cuda", amp, enabled=amp is not None, cache_enabled=False):
            loss = step.loss(static)
        loss.backward()  # type: ignore[no-untyped-call]
        step.optimizer.step()
        return loss.detach()

    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(4):
            body()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    step.optimizer.zero_grad(set_to_none=True)
    with torch.cuda.graph(graph):
        loss = body()

    def replay(batch: Batch) -> Tensor:
        for target, source in zip(static, batch, strict=True):
            target.copy_(source)
        graph.replay()
        return loss

    return replay
