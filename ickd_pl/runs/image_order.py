"""Runs that an older version began on images in another order, which nothing can continue."""

from __future__ import annotations

from typing import Any

from ickd_pl.errors import UserError, printable


def refuse_other_order(old: tuple[Any, dict[str, Any]], new: tuple[Any, dict[str, Any]], where: object) -> None:
    """Refuse to continue a run whose data set has its images in another order now.

    Args:
        old: configuration (None if unknown) and inputs of the run, as stored.
        new: those that are asked for.
        where: the run's folder or checkpoint.

    Raises:
        UserError: in one line.
    """
    now = new[1].get("image_order")
    if now is None or old[1].get("image_order") == now:
        return
    before, data = _data(old[0]), _data(new[0])
    if before and data and before != data:  # which is what differs
        return
    raise UserError(
        f"{printable(where)} is of a run that an older version of ickd_pl began, with the images of "
        f"{data.rpartition('.')[2] or 'its data set'} in another order, so it cannot be continued: start it anew in "
        "another folder, or move this one away"
    )


def _data(config: Any) -> str:
    data = config.get("data") if isinstance(config, dict) else None
    return str(data.get("class_path")) if isinstance(data, dict) else ""
