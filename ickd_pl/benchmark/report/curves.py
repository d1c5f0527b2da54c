"""Learning curves as SVG text: a small panel for each method, and one chart whose lines are labelled at their ends.

Thirteen lines in one chart of all epochs cannot be told apart, whatever their colours. In a panel the method's own line
lies before those of the others, in grey, on the same axes. The last epochs, where the lines lie apart, are one chart;
colours and dashes only help there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from ickd_pl.benchmark.report.charts import RIGHT, TOP, WIDTH, label, number, rule, svg, ticks

COLOURS = 8  # --c0 to --c7 of the page; further lines repeat them dashed
DASHES = ("", "6 3", "2 3")
LABELS, LETTERS, ROW = 132, 22, 13  # width of the labels, letters that fit there, and a label's height
PANEL_WIDTH, PANEL_HEIGHT = 200, 124


@dataclass(frozen=True)
class Line:
    """A method's curve: accuracy in percent by epoch."""

    name: str
    points: Mapping[int, float]
    number: int  # index among all lines of the page: a method has the same colour everywhere

    @property
    def style(self) -> Markup:
        dash = DASHES[self.number // COLOURS % len(DASHES)]
        return Markup('style="--c:var(--c{})"{}').format(
            self.number % COLOURS, Markup(' stroke-dasharray="{}"').format(dash) if dash else ""
        )

    @property
    def last(self) -> tuple[int, float]:
        """The last epoch, and the accuracy after it."""
        epoch = max(self.points)
        return epoch, self.points[epoch]

    def since(self, first: int) -> list[tuple[int, float]]:
        """The points from an epoch on, in order."""
        return sorted((epoch, value) for epoch, value in self.points.items() if epoch >= first)


@dataclass(frozen=True)
class Plane:
    """Axes: the area of a chart in its units, and the ranges of epochs and accuracies on it."""

    left: float
    right: float
    top: float
    bottom: float
    first: int
    last: int
    low: float
    high: float

    @classmethod
    def around(cls, points: Sequence[tuple[int, float]], area: tuple[float, float, float, float], first: int) -> Plane:
        """Axes that hold all points; ``area`` is left, right, top, bottom."""
        values = [value for _, value in points]
        margin = max(0.04 * (max(values) - min(values)), 0.05)
        low, high = max(0.0, min(values) - margin), min(100.0, max(values) + margin)
        return cls(*area, first, max(epoch for epoch, _ in points), low, high)

    def x(self, epoch: float) -> float:
        return self.left + (epoch - self.first) * (self.right - self.left) / max(1, self.last - self.first)

    def y(self, value: float) -> float:
        return self.top + (self.high - value) * (self.bottom - self.top) / max(1e-9, self.high - self.low)

    def grid(self, about: int) -> Markup:
        """Lines and numbers of both axes, at most ``about`` + 1 of each."""
        parts = []
        for v in ticks(self.low, self.high, about):
            y = number(self.y(v))
            parts.append(rule(self.left, self.right, y) + label(self.left - 6, y, f"{v:g}", "end", 4))
        for e in ticks(self.first, self.last, about):
            if e == int(e):
                parts.append(label(self.x(e), self.bottom, f"{e:g}", "middle", 16))
        return Markup("").join(parts)

    def drawn(self, points: Sequence[tuple[int, float]], name: str = "") -> Markup:
        """A line, or a circle around a single point."""
        named = Markup(' id="{}"').format(name) if name else ""
        if len(points) == 1:
            at = (number(self.x(points[0][0])), number(self.y(points[0][1])))
            return Markup('<circle{} cx="{}" cy="{}" r="3"/>').format(named, *at)
        listed = " ".join(f"{number(self.x(e))},{number(self.y(v))}" for e, v in points)
        return Markup('<polyline{} points="{}"/>').format(named, listed)


def panels(lines: Sequence[Line], where: str, reference: int | None) -> list[tuple[Line, Markup]]:
    """A panel for each line, on common axes.

    Args:
        lines: with at least one point each.
        where: begins the ids, which are unique on a page.
        reference: number of the line that is dotted in each panel; None: there is none.
    """
    if not lines:
        return []
    area = (30, PANEL_WIDTH - 6, 6, PANEL_HEIGHT - 20)
    plane = Plane.around([p for line in lines for p in line.since(1)], area, 1)
    ids = {line.number: f"{where}-line-{line.number}" for line in lines}
    drawn = Markup("").join(plane.drawn(line.since(1), ids[line.number]) for line in lines)
    # The lines are written once; the other panels use them.
    first = Markup('<g class="others"><g id="{}-lines">{}</g></g>').format(where, drawn)
    again = Markup('<use href="#{}-lines" class="others"/>').format(where)
    dotted = [ids[line.number] for line in lines if line.number == reference]
    grid, out = plane.grid(4), []
    for position, line in enumerate(lines):
        epoch, value = line.last
        title = f"{line.name}: {value:.2f} % after epoch {epoch}"
        own = [Markup('<use href="#{}" class="{}"/>').format(each, "dotted") for each in dotted]
        own.append(Markup('<use href="#{}" class="own"/>').format(ids[line.number]))
        parts = [svg(title, PANEL_WIDTH, PANEL_HEIGHT), grid, again if position else first, *own, Markup("</svg>")]
        out.append((line, Markup("").join(parts)))
    return out


def labelled_chart(lines: Sequence[Line], title: str, first: int) -> Markup:
    """The epochs from ``first`` on, each line with its name and last accuracy; empty if no line has a point there."""
    shown = sorted((line for line in lines if line.since(first)), key=lambda line: -line.last[1])
    if not shown:
        return Markup("")
    height = max(250, TOP + ROW * len(shown) + 40)
    area = (40, WIDTH - LABELS - RIGHT, TOP, height - 34)
    plane = Plane.around([p for line in shown for p in line.since(first)], area, first)
    parts = [svg(title, WIDTH, height), plane.grid(5)]
    parts.append(label((plane.left + plane.right) / 2, height - 2, "epoch", "middle"))
    places = spread([plane.y(line.last[1]) for line in shown], ROW, plane.top, plane.bottom)
    for line, place in zip(shown, places, strict=True):
        epoch, value = line.last
        name = line.name if len(line.name) + 6 <= LETTERS else f"{line.name[: LETTERS - 7]}…"
        lead = Markup('<path class="lead" d="M{} {}L{} {}"/>').format(
            *map(number, (plane.x(epoch) + 2, plane.y(value), plane.right + 12, place))
        )
        note = f"{line.name}: {value:.2f} % after epoch {epoch}"
        text = label(plane.right + 15, place, f"{value:.2f} {name}", "start", 4)
        parts.append(
            Markup('<g class="line" data-line="{}" {}><title>{}</title>{}{}{}</g>').format(
                line.number, line.style, note, plane.drawn(line.since(first)), lead, text
            )
        )
    return Markup("").join([*parts, Markup("</svg>")])


def spread(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move places, in ascending order, apart by at least ``gap``, and into ``low`` to ``high`` if they fit.

    Those that are too close are laid evenly around their middle.
    """
    groups: list[list[float]] = []  # [middle, number of places]
    for place in places:
        groups.append([min(max(place, low), high), 1])
        while len(groups) > 1 and groups[-1][0] - groups[-2][0] < gap * (groups[-1][1] + groups[-2][1]) / 2:
            (one, m), (two, n) = groups[-2:]
            half = gap * (m + n - 1) / 2
            groups[-2:] = [[max(low + half, min((one * m + two * n) / (m + n), high - half)), m + n]]
    return [middle + gap * (k - (count - 1) / 2) for middle, count in groups for k in range(int(count))]
