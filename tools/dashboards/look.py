"""Draws every panel of a dashboard with what a Prometheus answers now, as one HTML file, for who has no Grafana.

    python -m tools.dashboards.look http://127.0.0.1:9090 consortium --output page.html [--minutes 60]
        [--set consortium=pilot]

Variables that are not set are the first value that there is. Plain: no zoom, no refresh; a stack of areas is drawn as
lines, each from zero, and a limit is drawn only where lines come near it.
"""

import argparse
import json
import math
import re
import time
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import Any

from tools.dashboards.__main__ import BOARDS, FOLDER

from pcmoe_operator.report.charts import Line, Scale, line_chart
from pcmoe_operator.report.html import table
from pcmoe_operator.report.style import STYLE

SECONDS = 10.0
"""Deadline of one query."""
POINTS = 200
"""Of a line."""
NEAR = 2
"""A limit is drawn that is at most so many times what the lines reach."""
COLOURS = ("blue", "amber", "teal", "violet", "rose", "grey", "good", "bad")
STEPS: Mapping[str, Sequence[tuple[float, str]]] = {
    "bytes": ((2.0**40, "TiB"), (2.0**30, "GiB"), (2.0**20, "MiB"), (2.0**10, "KiB"), (1, "B")),
    "Bps": ((1e9, "GB/s"), (1e6, "MB/s"), (1e3, "kB/s"), (1, "B/s")),
    "s": ((86400, "days"), (3600, "h"), (60, "min"), (1, "s"), (1e-3, "ms")),
    "percentunit": ((0.01, "%"),),
    "cps": ((1, "per second"),),
    "ops": ((1, "per second"),),
    "reqps": ((1, "per second"),),
    "watt": ((1, "W"),),
    "celsius": ((1, "°C"),),
}
EXTRA = "\n".join(
    [
        ".charts .bar { grid-template-columns: 8em 1fr 9em; } .charts .bar .name { display: block; "
        "overflow-wrap: anywhere; font-size: .8rem; }",
        ".line.limit { stroke: var(--bad); stroke-dasharray: 5 4; } .dot.limit { display: none; } "
        ".key.limit { background: var(--bad); }",
        *(
            f".line.c{index} {{ stroke: var(--{name}); }} .dot.c{index}, .key.c{index} {{ fill: var(--{name});"
            f" background: var(--{name}); }}"
            for index, name in enumerate(COLOURS)
        ),
    ]
)
CSS_NAMES = {"light-blue": "lightblue", "super-light-blue": "powderblue", "text": "grey"}
"""Of Grafana's colours, where they are called otherwise."""
Series = tuple[str, list[tuple[float, float]]]
"""Legend, and values by seconds since the epoch."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """A Prometheus, and the span of time that is looked at."""

    url: str
    minutes: float
    rate: str = "2m"
    """What stands for Grafana's `$__rate_interval`: four times as long as from one scrape to the next."""

    def ask(self, what: str, **parameters: str) -> Any:
        """The `data` of an answer of its HTTP API."""
        url = f"{self.url.rstrip('/')}/api/v1/{what}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=SECONDS) as answer:
            return json.load(answer)["data"]

    def over_time(self, expression: str, legend: str) -> list[Series]:
        """Every series of an expression, from then until now."""
        end = time.time()
        step = max(1.0, 60 * self.minutes / POINTS)
        span = {"start": f"{end - 60 * self.minutes:.0f}", "end": f"{end:.0f}", "step": f"{step:.0f}"}
        return [
            (_legend(legend, each["metric"]), [(at, float(value)) for at, value in each["values"]])
            for each in self.ask("query_range", query=expression, **span)["result"]
        ]

    def now(self, expression: str, legend: str) -> list[Series]:
        """Every series that an expression has now."""
        return [
            (_legend(legend, each["metric"]), [(each["value"][0], float(each["value"][1]))])
            for each in self.ask("query", query=expression)["result"]
        ]


