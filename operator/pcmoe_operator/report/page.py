"""The figures as one HTML page that loads nothing: no network, no scripts."""

from collections.abc import Mapping, Sequence
from html import escape

from pcmoe_operator.report import words
from pcmoe_operator.report.charts import Line, Scale, legend, line_chart, stacked_bar
from pcmoe_operator.report.figures import Figures
from pcmoe_operator.report.html import Html, definitions, table
from pcmoe_operator.report.page_events import events_of
from pcmoe_operator.report.page_exposure import exposure_of
from pcmoe_operator.report.style import STYLE
from pcmoe_operator.units import duration, loss, size

UNKNOWN = Html('<span class="soft">unknown</span>')


def page_of(figures: Figures) -> str:
    """The whole page."""
    title = f"{figures['title']}: training report"
    sections = (
        _head,
        _gaps,
        _tiles,
        _losses,
        _memory,
        _traffic,
        exposure_of,
        _time,
        _machines,
        events_of,
        _settings,
    )
    body = "\n".join(section(figures) for section in sections)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n{body}\n"
        "</main>\n</body>\n</html>\n"
    )


def _head(figures: Figures) -> str:
    names, standing = figures["participants"], figures["standing"]
    done, planned = figures["roundsDone"], figures["roundsPlanned"]
    state = f"{done} of {planned} rounds" + ("" if done >= planned else ", not finished")
    organisations = f"{len(names)} organisation{'s' if len(names) != 1 else ''}: {', '.join(names)}"
    told = f'<div class="card">{definitions(standing)}</div>' if standing else ""
    return f'<h1>{escape(figures["title"])}</h1>\n<p class="soft">{escape(organisations)}. {state}.</p>{told}'


def _gaps(figures: Figures) -> str:
    """Whose figures are not in the report, and why."""
    left_out, elsewhere = figures["leftOut"], figures["elsewhere"]
    points = [f"<li><b>{escape(name)}</b>: {escape(why)}</li>" for name, why in left_out.items()]
    if elsewhere:
        points.append(
            f"<li><b>{escape(', '.join(elsewhere))}</b>: {escape(words.ELSEWHERE[len(elsewhere) > 1])}</li>"
        )
    if not points:
        return ""
    return f'<div class="card gaps"><h3>Not in this report</h3><ul>{"".join(points)}</ul></div>'


def _tiles(figures: Figures) -> str:
    losses = [own for own in figures["loss"].values() if own["change"] is not None]
    fell = sum(own["change"] < 0 for own in losses)
    savings = [own["savingPercent"] for own in figures["memory"]["participants"].values() if own]
    gpu_hours = figures["gpuHours"]["trained"]
    trained = f"of training, {figures['tokens']:,} tokens".replace(",", " ")
    tiles = [
        (f"{fell} of {len(figures['loss'])}", "organisations whose held-out loss fell"),
        (
            _range(savings, "{:.1f} %"),
            "less memory for tensors per organisation than for one that holds everything",
        ),
        (size(figures["traffic"]["totalBytes"]), "sent between organisations, padding included"),
        (
            duration(figures["seconds"]),
            trained if not gpu_hours else f"{trained}, {gpu_hours:.1f} GPU-hours",
        ),
    ]
    cells = "".join(
        f'<div class="card tile"><b>{escape(a)}</b><span>{escape(b)}</span></div>' for a, b in tiles
    )
    return f'<div class="grid2">{cells}</div>'


def _range(values: Sequence[float], form: str) -> str:
    if not values:
        return "–"
    low, high = form.format(min(values)), form.format(max(values))
    return low if low == high else f"{low} to {high}"


