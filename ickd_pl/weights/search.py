"""Find a network's weights in a file: in which dictionary they are, and what stands before their keys.

An entry is a dictionary of the file and a prefix of its keys. It fits a network if, behind the prefix, all the
network's keys are there with its shapes and no other weights. Parallel, compiled and averaged networks, other projects'
modules and dictionaries are found because they fit, not because their names are known.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ickd_pl.errors import UserError
from ickd_pl.weights.bounds import containers

StateDict = dict[str, Tensor]

WHOLE = "."
"""Name of the entry whose keys are at the top of the file and have no prefix."""
# Entries whose use is not worth a message.
_PLAIN = (WHOLE, "model", "state_dict")
# What torch inserts into the keys of a part that it wraps, in the middle as well: the network is the same.
_WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
# No network's key has more letters or parts; it bounds the number of prefixes of a hostile one.
_MOST_LETTERS, _MOST_PARTS = 1000, 40
# More entries than this are not compared with each other.
_MOST_COMPARED = 8


@dataclass(frozen=True)
class Entry:
    """An entry of a file, compared with a network.

    Attributes:
        name: the keys that lead to it and the prefix, joined by dots; ``WHOLE`` without any.
        tensors: by the network's keys, as far as the file has them.
        missing: the network's other keys; old versions of torch had no num_batches_tracked, it is never missing.
        unexpected: other weights behind the prefix, by the rest of their keys.
        clash: keys whose shapes differ.
    """

    name: str
    tensors: StateDict = field(repr=False)
    missing: list[str]
    unexpected: StateDict = field(repr=False)
    clash: list[str]

    @property
    def fits(self) -> bool:
        return not (self.missing or self.unexpected or self.clash)

    @property
    def is_plain(self) -> bool:
        """Whether it is where weights are usually stored."""
        return self.name in _PLAIN

    @property
    def state(self) -> StateDict:
        """All weights behind the prefix."""
        return {**self.tensors, **self.unexpected}


def entries(content: dict[str, Any], own: Mapping[str, Tensor], named: str | None = None) -> list[Entry]:
    """The entries of a file that fit a network; if none does, the one that is closest, alone.

    Of a checkpoint of this project only the student counts, unless the entry is named; the methods' trained parts
    never do.

    Args:
        content: of the file.
        own: the network's state.
        named: the name, or a part of it, that the entry must have.
    """
    wanted = _Wanted(own)
    fits: list[Entry] = []
    closest: tuple[_Dictionary, str] | None = None
    most = 0
    for path, tensors in _mappings(content):
        groups = wanted.groups(tensors)
        part = _Dictionary(path, tensors, {p: g for p, g in groups.items() if _counts(content, path, p, named)}, wanted)
        for prefix, group in part.groups.items():
            if prefix in part.complete and (entry := part.entry(prefix)).fits:
                fits.append(entry)
            elif len(group) > most:
                closest, most = (part, prefix), len(group)
    if fits:
        return fits
    if closest is not None and 4 * most >= len(wanted.required):
        return [closest[0].entry(closest[1])]
    state = weights_in(content)
    return (
        [Entry(WHOLE, {}, [wanted.keys[key] for key in wanted.keys if key in wanted.required], state, [])]
        if state
        else []
    )


def choose(found: list[Entry], name: str, path: Path, named: str | None) -> Entry:
    """The one entry to use, of those that fit. Entries with the same numbers count as one.

    Args:
        found: at least one, all of which fit.
        name: the network's name, for the message.
        path: of the file.
        named: what the user wrote behind ``#``.

    Raises:
        UserError: none or several; with their names.
    """
    exact = [entry for entry in found if entry.name == named]
    of_name = found if named is None else exact or [entry for entry in found if _is_named(entry.name, named)]
    if not of_name:
        raise UserError(f"{path} has no entry {named} that fits {name}: give {_options(path, found)}")
    distinct: list[Entry] = []
    for entry in sorted(of_name, key=lambda entry: not entry.is_plain):
        if len(distinct) >= _MOST_COMPARED or not any(_same(entry, other) for other in distinct):
            distinct.append(entry)
    if len({entry.name for entry in distinct}) < len(distinct):  # keys with dots of their own
        raise UserError(
            f"{path} holds different weights of {name} under {shown(distinct[0].name)}, with dots in some keys of its "
            "dictionaries: save the one that is meant in a file of its own"
        )
    if len(distinct) > 1:
        raise UserError(
            f"{path} holds weights of {name} {len(distinct)} times, and they differ: give {_options(path, distinct)}"
        )
    return distinct[0]


def weights_in(content: dict[str, Any]) -> StateDict:
    """The largest set of weights in a file, without the prefix that all its keys have; empty if there are none."""
    best: StateDict = {}
    for path, tensors in _mappings(content):
        prefix = "student." if is_checkpoint(content) else ""
        if not prefix or path == ("state_dict",):
            state = {key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)}
            best = state if len(state) > len(best) else best
    parts = [key.split(".")[:-1] for key, value in best.items() if value.dim() > 0]
    shared = 0
    while parts and all(len(part) > shared and part[shared] == parts[0][shared] for part in parts):
        shared += 1
    prefix = "".join(f"{part}." for part in parts[0][:shared]) if parts else ""
    return {_bare(key[len(prefix) :]): value for key, value in best.items() if key.startswith(prefix)}


def shown(key: str) -> str:
    """A key of a file for a message: one line, not long."""
    return key if key.isprintable() and len(key) <= 100 else f"{ascii(key)[:100]}..."


class _Wanted:
    """The keys of the network that is looked for."""

    def __init__(self, own: Mapping[str, Tensor]) -> None:
        self.own = own
        bare = {_bare(key): key for key in own}
        # The network itself may be wrapped; where two of its keys would become one, its keys are taken as they are.
        self.keys = bare if len(bare) == len(own) else {key: key for key in own}
        self.required = {key for key in self.keys if not key.endswith("num_batches_tracked")}
        self.longest = max((key.count(".") for key in self.keys), default=0) + 1

    def groups(self, tensors: StateDict) -> dict[str, dict[str, str]]:
        """For each prefix in a dictionary, the file's keys by the network's bare ones."""
        found: dict[str, dict[str, str]] = {}
        for raw in tensors:
            parts = raw.split(".")
            rest, number = "", 0
            for start in range(len(parts) - 1, -1, -1):
                if parts[start] in _WRAPPERS:  # part of the prefix, or in the middle
                    continue
                rest, number = (f"{parts[start]}.{rest}" if rest else parts[start]), number + 1
                if number > self.longest:
                    break
                if rest in self.keys:
                    group = found.setdefault("".join(f"{part}." for part in parts[:start]), {})
                    # The shorter of two is the one that is wrapped less.
                    group[rest] = min(raw, group.get(rest, raw), key=len)
        return found


class _Dictionary:
    """One dictionary of a file: its tensors, and by prefix those that have a key of the network."""

    def __init__(
        self, path: tuple[str, ...], tensors: StateDict, groups: dict[str, dict[str, str]], wanted: _Wanted
    ) -> None:
        self.path, self.tensors, self.groups, self.wanted = path, tensors, groups, wanted
        self.complete = {
            p for p, group in groups.items() if wanted.required <= group.keys() and self._has_shapes(group)
        }
        self.sorted = sorted(tensors) if groups else []
        # Of several prefixes the longest is the last.
        self.claimed = {raw: prefix for prefix in sorted(self.complete) for raw in groups[prefix].values()}

    def _has_shapes(self, group: dict[str, str]) -> bool:
        own = self.wanted.own
        return all(self.tensors[raw].shape == own[self.wanted.keys[key]].shape for key, raw in group.items())

    def entry(self, prefix: str) -> Entry:
        """Everything behind the prefix, except entries within it that fit, compared with the network."""
        group, keys, own = self.groups[prefix], self.wanted.keys, self.wanted.own
        used, unexpected = set(group.values()), {}
        kinds = {self.tensors[raw].dtype for raw in used}
        for position in range(bisect_left(self.sorted, prefix), len(self.sorted)):
            raw = self.sorted[position]
            if not raw.startswith(prefix):
                break
            nested = len(self.claimed.get(raw, "")) > len(prefix)
            if raw not in used and not nested and not _is_counter(raw, self.tensors[raw], kinds):
                unexpected[_bare(raw[len(prefix) :])] = self.tensors[raw]
        state = {keys[key]: self.tensors[raw] for key, raw in group.items()}
        return Entry(
            _name(self.path, prefix),
            state,
            [keys[key] for key in keys if key in self.wanted.required and key not in group],
            unexpected,
            [key for key in own if key in state and state[key].shape != own[key].shape],
        )


def _mappings(content: dict[str, Any]) -> Iterator[tuple[tuple[str, ...], StateDict]]:
    """The tensors of each dictionary in a file; other values beside them are passed over."""
    for path, container in containers(content):
        if isinstance(container, dict):
            tensors = {
                key: value
                for key, value in container.items()
                if isinstance(value, Tensor) and type(key) is str and _may_be_of_a_network(key)
            }
            if tensors:
                yield path, tensors


def _may_be_of_a_network(key: str) -> bool:
    return len(key) <= _MOST_LETTERS and key.count(".") < _MOST_PARTS


def is_checkpoint(content: Mapping[str, Any]) -> bool:
    """Whether a file's content is meant to be a checkpoint of this project; it may still be damaged."""
    return "hyper_parameters" in content and "ickd_pl" in content