def page(source: Source, board: str, given: Mapping[str, str]) -> str:
    """A dashboard as HTML; `given`: values of its variables."""
    made = json.loads((FOLDER / f"{board}.json").read_text())
    chosen = choose(source, made, given)
    parts = [f"<h1>{escape(made['title'])}</h1>", f"<p class='soft'>{escape(made['description'])}</p>"]
    parts.append(
        f"<p class='note'>{escape(', '.join(f'{key}: {value}' for key, value in chosen.items() if key[0] != '_'))}</p>"
    )
    opened = False
    for panel in made["panels"]:
        if panel["type"] == "row":
            parts.append(f"{'</div>' if opened else ''}<h2>{escape(panel['title'])}</h2><div class='charts'>")
            opened = True
        else:
            parts.append(_panel(source, panel, chosen))
    body = "".join([*parts, "</div>"])
    head = f"<meta charset='utf-8'><title>{escape(made['title'])}</title><style>{STYLE}{EXTRA}</style>"
    return f"<!doctype html><html lang='en'><head>{head}</head><body><main>{body}</main></body></html>\n"


def choose(source: Source, made: Mapping[str, Any], given: Mapping[str, str]) -> dict[str, str]:
    """The value of every variable: the given one, all, or the first that there is; empty if there is none."""
    chosen = {"__rate_interval": source.rate}
    for variable in made["templating"]["list"]:
        name = variable["name"]
        if variable["type"] != "query":
            continue
        if name in given or variable.get("includeAll"):
            chosen[name] = given.get(name, variable.get("allValue", ".*"))
            continue
        metric, label = re.fullmatch(
            r"label_values\((.*),(\w+)\)", variable["query"]["query"], re.DOTALL
        ).groups()  # type: ignore[union-attr]
        there = source.ask("query", query=f"count by ({label}) ({filled(metric, chosen)})")["result"]
        chosen[name] = min((each["metric"].get(label, "") for each in there), default="")
    return chosen


def filled(expression: str, chosen: Mapping[str, str]) -> str:
    """An expression with the values of its variables."""
    return re.sub(r"\$(\w+)", lambda found: chosen[found[1]], expression)


def _panel(source: Source, panel: Mapping[str, Any], chosen: Mapping[str, str]) -> str:
    asked = source.now if panel["type"] == "table" else source.over_time
    series = [
        each
        for target in panel["targets"]
        for each in asked(filled(target["expr"], chosen), target["legendFormat"])
    ]
    draw = {"stat": _numbers, "state-timeline": _bands, "table": _rows}.get(panel["type"], _lines)
    nothing = panel["fieldConfig"]["defaults"].get("noValue", "no data")
    inner = draw(panel, series, source) if series else f"<p class='soft empty'>{escape(nothing)}</p>"
    title, text = escape(panel["title"]), escape(panel["description"])
    return (
        f"<figure class='card'><h3>{title}</h3>{inner}<figcaption class='note'>{text}</figcaption></figure>"
    )


def _lines(panel: Mapping[str, Any], series: Sequence[Series], source: Source) -> str:
    begin = time.time() - 60 * source.minutes
    top = max(
        (abs(value) for _, points in series for _, value in points if math.isfinite(value)), default=0.0
    )
    factor, unit = _step(panel, top)
    lines = [
        Line(
            label=name,
            style=f"c{number % len(COLOURS)}",
            points=[((at - begin) / 60, value / factor) for at, value in points],
        )
        for number, (name, points) in enumerate(series)
    ]
    lines += [
        Line(
            label=f"limit {_number(limit / factor)}",
            style="limit",
            points=[(0, limit / factor), (source.minutes, limit / factor)],
        )
        for limit in _limits(panel)
        if limit <= NEAR * top
    ]
    keys = "".join(f"<li><i class='key {line.style}'></i>{escape(_key(line))}</li>" for line in lines)
    return (
        line_chart(panel["title"], lines, _scale(panel, lines), "minutes", unit)
        + f"<ul class='legend'>{keys}</ul>"
    )


def _key(line: Line) -> str:
    """A line's name and its newest value; a limit's name has it already."""
    return line.label if line.style == "limit" else f"{line.label} {_number(line.points[-1][1])}"


def _limits(panel: Mapping[str, Any]) -> list[float]:
    steps = panel["fieldConfig"]["defaults"].get("thresholds", {}).get("steps", ())
    return [step["value"] for step in steps if step["value"] is not None]


