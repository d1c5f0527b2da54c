"""What stock Lightning lacks for runs that one can stop, continue and compare."""

from __future__ import annotations

from ickd_pl.runs.run_folder import EpochRecord, RunFolder

__all__ = ["EpochRecord", "RunFolder"]