def _counts(content: Mapping[str, Any], path: tuple[str, ...], prefix: str, named: str | None) -> bool:
    if not is_checkpoint(content):
        return True
    if named is None:
        return path == ("state_dict",) and prefix.startswith("student.")
    return "adapters" not in prefix.split(".")


def _is_counter(key: str, value: Tensor, kinds: Iterable[torch.dtype]) -> bool:
    """Whether a value beside the weights counts something, as profilers and averages do.

    A single number that is whole, or of another precision than the weights. One of the same precision may be a weight.
    """
    return value.numel() <= 1 and (not value.is_floating_point() or value.dtype not in kinds or key.endswith(_COUNTERS))


# Of profilers, in a network that was changed to another precision with them.
_COUNTERS = ("total_ops", "total_params")


def _bare(key: str) -> str:
    return ".".join(part for part in key.split(".") if part not in _WRAPPERS)


def _name(path: tuple[str, ...], prefix: str) -> str:
    return ".".join([*path, *prefix.split(".")[:-1]]) or WHOLE


def _is_named(name: str, part: str) -> bool:
    """Whether ``part`` is one of the name's words, or several in a row."""
    return f".{part.strip('.')}." in f".{name}."


def _options(path: Path, found: list[Entry]) -> str:
    names = [shown(entry.name) for entry in found]
    options = " or ".join(f"{path}#{name}" for name in names[:5])
    return options if len(names) <= 5 else f"{options} or {len(names) - 5} more"


def _same(one: Entry, other: Entry) -> bool:
    """Whether two entries hold the same numbers."""
    return all(_equal(value, other.tensors[key]) for key, value in one.tensors.items() if key in other.tensors)


def _equal(a: Tensor, b: Tensor) -> bool:
    if a is b:
        return True
    if any(value.layout != torch.strided or value.device.type != "cpu" for value in (a, b)) or a.dtype != b.dtype:
        return False
    return bool(torch.equal(a, b))
