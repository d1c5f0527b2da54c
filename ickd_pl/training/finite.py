"""Finds the first loss term or gradient that is infinite or NaN, without waiting for the device in every step.

The flags lie on the device of the losses. On a CPU they are read in every step, which waits for nothing; on a GPU,
whoever may wait reads them (see :class:`ickd_pl.runs.FiniteGuard`), and until then no bad gradient changes a weight.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ickd_pl.errors import NonFiniteLoss

GRADIENT = "the gradient"


class BadStep(NamedTuple):
    """The first step in which something was infinite or NaN.

    Attributes:
        step: number of optimizer steps before it (Lightning's ``global_step``).
        names: what was; :data:`GRADIENT` only where all terms were finite.
    """

    step: int
    names: list[str]


class Finite:
    """Watches the loss terms and gradients of one module on this rank."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._alive = self._first = torch.zeros(0)
        self._gradient_first: Tensor | None = None

    @torch.no_grad()
    def terms(self, names: Sequence[str], values: Tensor, step: int | Tensor) -> Tensor | None:
        """Record which terms are finite.

        Args:
            names: of the terms.
            values: (len(names),) terms of this step.
            step: number of optimizer steps before this one; in captured steps on the device.

        Returns:
            A factor for the loss: NaN if a term is not finite, else 1, or None where that is known. NaN makes every
            gradient NaN, also where the term alone would not, and on all ranks once DDP has averaged the gradients.
        """
        if self._names != list(names):
            self._names = list(names)
            self._alive = torch.ones(len(names), dtype=torch.bool, device=values.device)
            self._first = torch.full((len(names),), -1, dtype=torch.int64, device=values.device)
        if is_finite_on_cpu(values):
            return None
        finite = values.isfinite()
        # In place, as captured steps write where they were recorded.
        self._first.copy_(torch.where(self._alive > finite, step, self._first))
        self._alive &= finite
        return 1 + (values - values).sum()

    @torch.no_grad()
    def gradients(self, parameters: Iterable[nn.Parameter], step: int | Tensor) -> bool:
        """Record whether the gradients are finite, and keep others from changing the weights.

        Args:
            parameters: with the gradients of this step, averaged over the ranks: so all ranks get the same answer.
            step: number of optimizer steps before this one; in captured steps on the device.

        Returns:
            Whether the gradients are known not to be finite. On a GPU this is not known yet, and False; bad gradients
            are then set to zero on the device.
        """
        gradients = [p.grad for p in parameters if p.grad is not None]
        if not gradients:
            return False
        if all(map(on_cpu, gradients)):
            if all(is_finite_on_cpu(gradient) for gradient in gradients):
                return False
            self._gradient_first = torch.as_tensor(step).clone()
            return True
        bad = _zero_if_bad(gradients)
        if self._gradient_first is None:
            self._gradient_first = torch.full((), -1, dtype=torch.int64, device=bad.device)
        first = self._gradient_first
        first.copy_(torch.where((first < 0) & bad, step, first))
        return False

    def bad(self) -> BadStep | None:
        """What first became infinite or NaN on this rank, if anything; waits for the device."""
        found: dict[str, int] = dict(zip(self._names, self._first.tolist(), strict=True)) if self._names else {}
        found = {name: step for name, step in found.items() if step >= 0}
        if not found and self._gradient_first is not None and int(self._gradient_first) >= 0:
            found = {GRADIENT: int(self._gradient_first)}
        if not found:
            return None
        step = min(found.values())
        names = [name for name, first in found.items() if first == step]
        # The sum of the terms is bad where one of them is.
        return BadStep(step, [name for name in names if name != "loss/total"] or names)


def _zero_if_bad(gradients: Sequence[Tensor]) -> Tensor:
    """(), bool: whether one of the gradients is not finite; then all become zero. A dozen kernels, however many."""
    views = [_flat(gradient) for gradient in gradients]
    flat = torch.cat(views)
    bad = ~flat.isfinite().all()
    flat.masked_fill_(bad, 0.0)
    parts = torch.split(flat, [len(view) for view in views])
    torch._foreach_copy_(views, list(parts))  # private: torch _foreach_copy_
    for view, gradient in zip(views, gradients, strict=True):
        if view.data_ptr() != gradient.data_ptr():
            gradient.masked_fill_(bad, 0.0)
    return bad


def _flat(gradient: Tensor) -> Tensor:
    """The values of a gradient, (N,), in the order of its memory: a view, unless the memory has gaps."""
    if gradient.dim() == 4 and gradient.is_contiguous(memory_format=torch.channels_last):
        return gradient.permute(0, 2, 3, 1).reshape(-1)
    return gradient.reshape(-1)


def on_cpu(values: Tensor) -> bool:
    """Whether the values lie in the host's memory, where looking at them waits for nothing."""
    return values.device.type == "cpu"


def is_finite_on_cpu(values: Tensor) -> bool:
    """Whether the values lie in the host's memory and are finite; NumPy takes a tenth of torch's time for a few."""
    if not on_cpu(values):
        return False
    values = values if values.layout == torch.strided else values.coalesce().values()
    values = values.float() if values.dtype == torch.bfloat16 else values
    return bool(np.isfinite(values.detach().numpy()).all())


def has_scaler(trainer: Any) -> bool:
    """Whether a gradient scaler is used: it makes infinite gradients on its way to a scale, and skips their steps."""
    return getattr(trainer.precision_plugin, "scaler", None) is not None


def first_of(found: Sequence[BadStep | None]) -> tuple[int, BadStep] | None:
    """The rank and the step to report, of what each rank found: the first step, and a term before a gradient."""
    bad = [(each.step, each.names == [GRADIENT], rank) for rank, each in enumerate(found) if each is not None]
    if not bad:
        return None
    rank = min(bad)[2]
    each = found[rank]
    assert each is not None
    return rank, each


def non_finite(found: BadStep, rank: int, world_size: int, epoch: int, what: str = "") -> NonFiniteLoss:
    """The error for a bad step.

    Args:
        found: the step.
        rank: the rank that has it.
        world_size: number of ranks.
        epoch: of the step, counted from 1.
        what: the member of a pack, or "".
    """
    where = f" on rank {rank}" if world_size > 1 else ""
    return NonFiniteLoss(
        f"{what}{', '.join(found.names)} became infinite or NaN in step {found.step} (epoch {epoch}){where}; no update "
        "was made with it, and no checkpoint contains it: lower model.lr or the method's weight",
        rank,
    )


def not_finite_in(state: Any, prefix: str = "", constants: bool = False) -> str | None:
    """The name of the first tensor in nested dictionaries and lists with a NaN or infinite value, if there is one.

    Waits once for each device.

    Args:
        state: nested dictionaries and lists.
        prefix: of the name.
        constants: accept -inf, which networks keep in constants, such as masks.
    """
    names, finite = [], []
    for name, value in _tensors_in(state, prefix):
        if value.is_floating_point() and value.layout == torch.strided and value.device.type != "meta":
            names.append(name)
            finite.append((value < torch.inf if constants else value.isfinite()).all())
    if len({flag.device for flag in finite}) == 1:
        finite = torch.stack(finite).tolist()
    return next((name for name, good in zip(names, finite, strict=True) if not good), None)


def _tensors_in(state: Any, prefix: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(state, Tensor):
        yield prefix, state
    items: Iterable[tuple[Any, Any]] = ()
    if isinstance(state, Mapping):
        items = state.items()
    elif isinstance(state, list | tuple):
        items = enumerate(state)
    for key, value in items:
        yield from _tensors_in(value, f"{prefix}.{key}" if prefix else str(key))