def _losses(figures: Figures) -> str:
    lines = {name: _loss_lines(own) for name, own in figures["loss"].items()}
    scale = Scale.of([line for own in lines.values() for line in own])
    cards = "\n".join(
        f'<figure class="card"><h3>{escape(name)}</h3>'
        f"{line_chart(f'Loss of {name} over rounds', lines[name], scale, 'round')}</figure>"
        for name in lines
    )
    rows = [
        [name, loss(own["firstHeldOut"]), loss(own["lastHeldOut"]), _change(own)]
        for name, own in figures["loss"].items()
    ]
    return (
        f"<h2>Loss</h2>\n<p>{escape(words.LOSS)}</p>"
        + legend({"held": "held-out", "training": "training"})
        + f'<div class="charts">{cards}</div>'
        + '<div class="card scroll after">'
        + table(["held-out loss", "first", "last", "change"], rows)
        + "</div>"
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
    rows = [
        [
            name,
            size(own["total"]),
            size(own["peakAboveBaseline"]),
            size(own["baselineRss"]),
            _size(own["gpuPeak"]),
        ]
        for name, own in owns.items()
    ]
    what = words.MEMORY_EXACT.format(**(basis | {"parameters": _count(basis["parameters"])}))
    return (
        f"<h2>Memory</h2>\n<p>{escape(what)}</p>\n"
        + f'<div class="card">{"".join(bars)}{legend(_known(kinds, words.TENSORS))}</div>'
        + f'<p class="after">{escape(words.MEMORY_MEASURED)}</p><div class="card scroll">'
        + table(["participant", "tensors, exact", "peak above import", "after import", "GPU peak"], rows)
        + "</div>"
    )


def _known(kinds: set[str], words: dict[str, str]) -> dict[str, str]:
    """The keys of a legend, in the order of `words`."""
    return {k: words.get(k, k) for k in [*(w for w in words if w in kinds), *sorted(kinds - set(words))]}


def _size(count: int | None) -> str:
    return "–" if count is None else size(count)


def _count(number: int) -> str:
    for unit, scale in (("billion", 10**9), ("million", 10**6), ("thousand", 10**3)):
        if number >= scale:
            return f"{number / scale:.1f} {unit}"
    return str(number)


def _traffic(figures: Figures) -> str:
    traffic, names = figures["traffic"], figures["participants"]
    most = max((b for row in traffic["bytesSent"].values() for b in row.values() if b), default=0)
    rows = [
        [name, *("" if peer == name else _heat(traffic["bytesSent"][name][peer], most) for peer in names)]
        + [_rows(traffic["hiddenRowsSent"][name])]
        for name in names
    ]
    per_token = traffic["bytesPerTrainedToken"]
    average = f" That is {size(per_token)} per trained token, evaluation included." if per_token else ""
    counted = "" if len(figures["loss"]) == len(names) else f" {words.RECEIVED}"
    pairs = "".join(
        f"<tr><td>{escape(sent)}</td><td>{escape(kept)}</td></tr>" for sent, kept in words.SENT_AND_KEPT
    )
    heads = "<th>was sent to partners</th><th>was not sent to anybody</th>"
    return (
        f"<h2>What travelled</h2>\n<p>{escape(words.TRAFFIC + counted + average)}</p>"
        + '<div class="card scroll">'
        + table(["from / to", *names, "rows of hidden states"], rows)
        + "</div>\n<h2>What left an organisation, and what did not</h2>\n"
        + f'<div class="card"><table class="words"><thead><tr>{heads}</tr></thead>'
        + f"<tbody>{pairs}</tbody></table></div>"
        + f'<p class="after"><b>{escape(words.WARNING_LEAD)}</b> {escape(words.WARNING)}</p>'
    )


def _rows(counts: Mapping[str, int | None]) -> str:
    known = [count for count in counts.values() if count is not None]
    return f"{sum(known):,}".replace(",", " ") if len(known) == len(counts) else UNKNOWN


def _heat(count: int | None, most: int) -> str:
    if count is None:
        return UNKNOWN
    strength = 0.22 * count / most if most else 0.0
    style = f"background:rgba(var(--heat),{strength:.3f})"
    return Html(f'<span class="heat" style="{style}">{escape(size(count))}</span>')


def _time(figures: Figures) -> str:
    totals = {name: sum(phases.values()) for name, phases in figures["time"].items()}
    full = max(totals.values(), default=0.0)
    kinds = {phase for phases in figures["time"].values() for phase in phases}
    order = list(_known(kinds, words.PHASES))
    shared = "" if figures["standing"] else f" {words.SHARED}"
    bars = "".join(
        stacked_bar(name, {p: phases[p] for p in order if p in phases}, full, duration(totals[name]))
        for name, phases in figures["time"].items()
    )
    return (
        f"<h2>Where the time went</h2>\n<p>{escape(words.TIME + shared)}</p>"
        + f'<div class="card">{bars}{legend(_known(kinds, words.PHASES))}</div>'
    )


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
    return f'<h2>What it took</h2>\n<p>{escape(told)}</p><div class="card scroll">{table(heads, rows)}</div>'


def _hours(own: Figures, with_gpus: bool) -> list[str]:
    return [_shown(own[kind], "{:.2f}") for kind in ("trained", "held")] if with_gpus else []


def _stored(machine: Figures) -> list[str]:
    share = _shown(machine.get("remoteTokenShare"), "{:.1%}").replace("%", " %")
    return [
        _size(machine.get("checkpointBytes")),
        _shown(machine.get("checkpointSeconds"), "{:.2f} s"),
        share,
    ]


def _shown(value: float | None, form: str) -> str:
    return "–" if value is None else form.format(value)


def _settings(figures: Figures) -> str:
    parts = [
        ("Settings", figures["settings"]),
        ("Digests", figures["digests"]),
        ("Software", figures["software"]),
    ]
    cards = "".join(
        f'<div class="card"><h3>{heading}</h3>{definitions(values, mono=heading == "Digests")}</div>'
        for heading, values in parts
        if values
    )
    return f'<h2>How it was made</h2>\n<div class="grid1">{cards}</div>'
