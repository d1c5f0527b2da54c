"""The file that keeps the images of a source other than the official files: made once, by one process at a time."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from pathlib import Path

from pytorch_lightning.utilities import rank_zero_info

from ickd_pl.data.sources.facts import Facts
from ickd_pl.data.sources.npz import source_of, write_npz
from ickd_pl.data.sources.recognise import TITLES, Kind, read_source
from ickd_pl.data.sources.verify import verified
from ickd_pl.errors import printable
from ickd_pl.files import lock_where_possible


def prepare(path: Path, kind: Kind, source: Path, facts: Facts, key: str, anew: bool = False) -> None:
    """Read, verify and write what a source has, unless the file has it already.

    Args:
        path: of the file.
        kind: form of the source.
        source: file or folder.
        facts: of the data set.
        key: of the source, as :func:`~ickd_pl.data.sources.recognise.source_key` says it.
        anew: although the file says that it has it.

    Raises:
        UserError: a damaged source, or one that is not the data set; or the file cannot be written.
    """
    if not anew and source_of(path) == key:
        return
    shown = f"{printable(source)} ({TITLES[kind]})"
    rank_zero_info(f"reading {facts.title} from {shown}, once")
    splits = verified(read_source(kind, source, facts), facts, shown)
    waits = partial(rank_zero_info, f"waiting for another process that writes {printable(path)}")
    with lock_where_possible(path.with_name(f".{path.name}.lock"), waits) as alone:
        if alone:
            for left in path.parent.glob(f".{path.name}.*.tmp"):  # by a killed process
                with suppress(OSError):
                    left.unlink()
        write_npz(path, splits, facts, key)
