"""Stands in for CUDA graphs on a CPU: records the tensor operations of a step and runs them again, without Python."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


def memory(value: Tensor) -> int:
    return value.untyped_storage().data_ptr()


class Tape(TorchDispatchMode):
    """Runs operations and notes them; refuses to read a value, as a recording CUDA graph does."""

    def __init__(self) -> None:
        super().__init__()
        self.noted: list[tuple[Any, Any, Any, Any]] = []
        self._before: list[tuple[Tensor, Tensor]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("operation not permitted when stream is capturing")
        if func._schema.is_mutable or "batch_norm" in str(func):  # which writes without saying so
            self._before += [(tensor, tensor.clone()) for tensor in tensors((args, kwargs))]
        out = func(*args, **kwargs or {})
        self.noted.append((func, args, kwargs or {}, out))
        return out

    @torch.no_grad()
    def undo(self) -> None:
        """What CUDA records, it does not run."""
        for tensor, before in reversed(self._before):
            tensor.copy_(before)

    @torch.no_grad()
    def replay(self) -> None:
        """Run the operations on the same tensors; what they made goes where it was."""
        for func, args, kwargs, out in self.noted:
            given = {memory(tensor) for tensor in tensors((args, kwargs))}
            for old, new in zip(tensors(out), tensors(func(*args, **kwargs)), strict=True):
                if memory(old) not in given:  # neither in place nor a view
                    old.copy_(new)


class TapeGraphs:
    """In place of :class:`ickd_pl.training.captured.CudaGraphs`; notes what it did."""

    def __init__(self, device: torch.device) -> None:
        self.done: list[str] = []
        self.most = 0  # parts of a step that were given at once
        ALL.append(self)

    def eager(self, step: Callable[[], Any]) -> Any:
        self.done.append("eager")
        return step()

    def side_by_side(self, works: Sequence[Callable[[], Any]]) -> list[Any]:
        self.most = max(self.most, len(works))
        return [work() for work in works]

    def record(self, step: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
        self.done.append("record")
        tape = Tape()
        try:
            with tape:
                result = step()
        except RuntimeError:
            tape.undo()
            raise

        def replay() -> None:
            self.done.append("replay")
            tape.replay()

        return result, replay


ALL: list[TapeGraphs] = []
