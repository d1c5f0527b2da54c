"""The C library's allocator: it keeps the memory of a step for the next one."""

from __future__ import annotations

import ctypes
import os
import platform
import sys

import torch

# Of <malloc.h>.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_NEVER, _LARGEST = -1, 1 << 30
# The largest that glibc before 2.35 accepts: half a heap.
_LARGEST_BEFORE = 32 << 20
_OF_THE_USER = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_", "MALLOC_TOP_PAD_")


def keep_memory(device: torch.device) -> bool:
    """Let the allocator keep freed memory, for this process's work on a CPU, from now on.

    All tensors of a training step are freed before the next one. By default glibc then gives their memory back to the
    kernel, which has to clear it page by page when the next step asks for it. No result depends on it.

    Nothing changes on other devices and systems, or where the environment sets glibc's thresholds (see mallopt(3));
    another allocator, such as a preloaded jemalloc, is not affected.

    Args:
        device: of the run.

    Returns:
        Whether freed memory is kept.
    """
    if device.type != "cpu" or not sys.platform.startswith("linux") or platform.libc_ver()[0] != "glibc":
        return False
    if any(name in os.environ for name in _OF_THE_USER) or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    # The first: a threshold for trimming ends glibc's own adjustment of the other one, which would stay at 128 kB.
    kept = mallopt(_M_MMAP_THRESHOLD, _LARGEST) or mallopt(_M_MMAP_THRESHOLD, _LARGEST_BEFORE)
    return bool(kept and mallopt(_M_TRIM_THRESHOLD, _NEVER))
