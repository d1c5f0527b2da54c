"""Take the teacher out of every part of a checkpoint, and put it back where a callback expects it.

A callback that averages weights stores copies of the whole module. The teacher's tensors are recognised by their keys,
or because they are the teacher's own memory. Copies under keys that do not name the teacher stay.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn


def take_out(checkpoint: dict[str, Any], teacher: nn.Module | None) -> list[dict[str, Any]]:
    """Remove the teacher from all dictionaries in a checkpoint.

    Args:
        checkpoint: modified in place; the dictionaries within it, which callbacks may still use, are not.
        teacher: the teacher, if there is one.

    Returns:
        Where it was, as plain data for :func:`put_back`: ``path`` of a dictionary and its ``keys``, each with the
        teacher's key. Without the module's own state, where it always was.
    """
    state = _state(teacher)
    memory = {_place(value): key for key, value in state.items() if value.numel()}
    parts: list[dict[str, Any]] = []
    for key, value in checkpoint.items() if state else []:
        checkpoint[key] = _without(value, [key], state, memory, parts)
    checkpoint["state_dict"] = dict(checkpoint["state_dict"])  # of one type, whether there was a teacher or not
    return [part for part in parts if part["path"] != ["state_dict"]]


def put_back(checkpoint: dict[str, Any], parts: Any, teacher: nn.Module | None) -> None:
    """Undo :func:`take_out` in a loaded checkpoint; parts that do not match it are passed over.

    Args:
        checkpoint: modified in place.
        parts: from the file, so it may be anything.
        teacher: copies of its tensors are put back.
    """
    state = _state(teacher)
    for part in parts if isinstance(parts, list) else []:
        path, keys = (part.get("path"), part.get("keys")) if isinstance(part, dict) else (None, None)
        place: Any = checkpoint
        for step in path if isinstance(path, list) else []:
            inside = isinstance(place, dict) and type(step) in (str, int) and step in place
            inside = inside or (isinstance(place, list | tuple) and type(step) is int and 0 <= step < len(place))
            place = place[step] if inside else None
        if isinstance(place, dict) and isinstance(keys, dict):
            for key, own in keys.items():
                if type(own) is str and own in state:
                    place.setdefault(key, state[own].detach().clone())


def _state(teacher: nn.Module | None) -> dict[str, Tensor]:
    return {} if teacher is None else {k: v for k, v in teacher.state_dict().items() if isinstance(v, Tensor)}


def _without(
    value: Any, path: list[Any], teacher: Mapping[str, Tensor], memory: Mapping[Any, str], parts: list[dict[str, Any]]
) -> Any:
    if isinstance(value, dict):
        keys = {key: own for key, v in value.items() if (own := _own_key(key, v, teacher, memory)) is not None}
        if keys:
            parts.append({"path": path, "keys": keys})
        kept = {k: _without(v, [*path, k], teacher, memory, parts) for k, v in value.items() if k not in keys}
        same = not keys and all(kept[k] is v for k, v in value.items())
        return value if same else OrderedDict(kept) if isinstance(value, OrderedDict) else kept
    if type(value) in (list, tuple):
        items = [_without(v, [*path, i], teacher, memory, parts) for i, v in enumerate(value)]
        return value if all(a is b for a, b in zip(items, value, strict=True)) else type(value)(items)
    return value


def _own_key(key: Any, value: Any, teacher: Mapping[str, Tensor], memory: Mapping[Any, str]) -> str | None:
    """The teacher's key of a value that is the teacher's, else None."""
    if not isinstance(value, Tensor):
        return None
    names = key.split(".") if isinstance(key, str) else []
    for position, name in enumerate(names):
        if name in ("student", "adapters"):  # a part of the student may have the name "teacher" too
            break
        own = ".".join(names[position + 1 :])
        if name == "teacher" and own in teacher and teacher[own].shape == value.shape:
            return own
    return memory.get(_place(value)) if value.numel() else None


def _place(value: Tensor) -> tuple[Any, ...]:
    """Where a tensor's numbers are; a tensor without memory is at a place of its own."""
    try:
        address, stride = value.data_ptr(), value.stride()
    except (RuntimeError, NotImplementedError):
        address, stride = 0, ()
    return (value.device, address, value.shape, stride) if address else (id(value),)
