"""The engineer's section: where the time went, who sent whom how much, memory as measured, what happened."""

from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from pcmoe_operator.report import words
from pcmoe_operator.report.charts import legend, stacked_bar
from pcmoe_operator.report.figures import Figures
from pcmoe_operator.report.html import (
    UNKNOWN,
    Html,
    card,
    known,
    part,
    shown,
    shown_size,
    table,
    thousands,
    tiles,
)
from pcmoe_operator.report.page_events import events_of
from pcmoe_operator.units import duration, size

WAITING = ("wait", "exchange_wait")
"""As old and new nodes call it."""


def work(figures: Figures) -> str:
    """The section."""
    return "\n".join(
        (
            _tiles(figures),
            _time(figures),
            _replies(figures),
            _traffic(figures),
            _memory(figures),
            _machines(figures),
            events_of(figures),
        )
    )


def _tiles(figures: Figures) -> str:
    phases = [phase for own in figures["time"].values() for phase in own.items()]
    waited = sum(seconds for phase, seconds in phases if phase in WAITING)
    spent, per_token = sum(seconds for _, seconds in phases), figures["traffic"]["bytesPerTrainedToken"]
    rate = thousands(round(figures["tokens"] / figures["seconds"])) if figures["seconds"] else "–"
    return tiles(
        [
            (
                f"{100 * waited / spent:.0f} %" if spent else "–",
                "of the time waiting for partners and the network",
            ),
            (rate, "tokens a second, all organisations together"),
            (shown_size(per_token), "sent for each trained token, evaluation included"),
            (str(figures["stepsSkipped"]), "steps skipped"),
        ]
    )


def _time(figures: Figures) -> str:
    totals = {name: sum(phases.values()) for name, phases in figures["time"].items()}
    full = max(totals.values(), default=0.0)
    kinds = {phase for phases in figures["time"].values() for phase in phases}
    order = list(known(kinds, words.PHASES))
    shared = "" if figures["standing"] else f" {words.SHARED}"
    bars = "".join(
        stacked_bar(name, {p: phases[p] for p in order if p in phases}, full, duration(totals[name]))
        for name, phases in figures["time"].items()
    )
    heads = ["seconds", *(words.PHASES.get(phase, phase) for phase in order), "in all"]
    rows = [
        [name, *(shown(phases.get(phase), "{:.1f}") for phase in order), f"{totals[name]:.1f}"]
        for name, phases in figures["time"].items()
    ]
    return part(
        "By phase",
        words.TIME + shared,
        card(bars + legend(known(kinds, words.PHASES))),
        card(table(heads, rows), "scroll", "after", "narrow") if rows else "",
    )


def _replies(figures: Figures) -> str:
    """Who is slow shows as a dark column."""
    waits, names = figures["traffic"]["replyMilliseconds"], figures["participants"]
    if not any(value is not None for row in waits.values() for value in row.values()):
        return ""
    rows = _pairs(names, waits, "{:,.1f} ms".format)
    return part(
        "How soon partners answered", words.REPLIES, card(table(["asks / answers", *names], rows), "scroll")
    )


def _traffic(figures: Figures) -> str:
    traffic, names = figures["traffic"], figures["participants"]
    rows = [
        [*row, _rows(traffic["hiddenRowsSent"][row[0]])] for row in _pairs(names, traffic["bytesSent"], size)
    ]
    per_token = traffic["bytesPerTrainedToken"]
    average = f" That is {size(per_token)} per trained token, evaluation included." if per_token else ""
    counted = "" if len(figures["loss"]) == len(names) else f" {words.RECEIVED}"
    return part(
        "Who sent whom how much",
        words.TRAFFIC + counted + average,
        card(table(["from / to", *names, "rows of hidden states"], rows), "scroll"),
    )


def _rows(counts: Mapping[str, int | None]) -> str:
    values = [count for count in counts.values() if count is not None]
    return thousands(sum(values)) if len(values) == len(counts) else UNKNOWN


def _pairs(names: Sequence[str], values: Figures, told: Callable[[Any], str]) -> list[list[str]]:
    """A row for each of whom something is known about each other one, the darker the more."""
    most = max((value for row in values.values() for value in row.values() if value), default=0)

    def cell(value: float | None) -> str:
        if value is None:
            return UNKNOWN
        strength = 0.22 * value / most if most else 0.0
        style = f"background:rgba(var(--heat),{strength:.3f})"
        return Html(f'<span class="heat" style="{style}">{escape(told(value))}</span>')

    return [[name, *("" if peer == name else cell(values[name][peer]) for peer in names)] for name in names]


def _memory(figures: Figures) -> str:
    rows = [
        [
            name,
            size(own["total"]),
            size(own["peakAboveBaseline"]),
            size(own["baselineRss"]),
            shown_size(own["gpuPeak"]),
        ]
        for name, own in figures["memory"]["participants"].items()
        if own
    ]
    heads = ["participant", "tensors, exact", "peak above import", "after import", "GPU peak"]
    return part("Memory as measured", words.MEMORY_MEASURED, card(table(heads, rows), "scroll"))


def _machines(figures: Figures) -> str:
    """GPU-hours and what it took to store a round, where anything of it is known."""
    hours = figures["gpuHours"]
    with_gpus = bool(hours["trained"] or hours["held"])
    rows = [
        [name, *_hours(own, with_gpus), *_stored(figures["machines"].get(name, {}))]
        for name, own in hours["participants"].items()
    ]
    if all(set(row[1:]) == {"–"} for row in rows):
        return ""
    if with_gpus and len(rows) > 1:
        rows.append(["all together", *_hours(hours, with_gpus), "", "", ""])
    heads = [
        "participant",
        *(words.GPU_HOURS if with_gpus else ()),
        "stored round",
        "to store it",
        "sent out",
    ]
    told = f"{words.MACHINES_GPU} {words.MACHINES}" if with_gpus else words.MACHINES
    return part("What it took", told, card(table(heads, rows), "scroll"))


def _hours(own: Figures, with_gpus: bool) -> list[str]:
    return [shown(own[kind], "{:.2f}") for kind in ("trained", "held")] if with_gpus else []


def _stored(machine: Figures) -> list[str]:
    share = shown(machine.get("remoteTokenShare"), "{:.1%}").replace("%", " %")
    return [
        shown_size(machine.get("checkpointBytes")),
        shown(machine.get("checkpointSeconds"), "{:.2f} s"),
        share,
    ]