def _scale(panel: Mapping[str, Any], lines: Sequence[Line]) -> Scale:
    """With the axis beginning where the panel has it begin."""
    found, least = Scale.of(lines), panel["fieldConfig"]["defaults"].get("min")
    return found if least is None else replace(found, y_min=least, y_max=max(found.y_max, least + 0.01))


def _numbers(panel: Mapping[str, Any], series: Sequence[Series], _source: Source) -> str:
    names = _names(panel)
    legend_only = panel["options"].get("textMode") == "name"
    tiles = []
    for legend, points in series:
        value = points[-1][1]
        factor, unit = _step(panel, abs(value))
        text = names.get(f"{value:g}", ("", ""))[0] or f"{_number(value / factor)} {unit}"
        text, legend = (legend, "") if legend_only else (text, legend)
        tiles.append(f"<p class='tile'><b>{escape(text)}</b><span>{escape(legend)}</span></p>")
    return f"<div class='grid2'>{''.join(tiles)}</div>"


def _bands(panel: Mapping[str, Any], series: Sequence[Series], _source: Source) -> str:
    names = _names(panel)
    rows = []
    for legend, points in series:
        pieces = "".join(
            f"<i style='width:{100 / len(points):.3f}%;background:{colour}' title='{escape(word)}'></i>"
            for _, value in points
            for word, colour in [names.get(f"{value:g}", (f"{value:g}", "grey"))]
        )
        word = names.get(f"{points[-1][1]:g}", (f"{points[-1][1]:g}", ""))[0]
        rows.append(
            f"<div class='bar'><span class='name'>{escape(legend)}</span>"
            f"<span class='track lane'>{pieces}</span><span class='note'>now: {escape(word)}</span></div>"
        )
    return "".join(rows)


def _rows(_panel: Mapping[str, Any], series: Sequence[Series], _source: Source) -> str:
    return table(["now"], [[legend] for legend, _ in series])


def _names(panel: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Words and CSS colours by value."""
    mappings = panel["fieldConfig"]["defaults"].get("mappings", ())
    return {
        value: (
            result["text"],
            result["color"]
            .replace("super-light-", "light")
            .replace("light-", "light")
            .replace("text", "grey"),
        )
        for mapping in mappings
        for value, result in mapping["options"].items()
    }


def _step(panel: Mapping[str, Any], value: float) -> tuple[float, str]:
    """What to divide by, and what it is called then."""
    steps = STEPS.get(panel["fieldConfig"]["defaults"]["unit"], ((1, ""),))
    if value == 0:
        return next((step for step in steps if step[0] == 1), steps[0])
    return next(((factor, name) for factor, name in steps if value >= factor), steps[-1])


def _number(value: float) -> str:
    """A number for people."""
    return f"{value:,.0f}" if 1000 <= abs(value) < math.inf else f"{value:.4g}"


def _legend(pattern: str, labels: Mapping[str, str]) -> str:
    """A legend with its labels filled in; all labels where there is no legend."""
    if not pattern:
        return ", ".join(f"{key}: {value}" for key, value in sorted(labels.items()) if key != "__name__")
    return re.sub(r"\{\{(\w+)\}\}", lambda found: labels.get(found[1], ""), pattern)


def main() -> None:
    """The command line above."""
    parser = argparse.ArgumentParser(prog="python -m tools.dashboards.look", description=__doc__)
    parser.add_argument("url", help="of a Prometheus")
    parser.add_argument("board", choices=[name.removesuffix(".json") for name in BOARDS])
    parser.add_argument("--output", type=Path, required=True, help="the HTML file")
    parser.add_argument("--minutes", type=float, default=60, help="how far back (default 60)")
    parser.add_argument("--rate", default="2m", help="over which rates are taken (default 2m)")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a variable's value")
    given = parser.parse_args()
    chosen = dict(each.split("=", 1) for each in given.set)
    given.output.write_text(
        page(Source(url=given.url, minutes=given.minutes, rate=given.rate), given.board, chosen)
    )


if __name__ == "__main__":
    main()
