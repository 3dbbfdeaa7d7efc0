"""The director's section: quality beside what each reaches alone, memory, hours, bytes, and what the model writes."""

from collections.abc import Mapping
from html import escape

from pcmoe_operator.report import words
from pcmoe_operator.report.charts import (
    Dot,
    DotRow,
    Line,
    Scale,
    dot_chart,
    legend,
    line_chart,
    marks,
    stacked_bar,
)
from pcmoe_operator.report.comparison import ALL, SHARD, TOGETHER, UNION
from pcmoe_operator.report.figures import Figures
from pcmoe_operator.report.headlines import spread, verdicts
from pcmoe_operator.report.html import Html, card, known, paragraph, part, table, thousands, tiles
from pcmoe_operator.units import duration, loss, size


def pays(figures: Figures) -> str:
    """The section."""
    return "\n".join(
        (_tiles(figures), _baselines(figures), _losses(figures), _memory(figures), _writes(figures))
    )


def _tiles(figures: Figures) -> str:
    losses = [own for own in figures["loss"].values() if own["change"] is not None]
    fell = sum(own["change"] < 0 for own in losses)
    savings = [own["savingPercent"] for own in figures["memory"]["participants"].values() if own]
    hours = figures["gpuHours"]["trained"]
    gpus = f", {hours:.1f} GPU-hours" if hours else ""
    return tiles(
        [
            (f"{fell} of {len(figures['loss'])}", "organisations whose held-out loss fell"),
            _against_alone(figures),
            (
                spread(savings, "{:.1f} %"),
                "less memory for tensors per organisation than for one that holds everything",
            ),
            (duration(figures["seconds"]), f"of training, {thousands(figures['tokens'])} tokens{gpus}"),
            (size(figures["traffic"]["totalBytes"]), "sent between organisations, padding included"),
        ]
    )


def _against_alone(figures: Figures) -> tuple[str, str]:
    against = (figures["baselines"] or {}).get("against", {}).get(SHARD)
    if against is None:
        return "not measured", "whether together is better than alone"
    return (
        f"{against['betterTogether']} of {against['organisations']}",
        "organisations better off together than alone within the same memory",
    )


def _baselines(figures: Figures) -> str:
    compared = figures["baselines"]
    if compared is None:
        return part("Together, or alone?", words.NO_BASELINES)
    kinds = [kind for kind in words.ARRANGEMENTS if kind in compared["arrangements"]]
    names = list(compared["arrangements"][TOGETHER]["heldOut"])
    said = "".join(f"<li>{escape(each)}</li>" for each in verdicts(figures))
    return part(
        "Together, or alone?",
        words.BASELINES.format(round=compared["round"]),
        card(f'<ul class="said">{said}</ul>'),
        _chart(compared, kinds, names),
        card(_table(compared, kinds, names), "scroll", "after"),
        paragraph(_missing(compared, names), "after") if _missing(compared, names) else "",
    )


def _chart(compared: Figures, kinds: list[str], names: list[str]) -> str:
    rows = [
        DotRow(
            label=name, dots=[Dot(value=_held_out(compared, kind, name), style=f"m-{kind}") for kind in kinds]
        )
        for name in names
    ]
    bars = "".join(_memory_bars(compared, kinds))
    title = "Held-out loss of each organisation, by arrangement"
    return (
        '<div class="charts after"><figure class="card"><h4>Quality: held-out loss</h4>'
        + dot_chart(title, rows, "nats per token; further left is better")
        + marks({f"m-{kind}": words.ARRANGEMENTS[kind] for kind in kinds})
        + '</figure><figure class="card"><h4>Price: memory of one process</h4>'
        + bars
        + legend({"tensors": "tensors, exact", "peak": "peak, measured above what imports take"})
        + "</figure></div>"
    )


def _memory_bars(compared: Figures, kinds: list[str]) -> list[str]:
    most = max(compared["arrangements"][kind]["peakBytes"]["most"] for kind in kinds)
    most = max(most, *(compared["arrangements"][kind]["tensorBytes"]["most"] for kind in kinds), 1)
    bars = []
    for kind in kinds:
        own = compared["arrangements"][kind]
        bars.append(f'<p class="bars">{escape(words.ARRANGEMENTS[kind])}</p>')
        for what in ("tensors", "peak"):
            bytes_ = own["tensorBytes" if what == "tensors" else "peakBytes"]
            bars.append(stacked_bar("", {what: bytes_["most"]}, most, _sizes(bytes_)))
    return bars


