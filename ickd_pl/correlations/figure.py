"""The figure of two networks' correlation matrices; needs matplotlib (extra ``demo``)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ickd_pl.correlations.measures import View, likeness_order, mean_absolute_difference
from ickd_pl.errors import UserError
from ickd_pl.files import replacing

FORMATS = ("png", "svg", "pdf")
VALUES, SIGNED, SIZE = "viridis", "RdBu_r", "Reds"  # for magnitudes, signed values, absolute differences
MINUS = chr(0x2212)
WIDTH, HEIGHT = 14.0, 8.3  # inches


@dataclass(frozen=True)
class Comparison:
    """What the figure shows.

    Attributes:
        teacher: view of the teacher.
        before: view of the student before distillation.
        after: view of the student after it.
        title: a line above all.
        names: titles of the teacher's panels and of the student's two.
        adapted: the student's channels are those of ICKD's adapter.
        note: a line below all; may be empty.
    """

    teacher: View
    before: View
    after: View
    title: str
    names: tuple[str, str, str]
    adapted: bool = False
    note: str = ""

    @property
    def students(self) -> tuple[View, View]:
        return self.before, self.after

    @property
    def channels_apart(self) -> str | None:
        """Why no difference of the channels' matrices is defined; None if it is."""
        teacher, students = len(self.teacher.channels), sorted({len(view.channels) for view in self.students})
        if students == [teacher]:
            return None
        return (
            f"teacher {teacher} channels, student {' and '.join(map(str, students))}, and no ICKD adapter between "
            "them: no difference is defined"
        )

    def channel_distances(self) -> tuple[float, float] | None:
        """Mean absolute difference to the teacher before and after; None if it is not defined."""
        if self.channels_apart:
            return None
        before, after = (mean_absolute_difference(v.channels, self.teacher.channels) for v in self.students)
        return before, after

    def logit_distances(self) -> tuple[float, float]:
        """Mean absolute difference to the teacher before and after."""
        before, after = (mean_absolute_difference(v.classes, self.teacher.classes) for v in self.students)
        return before, after


def check_picture(path: Path) -> None:
    """Raise :class:`UserError` if a picture cannot be written to a path: wrong suffix, a folder, no matplotlib."""
    if path.suffix.lower().lstrip(".") not in FORMATS:
        raise UserError(f"{path}: a picture ends in {', '.join(f'.{name}' for name in FORMATS)}")
    if path.is_dir():
        raise UserError(f"{path} is a folder: give the path of a file")
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise UserError("the picture is drawn with matplotlib: run pip install '.[demo]' in the clone") from None


def write_picture(shown: Comparison, path: Path) -> None:
    """Draw and write; the suffix gives the format. The same numbers give the same bytes.

    Raises:
        UserError: the path cannot be written.
    """
    import matplotlib

    kind = path.suffix.lower().lstrip(".")
    dates: dict[str, Any] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
    # The picture has dark text on white, whatever style the user has set.
    with matplotlib.rc_context({**matplotlib.rcParamsDefault, "svg.hashsalt": "ickd_pl", "font.size": 10}):
        figure = draw(shown)
        with replacing(path) as temporary:
            figure.savefig(temporary, format=kind, dpi=150, metadata=dates.get(kind))


def draw(shown: Comparison) -> Any:
    """The figure: a row of the channels, a row of the logits; teacher, before, after, and the two differences."""
    from matplotlib.figure import Figure  # without pyplot no display is needed, and no backend is chosen

    figure: Any = Figure(figsize=(WIDTH, HEIGHT), layout="constrained", facecolor="white")
    figure.get_layout_engine().set(w_pad=0.06, h_pad=0.06)
    figure.suptitle(shown.title, fontsize=13, fontweight="bold")
    if shown.note:
        figure.supxlabel(shown.note, fontsize=9, color="0.3")
    axes = figure.subplots(2, 5)
    _channels(figure, axes[0], shown)
    _logits(figure, axes[1], shown)
    for row, label in zip(axes, ("channels (similar ones together)", "classes"), strict=True):
        row[0].set_ylabel(label, fontsize=11)
    return figure


