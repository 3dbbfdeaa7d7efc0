"""Charts as text: lines and dots as inline SVG, bars as plain HTML.

Made by hand: matplotlib would be the operator's largest dependency, and pygal brings scripts and styles of
its own, for two kinds of chart. What is here follows the page's colours in light and dark, prints well,
and loads nothing. Bars are HTML, so that their text stays readable on a narrow screen.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

Point = tuple[float, float]

WIDTH, HEIGHT = 420, 206
LEFT, RIGHT, TOP, BOTTOM = 36, 10, 10, 40
DOT_EDGE = 16
"""Room for half a mark and half a number at the ends of a dot chart."""
CAPTION, CAPTION_LINE = 22, 16
"""Height of what stands above an axis, and how far below its top it is written."""
ROW, SERIES = 21, 11
"""Heights of a row's label and of each series below it."""
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


def line_chart(title: str, lines: Sequence[Line], scale: Scale, x_label: str, y_label: str = "") -> str:
    """An SVG that follows its container's width. `y_label` stands above the axis."""
    above = CAPTION if y_label else 0
    parts = [
        *_begun(title, -above, HEIGHT + above),
        f'<text x="0" y="{CAPTION_LINE - above}">{escape(y_label)}</text>' if y_label else "",
        *_axes(scale, x_label),
        *(_drawn(line, scale) for line in lines),
        "</svg>",
    ]
    return "\n".join(parts)


def _begun(title: str, top: float, height: float) -> list[str]:
    return [
        f'<svg viewBox="0 {top:g} {WIDTH} {height:g}" role="img" aria-label="{escape(title, quote=True)}">',
        f"<title>{escape(title)}</title>",
    ]


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
    parts.append(f'<text x="{middle}" y="{HEIGHT - 4}" text-anchor="middle">{escape(x_label)}</text>')
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Dot:
    """A value with an interval, where there is one. `style` is one of `MARKS`."""

    value: float | None
    style: str
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class DotRow:
    """What is compared in one row; each dot on a line of its own, so that none hides another."""

    label: str
    dots: Sequence[Dot]
    quiet: bool = False
    """Drawn faintly: it would be so, and is not."""


MARKS: Mapping[str, str] = {
    "m-together": "circle",
    "m-alone-shard": "square",
    "m-alone-all": "diamond",
    "m-union": "ring",
    "m-formula": "circle",
    "m-probe": "square",
    "m-probeUpperBound": "ring",
    "m-withoutGradients": "triangle",
    "m-mostFrequent": "diamond",
    "m-unigram": "stick",
}
"""A shape for each kind, so that they can be told apart without colours."""


def dot_chart(title: str, rows: Sequence[DotRow], x_label: str, scale: Scale | None = None) -> str:
    """An SVG with a row for each that is compared, values along one axis; without a scale, the smallest that fits."""
    heights = [ROW + SERIES * len(row.dots) for row in rows]
    floor = sum(heights)
    points = [(0.0, v) for row in rows for d in row.dots for v in (d.value, d.low, d.high) if v is not None]
    own = Scale.of([Line(label="", style="", points=points)])
    low, high = (own.y_min, own.y_max) if scale is None else (0.0, scale.x_max)

    def across(value: float) -> float:
        return round(DOT_EDGE + (WIDTH - 2 * DOT_EDGE) * (value - low) / (high - low), 1)

    parts = _begun(title, 0, floor + BOTTOM)
    for value in ticks(low, high, 6):
        x = across(value)
        parts.append(f'<line class="grid" x1="{x}" x2="{x}" y1="0" y2="{floor}"/>')
        parts.append(f'<text x="{x}" y="{floor + 15}" text-anchor="middle">{value:g}</text>')
    parts.append(
        f'<text x="{WIDTH / 2}" y="{floor + BOTTOM - 4}" text-anchor="middle">{escape(x_label)}</text>'
    )
    top = 0
    for row, height in zip(rows, heights, strict=True):
        faint = ' class="quiet"' if row.quiet else ""
        parts.append(f'<g{faint}><text class="row" x="0" y="{top + CAPTION_LINE}">{escape(row.label)}</text>')
        for number, dot in enumerate(row.dots):
            parts.append(_dot(dot, top + ROW + SERIES * (number + 0.5), across))
        parts.append("</g>")
        top += height
    return "\n".join([*parts, "</svg>"])


def _dot(dot: Dot, y: float, across: Callable[[float], float]) -> str:
    if dot.value is None or not math.isfinite(dot.value):
        return ""
    interval = ""
    if dot.low is not None and dot.high is not None:
        ends = f'x1="{across(dot.low)}" x2="{across(dot.high)}" y1="{y}" y2="{y}"'
        interval = f'<line class="interval {dot.style}" {ends}/>'
    return interval + _mark(dot.style, across(dot.value), y)


def _mark(style: str, x: float, y: float) -> str:
    """A shape around a point, ten wide at most."""
    shape = MARKS.get(style, "circle")
    if shape in ("circle", "ring"):
        return f'<circle class="mark-{shape} {style}" cx="{x:g}" cy="{y:g}" r="4"/>'
    corners = {
        "square": ((-4, -4), (4, -4), (4, 4), (-4, 4)),
        "diamond": ((0, -5), (5, 0), (0, 5), (-5, 0)),
        "triangle": ((0, -5), (4.5, 4), (-4.5, 4)),
        "stick": ((-1.2, -5), (1.2, -5), (1.2, 5), (-1.2, 5)),
    }[shape]
    points = " ".join(f"{x + dx:g},{y + dy:g}" for dx, dy in corners)
    return f'<polygon class="mark-{shape} {style}" points="{points}"/>'


def marks(kinds: Mapping[str, str]) -> str:
    """Keys of a dot chart: style -> what to call it."""
    keys = "".join(
        f'<li><svg class="key" viewBox="-6 -6 12 12" aria-hidden="true">{_mark(style, 0, 0)}</svg>{escape(text)}</li>'
        for style, text in kinds.items()
    )
    return f'<ul class="legend">{keys}</ul>'


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
