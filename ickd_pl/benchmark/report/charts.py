"""Parts of charts as SVG text, and the chart of intervals.

Made by hand: a few polylines need no plotting library, and text, colours and line marks stay the page's own, so that
they follow its light or dark scheme. Coordinates are rounded to a tenth of a unit, which keeps the page small.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

WIDTH = 440
RIGHT, TOP, BOTTOM = 10, 10, 34
MINUS = chr(0x2212)  # as wide as the plus


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers from ``low`` to ``high``, at most ``about`` + 1 of them."""
    span = max(high - low, 1e-9)
    power = 10.0 ** math.floor(math.log10(span / about))
    step = next((m * power for m in (1, 2, 5, 10) if span / (m * power) <= about), 10 * power)
    first = math.ceil(low / step - 1e-9)
    return [round(k * step, 10) for k in range(first, math.floor(high / step + 1e-9) + 1)]


@dataclass(frozen=True)
class Bar:
    """A difference with an interval; ``strong`` if it is significant."""

    name: str
    middle: float
    low: float | None
    high: float | None
    strong: bool
    note: str


def interval_chart(bars: Sequence[Bar], title: str) -> Markup:
    """Differences in percentage points, one per row, around a line at zero."""
    if not bars:
        return Markup("")
    values = [v for b in bars for v in (b.middle, b.low, b.high) if v is not None]
    low, high = min(0.0, *values), max(0.0, *values)
    margin = max(0.05 * (high - low), 0.05)
    low, high, left, row = low - margin, high + margin, 118, 18
    height = TOP + row * len(bars) + BOTTOM
    scale = (WIDTH - left - RIGHT) / (high - low)

    def x(value: float) -> str:
        return number(left + (value - low) * scale)

    floor = TOP + row * len(bars)
    parts = [svg(title, WIDTH, height)]
    for v in ticks(low, high, 6):
        kind = "zero" if v == 0 else "grid"
        parts.append(Markup('<path class="{}" d="M{} {}V{}"/>').format(kind, x(v), TOP, floor))
        parts.append(label(x(v), floor, f"{v:+g}".replace("-", MINUS) if v else "0", "middle", 16))
    parts.append(label((left + WIDTH - RIGHT) / 2, height - 2, "percentage points", "middle"))
    for k, b in enumerate(bars):
        middle = number(TOP + row * (k + 0.5))
        parts.append(label(left - 8, middle, b.name if len(b.name) <= 18 else f"{b.name[:17]}…", "end", 4))
        whisker = Markup("")
        if b.low is not None and b.high is not None:
            whisker = Markup('<path d="M{} {}H{}"/>').format(x(b.low), middle, x(b.high))
        parts.append(
            Markup('<g class="bar{}"><title>{}</title>{}<circle cx="{}" cy="{}" r="3.5"/></g>').format(
                " strong" if b.strong else "", b.note, whisker, x(b.middle), middle
            )
        )
    return Markup("").join([*parts, Markup("</svg>")])


def svg(title: str, width: float, height: float) -> Markup:
    """The start of a chart."""
    head = Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">')
    return head.format(number(width), number(height), title)


def rule(start: float, end: float, y: str) -> Markup:
    """A line of the grid."""
    return Markup('<path class="grid" d="M{} {}H{}"/>').format(number(start), y, number(end))


def label(x: float | str, y: float | str, text: str, anchor: str, down: float = 0) -> Markup:
    """A text, ``down`` units below its point."""
    shift = Markup(' dy="{}"').format(number(down)) if down else ""
    place = [v if isinstance(v, str) else number(v) for v in (x, y)]
    return Markup('<text x="{}" y="{}"{} text-anchor="{}">{}</text>').format(*place, shift, anchor, escape(text))


def number(value: float) -> str:
    """A coordinate."""
    return f"{value:.1f}".removesuffix(".0")
