"""Line and interval charts as SVG text.

Made by hand: a few polylines need no plotting library, and text, colours and line marks stay the page's own, so that
they follow its light or dark scheme. Coordinates are rounded to a tenth of a unit, which keeps the page small.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

WIDTH, HEIGHT = 460, 270
LEFT, RIGHT, TOP, BOTTOM = 40, 10, 10, 34
COLOURS = 8  # --c0 to --c7 of the page; further lines repeat them dashed
DASHES = ("", "6 3", "2 3")
MINUS = chr(0x2212)  # as wide as the plus


@dataclass(frozen=True)
class Line:
    """A method's curve, with its colour and dashes."""

    name: str
    points: Mapping[int, float]
    number: int  # index among all lines of the page: a method has the same colour everywhere

    @property
    def style(self) -> Markup:
        dash = DASHES[self.number // COLOURS % len(DASHES)]
        return Markup('stroke="var(--c{})"{}').format(
            self.number % COLOURS, Markup(' stroke-dasharray="{}"').format(dash) if dash else ""
        )


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers from ``low`` to ``high``, at most ``about`` + 1 of them."""
    span = max(high - low, 1e-9)
    power = 10.0 ** math.floor(math.log10(span / about))
    step = next((m * power for m in (1, 2, 5, 10) if span / (m * power) <= about), 10 * power)
    first = math.ceil(low / step - 1e-9)
    return [round(k * step, 10) for k in range(first, math.floor(high / step + 1e-9) + 1)]


def line_chart(lines: Sequence[Line], title: str, first_epoch: int = 1) -> Markup:
    """Accuracy in percent over epochs from ``first_epoch`` on; an empty string if no line has a point there."""
    shown = [(line, sorted((e, v) for e, v in line.points.items() if e >= first_epoch)) for line in lines]
    points = [p for _, ps in shown for p in ps]
    if not points:
        return Markup("")
    last = max(e for e, _ in points)
    low, high = min(v for _, v in points), max(v for _, v in points)
    margin = max(0.04 * (high - low), 0.05)
    low, high = max(0.0, low - margin), min(100.0, high + margin)
    scale_x = (WIDTH - LEFT - RIGHT) / max(1, last - first_epoch)
    scale_y = (HEIGHT - TOP - BOTTOM) / max(1e-9, high - low)

    def x(epoch: float) -> str:
        return _number(LEFT + (epoch - first_epoch) * scale_x)

    def y(value: float) -> str:
        return _number(TOP + (high - value) * scale_y)

    parts = [_open(title, HEIGHT)]
    for v in ticks(low, high):
        parts.append(_rule(LEFT, WIDTH - RIGHT, y(v)) + _text(LEFT - 6, y(v), _tick(v), "end", 4))
    for e in ticks(first_epoch, last, 6):
        if e == int(e):
            parts.append(_text(x(e), HEIGHT - BOTTOM, _tick(e), "middle", 16))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 2, "epoch", "middle"))
    for line, ps in shown:
        if not ps:
            continue
        drawn = Markup('<polyline points="{}"/>').format(" ".join(f"{x(e)},{y(v)}" for e, v in ps))
        if len(ps) == 1:
            drawn = Markup('<circle cx="{}" cy="{}" r="3"/>').format(x(ps[0][0]), y(ps[0][1]))
        note = f"{line.name}: {ps[-1][1]:.2f} % after epoch {ps[-1][0]}"
        parts.append(
            Markup('<g class="line" data-line="{}" {}><title>{}</title>{}</g>').format(
                line.number, line.style, note, drawn
            )
        )
    return Markup("").join([*parts, Markup("</svg>")])


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
        return _number(left + (value - low) * scale)

    floor = TOP + row * len(bars)
    parts = [_open(title, height)]
    for v in ticks(low, high, 6):
        kind = "zero" if v == 0 else "grid"
        parts.append(Markup('<path class="{}" d="M{} {}V{}"/>').format(kind, x(v), TOP, floor))
        parts.append(_text(x(v), floor, f"{v:+g}".replace("-", MINUS) if v else "0", "middle", 16))
    parts.append(_text((left + WIDTH - RIGHT) / 2, height - 2, "percentage points", "middle"))
    for k, b in enumerate(bars):
        middle = _number(TOP + row * (k + 0.5))
        parts.append(_text(left - 8, middle, b.name if len(b.name) <= 18 else f"{b.name[:17]}…", "end", 4))
        whisker = Markup("")
        if b.low is not None and b.high is not None:
            whisker = Markup('<path d="M{} {}H{}"/>').format(x(b.low), middle, x(b.high))
        parts.append(
            Markup('<g class="bar{}"><title>{}</title>{}<circle cx="{}" cy="{}" r="3.5"/></g>').format(
                " strong" if b.strong else "", b.note, whisker, x(b.middle), middle
            )
        )
    return Markup("").join([*parts, Markup("</svg>")])


def _open(title: str, height: float) -> Markup:
    return Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">').format(WIDTH, _number(height), title)


def _rule(start: float, end: float, y: str) -> Markup:
    return Markup('<path class="grid" d="M{} {}H{}"/>').format(_number(start), y, _number(end))


def _text(x: float | str, y: float | str, text: str, anchor: str, down: float = 0) -> Markup:
    shift = Markup(' dy="{}"').format(_number(down)) if down else ""
    place = [v if isinstance(v, str) else _number(v) for v in (x, y)]
    return Markup('<text x="{}" y="{}"{} text-anchor="{}">{}</text>').format(*place, shift, anchor, escape(text))


def _number(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _tick(value: float) -> str:
    return f"{value:g}"
