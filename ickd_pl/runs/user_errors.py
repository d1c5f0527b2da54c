"""Which exceptions are a user's mistake: those of this package, and those of the libraries that a run is built with."""

from __future__ import annotations

import linecache
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from pytorch_lightning.utilities.exceptions import MisconfigurationException  # type: ignore[attr-defined]

from ickd_pl.errors import LostRank, UserError

# Libraries whose own checks of the settings are reported as they are, and those that may call each other on the way.
CHECKING = {"pytorch_lightning", "lightning_fabric", "lightning_utilities", "jsonargparse"}
BETWEEN = CHECKING | {"ickd_pl", "torch", "torchmetrics"} | set(sys.stdlib_module_names)
# What they raise for settings. Others, such as an AttributeError, are faults of code.
OF_SETTINGS = (MisconfigurationException, ValueError, TypeError, RuntimeError, ImportError, NotImplementedError)


def user_error(error: BaseException) -> UserError | None:
    """The :class:`UserError` behind an exception, or a new one for what a library says about the user's settings.

    Returns:
        None for a fault in code, the user's own included: its traceback is what helps.
    """
    chain = list(_chain(error))
    for each in chain:
        if isinstance(each, UserError):
            return each
    roots, raised = _way(chain[-1].__traceback__)
    if roots and roots[-1] not in BETWEEN and not raised:
        return None  # a fault in the user's own code, also where a library reports it
    if text := next((text for each in chain if (text := _refusal(each))), None):
        return UserError(text)
    return _data_error(error)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An exception and what it was raised from, outermost first."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _refusal(error: BaseException) -> str | None:
    """What a library says about the user's settings, in one line."""
    # private: torch message "Error(s) in loading state_dict"
    if isinstance(error, RuntimeError) and str(error).startswith("Error(s) in loading state_dict"):
        return f"the checkpoint is of another network or of other methods: {_line(error)[:300]} ..."
    roots, raised = _way(error.__traceback__)
    if not isinstance(error, OF_SETTINGS) or not roots or roots[-1] not in CHECKING or not raised:
        return None
    inside = next(position for position, root in enumerate(roots) if root in CHECKING | {"ickd_pl"})
    if set(roots[inside:]) - BETWEEN:
        return None  # the user's own code is on the way: it may be at fault
    # private: lightning message "You provided multiple dataloaders"
    if found := re.match(r"You provided multiple `(\w+)`, but no `dataloader_idx`", str(error)):
        return (
            f"{found[1]}: expected one loader, got several: join their data sets, or evaluate each in a run of its own"
        )
    # private: lightning message "You requested to check"
    if found := re.match(r"You requested to check ([\d.]+) of the `(\w+)` but [\d.]+ \* (\d+)", str(error)):
        return (
            f"trainer: {found[1]} of the {found[3]} batches of {found[2]} is less than one batch: give "
            "overfit_batches, or the limit of batches, as a number of batches, such as 1"
        )
    return of_constructor(str(error)) or (None if roots[-1] == "jsonargparse" else f"trainer: {_line(error)}")


def of_constructor(message: str) -> str | None:
    """What a class's constructor said, which jsonargparse reports with its class or buries among other lines."""
    # private: jsonargparse message "Problem with given class_path"
    if found := re.search(r"Problem with given class_path '(?:[\w.]*\.)?(\w+)':(.*)", message, re.DOTALL):
        text = re.split(r"\n\s*- |\nGiven value type", found[2])[0]
        return f"{found[1]}: {' '.join(text.split())}"
    # private: jsonargparse message "none of the union's types"
    if "Does not validate against any of the Union subtypes" not in message:
        return None
    texts = [text for text in re.findall(r"^\s+- (.*)", message, re.MULTILINE) if not text.startswith("Expected a")]
    return texts[0] if texts else None


def _way(trace: TracebackType | None) -> tuple[list[str], bool]:
    """The packages of the frames of a traceback, outermost first, and whether the last frame raises it on purpose."""
    roots, raised = [], False
    while trace is not None:
        frame = trace.tb_frame
        roots.append(str(frame.f_globals.get("__name__", "")).partition(".")[0])
        line = linecache.getline(frame.f_code.co_filename, trace.tb_lineno)
        raised = line.lstrip().startswith("raise ")
        trace = trace.tb_next
    return roots, raised


def _data_error(error: BaseException) -> UserError | None:
    """What torch says about other ranks, and about later batches than the first, whose values nobody looks at."""
    text = str(error)
    # gloo names its source files; a test of runs/test_stop.py kills a rank to see it
    if type(error).__name__ in ("DistBackendError", "DistNetworkError") or "gloo/transport" in text:
        return LostRank(
            "another process of this run has ended, which says why, or was killed; the same command goes on from the "
            "last checkpoint"
        )
    # private: torch message "Expected more than 1 value per channel"
    if isinstance(error, ValueError) and text.startswith("Expected more than 1 value per channel when training"):
        return UserError(
            "a training batch has a single image, of which batch norm cannot take the variance where a map is 1x1: "
            "let the loader drop the last batch, or choose another batch size"
        )
    if _is_of_collation(error):
        return UserError(
            f"the loader cannot join what its data set gives to a batch ({text.strip().splitlines()[-1][:200]}): give "
            "each image as a tensor (3, H, W), all of one size, for example by ToTensor and Resize of torchvision"
        )
    # private: torch message "Target is out of bounds"
    if isinstance(error, IndexError) and (found := re.fullmatch(r"Target (-?\d+) is out of bounds\.", text)):
        return UserError(
            f"a training batch has the label {found[1]}, which is none of the classes: labels count from 0"
        )
    return None


def _is_of_collation(error: BaseException) -> bool:
    """Whether torch's default collation refuses a batch, in this process or in a worker, which sends its traceback."""
    # private: torch module torch.utils.data._utils.collate
    trace, module = error.__traceback__, "torch.utils.data._utils.collate"
    while trace is not None:
        if trace.tb_frame.f_globals.get("__name__") == module:
            return True
        trace = trace.tb_next
    return str(Path(*module.split("."))) in str(error)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())
