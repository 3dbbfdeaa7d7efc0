"""Charts as text: lines as inline SVG, bars as plain HTML.

Made by hand: matplotlib would be the operator's largest dependency, and pygal brings scripts and styles of
its own, for one kind of line chart. What is here follows the page's colours in light and dark, prints well,
and loads nothing. Bars are HTML, so that their text stays readable on a narrow screen.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

Point = tuple[float, float]

WIDTH, HEIGHT = 420, 200
LEFT, RIGHT, TOP, BOTTOM = 36, 10, 10, 34
MAX_POINTS = 500


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """One line of a chart. `style` is a CSS class that gives its colour."""

    label: str
    style: str
    points: Sequence[Point]


@dataclass(frozen=True, kw_only=True, slots=True)
class Scale:
    """The range of both axes; charts that share it can be compared."""

    x_max: float
    y_min: float
    y_max: float

    @staticmethod
    def of(lines: Sequence[Line]) -> "Scale":
        """The smallest range with some air that holds every point."""
        ys = [y for line in lines for _, y in line.points if math.isfinite(y)] or [0.0, 1.0]
        low, high = min(ys), max(ys)
        air = (high - low) * 0.08 or 0.5
        x_max = max((x for line in lines for x, _ in line.points), default=1.0)
        return Scale(x_max=max(x_max, 1.0), y_min=low - air, y_max=high + air)

    def place(self, point: Point) -> Point:
        """Where a point is drawn."""
        x = LEFT + (WIDTH - LEFT - RIGHT) * point[0] / self.x_max
        y = TOP + (HEIGHT - TOP - BOTTOM) * (self.y_max - point[1]) / (self.y_max - self.y_min)
        return round(x, 1), round(y, 1)


def ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers between `low` and `high`, about so many."""
    raw = (high - low) / max(about, 1)
    if raw <= 0:
        return [low]
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= raw * 0.999)
    first = math.ceil(low / step)
    return [round(i * step, 10) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def line_chart(title: str, lines: Sequence[Line], scale: Scale, x_label: str) -> str:
    """An SVG that follows its container's width."""
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title, quote=True)}">',
        f"<title>{escape(title)}</title>",
        *_axes(scale, x_label),
        *(_drawn(line, scale) for line in lines),
        "</svg>",
    ]
    return "\n".join(parts)


def _axes(scale: Scale, x_label: str) -> list[str]:
    parts = []
    for value in ticks(scale.y_min, scale.y_max, 6):
        _, y = scale.place((0, value))
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 3.5}" text-anchor="end">{value:g}</text>')
    for value in [v for v in ticks(0, scale.x_max, 5) if v == int(v)]:
        x, _ = scale.place((value, 0))
        parts.append(f'<text x="{x}" y="{HEIGHT - BOTTOM + 15}" text-anchor="middle">{value:g}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 3}" text-anchor="middle">{escape(x_label)}</text>')
    return parts


def _drawn(line: Line, scale: Scale) -> str:
    places = [scale.place(point) for point in thinned(line.points) if math.isfinite(point[1])]
    if not places:
        return ""
    path = " ".join(f"{x},{y}" for x, y in places)
    x, y = places[-1]
    return (
        f'<polyline class="line {line.style}" points="{path}"/>'
        f'<circle class="dot {line.style}" cx="{x}" cy="{y}" r="3"/>'
    )


def thinned(points: Sequence[Point]) -> Sequence[Point]:
    """So many points as can be told apart, the last one always among them."""
    every = -(-len(points) // MAX_POINTS)
    return points if every <= 1 else [*points[:-1:every], points[-1]]


def stacked_bar(label: str, parts: Mapping[str, float], full: float, note: str) -> str:
    """A row: a label, a bar whose parts are shares of `full`, and a note."""
    pieces = "".join(
        f'<i class="{css_class(kind)}" style="width:{100 * value / full:.3f}%" title="{escape(kind)}"></i>'
        for kind, value in parts.items()
        if full > 0 and value > 0
    )
    return (
        f'<div class="bar"><span class="name">{escape(label)}</span>'
        f'<span class="track">{pieces}</span><span class="note">{escape(note)}</span></div>'
    )


def legend(kinds: Mapping[str, str]) -> str:
    """Colour keys: kind -> what to call it."""
    keys = "".join(
        f'<li><i class="{css_class(kind)}"></i>{escape(text)}</li>' for kind, text in kinds.items()
    )
    return f'<ul class="legend">{keys}</ul>'


def css_class(kind: str) -> str:
    """A kind's CSS class; a name from elsewhere becomes a harmless one."""
    return "k-" + "".join(c for c in kind.lower() if c.isascii() and c.isalnum())