def _channels(figure: Any, axes: Any, shown: Comparison) -> None:
    """Inter-channel correlation. Channels have no natural order: the teacher's orders all panels."""
    views = (shown.teacher, *shown.students)
    order = likeness_order(shown.teacher.channels)
    apart = shown.channels_apart
    orders = [order if not apart else likeness_order(view.channels) for view in views]
    matrices = [view.channels[o][:, o] for view, o in zip(views, orders, strict=True)]
    through = " through ICKD's adapter" if shown.adapted else ""
    titles = [f"{name}\n{len(matrix)} channels" for name, matrix in zip(shown.names, matrices, strict=True)]
    titles[1:] = [title + through for title in titles[1:]]
    name = "inter-channel correlation, mean over images"
    distances = shown.channel_distances()
    if distances is None:  # no common scale for what is not compared: more channels make smaller entries
        _row(figure, axes[:1], matrices[:1], titles[:1], _value_scale(matrices[:1]), name)
        _row(figure, axes[1:3], matrices[1:], titles[1:], _value_scale(matrices[1:]), name)
        for panel in axes[3:]:
            panel.axis("off")
        axes[3].text(0, 0.5, str(apart).replace(", ", ",\n").replace(": ", ":\n"), va="center", fontsize=10)
        return
    _row(figure, axes[:3], matrices, titles, _value_scale(matrices), name)
    differences = [matrix - matrices[0] for matrix in matrices[1:]]
    bound = _far(torch.stack(differences))
    titles = _difference_titles(distances, f"{{}} {MINUS} teacher")
    _row(figure, axes[3:], differences, titles, (SIGNED, -bound, bound), "difference")


def _logits(figure: Any, axes: Any, shown: Comparison) -> None:
    """Correlation of the classes' logits; the classes keep their order, and the differences have no sign."""
    matrices = [view.classes for view in (shown.teacher, *shown.students)]
    titles = [f"{name}\n{len(matrix)} classes" for name, matrix in zip(shown.names, matrices, strict=True)]
    _row(figure, axes[:3], matrices, titles, (SIGNED, -1.0, 1.0), "correlation of class logits")
    differences = [(matrix - matrices[0]).abs() for matrix in matrices[1:]]
    titles = _difference_titles(shown.logit_distances(), f"|{{}} {MINUS} teacher|")
    _row(figure, axes[3:], differences, titles, (SIZE, 0.0, _far(torch.stack(differences))), "absolute difference")


def _difference_titles(distances: tuple[float, float], form: str) -> list[str]:
    return [
        f"{form.format(when)}\nmean |difference| {distance:.4f}"
        for when, distance in zip(("before", "after"), distances, strict=True)
    ]


def _row(
    figure: Any,
    axes: Any,
    matrices: Sequence[Tensor],
    titles: Sequence[str],
    scale: tuple[str, float, float],
    name: str,
) -> None:
    """Panels that share one colour scale and one bar below them."""
    colours, low, high = scale
    for panel, matrix, title in zip(axes, matrices, titles, strict=True):
        image = panel.imshow(matrix.numpy(), cmap=colours, vmin=low, vmax=high, interpolation="antialiased")
        panel.set_title(title, fontsize=10)
        panel.set_xticks([])
        panel.set_yticks([])
        if len(matrix) <= 20:
            panel.set_xticks(range(0, len(matrix), 1 if len(matrix) <= 10 else 5))
            panel.set_yticks(range(0, len(matrix), 1 if len(matrix) <= 10 else 5))
            panel.tick_params(labelsize=8, length=2)
    values = torch.cat([matrix.flatten() for matrix in matrices])
    below, above = bool((values < low).any()), bool((values > high).any())
    extend = {(True, True): "both", (True, False): "min", (False, True): "max", (False, False): "neither"}[below, above]
    bar = figure.colorbar(
        image,
        ax=list(axes),
        location="bottom",
        extend=extend,
        shrink=0.7,
        aspect=13 * len(axes),
        pad=0.04,
    )
    bar.set_label(name, fontsize=9)
    bar.ax.tick_params(labelsize=8)


def _value_scale(matrices: Sequence[Tensor]) -> tuple[str, float, float]:
    """One scale for all, from off-diagonal entries: the diagonal would leave the rest without contrast."""
    beside = torch.cat([matrix[~torch.eye(len(matrix), dtype=torch.bool)] for matrix in matrices])
    if len(beside) == 0:  # one channel
        return VALUES, 0.0, 1.0
    if float(beside.min()) < -0.05 * float(beside.max()):
        return SIGNED, -_far(beside), _far(beside)
    return VALUES, 0.0, _far(beside)


def _far(values: Tensor) -> float:
    """The 99.5th percentile of the absolute values, so that a few large ones do not hide the rest; never 0."""
    sizes = values.abs().flatten().sort().values  # torch.quantile takes no more than 16 million
    return max(float(sizes[int(0.995 * (len(sizes) - 1))]), 1e-6)
