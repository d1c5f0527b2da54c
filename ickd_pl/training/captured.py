"""Captured steps: a whole training step on a GPU as one CUDA graph, without the time of launching its kernels.

Teacher, student, losses, backward pass, guards, clipping and SGD are recorded once and then replayed on batches that
are copied into the recorded ones. Lightning counts steps, epochs and schedules around it as ever. What a step reads
from Python is part of the key under which it was recorded (:func:`baked`), or lies on the device (the step's number):
where it changes, the next steps run eagerly, since memory such as SGD's momentum may be allocated in them, and then a
new graph is recorded. No step is a rehearsal, so nothing has to be undone.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from ickd_pl.checks import plain
from ickd_pl.strategies import LossStrategy
from ickd_pl.training.finite import has_scaler

# Steps that run eagerly before one is recorded: libraries choose their algorithms, and memory is allocated.
WARMUP = 3
# Shapes of batches that are recorded; others, if a loader yields many, run eagerly.
SHAPES = 2
# Hooks within the recorded step, which a replay would not call.
IN_STEP = ("on_before_zero_grad", "on_before_backward", "on_after_backward", "on_before_optimizer_step")

Step = Callable[[], Any]
T = TypeVar("T")


class Graphs(Protocol):
    """How a device records steps."""

    def eager(self, step: Step) -> Any:
        """Run a step as it would be recorded, and return its result."""

    def side_by_side(self, works: Sequence[Callable[[], T]]) -> list[T]:
        """The results of parts of a step that do not depend on each other, computed at once where that can be."""

    def record(self, step: Step) -> tuple[Any, Callable[[], None]]:
        """Record a step and run it once; its result, whose tensors each call of the returned function overwrites.

        Raises:
            RuntimeError: the step does what cannot be recorded, such as waiting for the device; it did not run.
        """


class CudaGraphs:
    """CUDA graphs, recorded on a stream of their own; parts of a step that can be side by side on further ones."""

    def __init__(self, device: torch.device) -> None:
        self._stream = self._new_stream(device)
        self._sides: list[torch.cuda.Stream] = []

    @staticmethod
    def _new_stream(device: torch.device) -> torch.cuda.Stream:
        return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def eager(self, step: Step) -> Any:
        # On the stream of the recording: autograd's nodes of the parameters must not belong to another one.
        current = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            result = step()
        current.wait_stream(self._stream)
        return result

    def side_by_side(self, works: Sequence[Callable[[], T]]) -> list[T]:
        # The first stays on the step's stream; every other has the same one in each step, as autograd needs it.
        # Memory goes back to the stream that it is from: what one work reads of another stream's is held by the caller.
        while len(self._sides) < len(works) - 1:
            self._sides.append(self._new_stream(self._stream.device))
        current, sides = torch.cuda.current_stream(self._stream.device), self._sides[: len(works) - 1]
        for side in sides:
            side.wait_stream(current)
        found = []
        for stream, work in zip((current, *sides), works, strict=True):
            with torch.cuda.stream(stream):
                found.append(work())
        for side in sides:
            current.wait_stream(side)
        return found

    def record(self, step: Step) -> tuple[Any, Callable[[], None]]:
        graph = torch.cuda.CUDAGraph()
        # Copies of weights in half precision belong to the recording in which they were made.
        torch.clear_autocast_cache()
        try:
            # Other threads, such as a loader's that pins memory, may use the device meanwhile.
            with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                result = step()
        finally:
            torch.clear_autocast_cache()
        graph.replay()
        return result, graph.replay


GRAPHS: dict[str, Callable[[torch.device], Graphs]] = {"cuda": CudaGraphs}
"""By type of device; on others steps run as ever."""


class _Recorded(NamedTuple):
    batch: tuple[Tensor, ...]
    result: Any
    replay: Callable[[], None]


class StepRunner:
    """Runs the steps of a fit, by replaying recorded ones where it can.

    Args:
        graphs: how they are recorded.
        device: of the batches.

    Attributes:
        number: (), int64, optimizer steps before the current one, on the device.
        batch: the batch to compute with instead of the loader's while a step is recorded, else None.
    """

    def __init__(self, graphs: Graphs, device: torch.device) -> None:
        self._graphs = graphs
        self.number = torch.zeros((), dtype=torch.int64, device=device)
        self.batch: tuple[Tensor, ...] | None = None
        self._key: Hashable = None
        self._seen: dict[Hashable, int] = {}
        self._recorded: dict[Hashable, _Recorded] = {}
        self._off = False

    def side_by_side(self, works: Sequence[Callable[[], T]]) -> list[T]:
        """The results of parts of a step that do not depend on each other; hold what they read until all have ended."""
        return self._graphs.side_by_side(works)

    def run(self, raw: Any, number: int, key: Hashable, step: Step) -> Any:
        """Run a step.

        Args:
            raw: the batch as the loader yields it, on the device.
            number: optimizer steps before this one.
            key: everything else that the step reads from Python.
            step: computes with :attr:`batch` where it is set, with ``raw`` otherwise.

        Returns:
            The step's result. Of a replayed step it is the tensors of the recorded one, with new values.
        """
        self.number.fill_(number)
        if key != self._key:
            self._key = key
            self._seen.clear()
            self._recorded.clear()
        tensors = isinstance(raw, list | tuple) and all(isinstance(value, Tensor) for value in raw)
        if self._off or not tensors:
            return self._graphs.eager(step)
        shapes = tuple((value.shape, value.stride(), value.dtype) for value in raw)
        if (kept := self._recorded.get(shapes)) is not None:
            for target, source in zip(kept.batch, raw, strict=True):
                target.copy_(source)
            kept.replay()
            return kept.result
        seen = self._seen[shapes] = self._seen.get(shapes, 0) + 1
        if seen <= WARMUP or len(self._recorded) >= SHAPES:
            return self._graphs.eager(step)
        return self._record(shapes, raw, step)

    def _record(self, shapes: Hashable, raw: Iterable[Tensor], step: Step) -> Any:
        self.batch = tuple(torch.empty_like(value).copy_(value) for value in raw)
        before = host_draws()
        try:
            result, replay = self._graphs.record(step)
        except RuntimeError as error:
            self._stop(" ".join(str(error).split())[:150])
        else:
            if host_draws() == before:
                self._recorded[shapes] = _Recorded(self.batch, result, replay)
            else:
                self._stop("it draws random numbers on the host, which a replay would repeat")
            return result
        finally:
            self.batch = None
        return self._graphs.eager(step)

    def _stop(self, why: str) -> None:
        self._off = True
        self._recorded.clear()
        rank_zero_warn(f"cuda_graphs: a step cannot be captured, so all run eagerly: {why}")


def host_draws() -> Hashable:
    """Changes when random numbers are drawn on the host."""
    words: dict[str, Any] = np.random.get_state(legacy=False)["state"]
    return random.getstate(), words["key"].tobytes(), words["pos"], torch.get_rng_state().numpy().tobytes()


def start(
    trainer: pl.Trainer, module: pl.LightningModule, strategies: Sequence[LossStrategy], wanted: bool
) -> StepRunner | None:
    """The runner for a fit with ``cuda_graphs``; None where its steps run as ever, with one line that says why."""
    device = trainer.strategy.root_device
    if device.type not in GRAPHS or not wanted:
        return None
    why = _why_eager(trainer, module, strategies)
    if why is not None:
        rank_zero_info(f"cuda_graphs: steps are not captured, but run eagerly, because {why}")
        return None
    return StepRunner(GRAPHS[device.type](device), device)


def _why_eager(trainer: pl.Trainer, module: pl.LightningModule, strategies: Sequence[LossStrategy]) -> str | None:
    if trainer.world_size > 1:
        return "there are several processes"
    if has_scaler(trainer):
        return "16-mixed waits for the device in every step: use bf16-mixed"
    for strategy in strategies:
        if not strategy.capturable:
            return f"{type(strategy).__name__} cannot be captured"
    for hook in IN_STEP[:-1]:
        if getattr(type(module), hook) is not getattr(pl.LightningModule, hook):
            return f"{type(module).__name__} has the hook {hook}"
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        hooks = [hook for hook in IN_STEP if getattr(type(callback), hook) is not getattr(pl.Callback, hook)]
        if hooks and not getattr(callback, "outside_steps", False):
            return f"{type(callback).__name__} has the hook {hooks[0]}"
    return None


def baked(module: Any) -> Hashable:
    """What a step of a :class:`~ickd_pl.DistillationModule` reads from Python, other than its batch and number."""
    methods = tuple(
        (strategy.weight_at(module.stages.epoch), repr([item for item in vars(strategy).items() if plain(item[1])]))
        for strategy in module.strategies
    )
    parts = repr([[item for item in vars(part).items() if plain(item[1])] for part in module.adapters.children()])
    return module.stages.first, module.ce_weight, methods, parts


def options(optimizer: Any) -> Hashable:
    """What a step reads of an optimizer's parameter groups."""
    groups = [{**group, "params": len(group["params"])} for group in optimizer.param_groups]
    return repr(groups)


def memory(module: torch.nn.Module) -> Hashable:
    """Modes of a module's parts, and where its tensors are; looked at once an epoch, for callbacks that change them."""
    tensors = [*module.parameters(), *module.buffers()]
    return (
        tuple(part.training for part in module.modules()),
        tuple((tensor.data_ptr(), tensor.requires_grad) for tensor in tensors),
    )
