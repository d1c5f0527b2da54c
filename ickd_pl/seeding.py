"""Random numbers by purpose: every draw is a function of named parts, none reads the global stream."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def derive_seed(*parts: object) -> int:
    """A 63-bit seed from named parts, such as ``derive_seed(seed, "student", "resnet8")``.

    The same parts give the same number on every machine and Python version; parts are compared by their text.
    """
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(*parts: object, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator of its own for one purpose, seeded by :func:`derive_seed`."""
    return torch.Generator(device=device).manual_seed(derive_seed(*parts))


@contextmanager
def seeded(*parts: object) -> Iterator[None]:
    """Run code that draws from torch's global CPU stream (module initialisers) under a seed of its own.

    The stream is put back afterwards, so what is built inside changes nothing outside.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(*parts))
        yield