def _table(compared: Figures, kinds: list[str], names: list[str]) -> str:
    means = (compared["arrangements"][kind]["meanHeldOut"] for kind in kinds)
    rows = [[name, *(loss(_held_out(compared, kind, name)) for kind in kinds)] for name in names]
    rows.append(["mean", *map(loss, means)])
    return table(["held-out loss", *(words.ARRANGEMENTS[kind] for kind in kinds)], rows)


def _held_out(compared: Figures, kind: str, name: str) -> float | None:
    found: float | None = compared["arrangements"][kind]["heldOut"].get(name)
    return found


def _missing(compared: Figures, names: list[str]) -> str:
    """Baselines that are not there, or at another round."""
    arrangements = compared["arrangements"]
    lacking = [
        f"{words.ARRANGEMENTS[kind]} ({', '.join(absent)})"
        for kind in (SHARD, ALL, UNION)
        if (absent := [n for n in names if n not in arrangements.get(kind, {"heldOut": {}})["heldOut"]])
    ]
    return f"Not measured, or not to the same round: {'; '.join(lacking)}." if lacking else ""


def _sizes(bytes_: Mapping[str, int]) -> str:
    low, high = size(bytes_["least"]), size(bytes_["most"])
    if low == high:
        return low
    number, unit = low.split()
    return f"{number} to {high}" if high.endswith(unit) else f"{low} to {high}"


def _losses(figures: Figures) -> str:
    lines = {name: _loss_lines(own) for name, own in figures["loss"].items()}
    scale = Scale.of([line for own in lines.values() for line in own])
    cards = "\n".join(
        f'<figure class="card"><h4>{escape(name)}</h4>'
        f"{line_chart(f'Loss of {name} over rounds', lines[name], scale, 'round', 'nats per token')}</figure>"
        for name in lines
    )
    rows = [
        [name, loss(own["firstHeldOut"]), loss(own["lastHeldOut"]), _change(own)]
        for name, own in figures["loss"].items()
    ]
    return part(
        "What was learnt",
        words.LOSS,
        legend({"held": "held-out", "training": "training"}),
        f'<div class="charts">{cards}</div>',
        card(table(["held-out loss", "first", "last", "change"], rows), "scroll", "after"),
    )


def _loss_lines(own: Figures) -> list[Line]:
    series = {"training": "training", "held": "heldOut"}
    return [
        Line(
            label=key,
            style=style,
            points=[(r["round"], r[key]) for r in own["rounds"] if r[key] is not None],
        )
        for style, key in series.items()
    ]


def _change(own: Figures) -> str:
    change, share = own["change"], own["changePercent"]
    if change is None:
        return "–"
    kind = "good" if change < 0 else "bad"
    return Html(f'<span class="{kind}">{_signed(change, 3)} ({_signed(share or 0.0, 1)} %)</span>')


def _signed(value: float, digits: int) -> str:
    return f"{value:+.{digits}f}".replace("-", "−")


def _memory(figures: Figures) -> str:
    memory = figures["memory"]
    basis, whole = memory["basis"], memory["whole"]
    owns = {name: own for name, own in memory["participants"].items() if own}
    full = max([whole["total"], *(own["total"] for own in owns.values())])
    bars = [stacked_bar("one for all", whole["tensors"], full, size(whole["total"]))]
    bars += [
        stacked_bar(name, own["tensors"], full, f"{size(own['total'])}, {own['savingPercent']:.1f} % less")
        for name, own in owns.items()
    ]
    kinds = {k for own in [whole, *owns.values()] for k in own["tensors"]}
    what = words.MEMORY_EXACT.format(**(basis | {"parameters": _count(basis["parameters"])}))
    return part("Memory", what, card("".join(bars) + legend(known(kinds, words.TENSORS))))


def _count(number: int) -> str:
    for unit, scale in (("billion", 10**9), ("million", 10**6), ("thousand", 10**3)):
        if number >= scale:
            return f"{number / scale:.1f} {unit}"
    return str(number)


def _after(done: int | None) -> str:
    return "" if done is None else f", after round {done}"


def _writes(figures: Figures) -> str:
    """How the models go on from a prompt, where somebody asked."""
    told = figures["continuations"]
    if not told:
        return ""
    cards = "".join(
        card(
            f"<h4>{escape(name)}</h4><dl class='texts'><dt>prompt</dt><dd>{escape(own['prompt'])}</dd>"
            f"<dt>starting model</dt><dd>{escape(own['base'])}</dd>"
            f"<dt>trained together{_after(own['round'])}</dt><dd>{escape(own['consortium'])}</dd></dl>"
        )
        for name, own in told.items()
    )
    return part("What the model writes", words.CONTINUATIONS, f'<div class="charts">{cards}</div>')
