"""What happened, as a strip with a lane each and as a list."""

from collections.abc import Sequence
from html import escape

from pcmoe_operator.report import words
from pcmoe_operator.report.figures import Figures
from pcmoe_operator.report.html import card, part
from pcmoe_operator.report.timeline import shown

SHOWN = 200
"""So many of the newest are listed; report.json has all."""
TOGETHER_SECONDS = 5.0


def events_of(figures: Figures) -> str:
    """The section, empty where nothing is known."""
    events = figures["events"]
    if not events:
        return ""
    left_out = len(events) - SHOWN
    more = f" The first {left_out} are only in report.json." if left_out > 0 else ""
    listed = f'<ol class="events">{_items(events[-SHOWN:])}</ol>'
    return part("What happened", words.EVENTS + more, card(_strip(events, figures["span"]) + listed))


def _strip(events: Sequence[Figures], span: Figures) -> str:
    """A lane for each who is told of, from the run's beginning to its end; none for a single moment."""
    first, last = span["from"], span["to"]
    if last <= first:
        return ""
    lanes = []
    for who in sorted({event["who"] for event in events}):
        own = [event for event in events if event["who"] == who]
        places = {
            (round(100 * (event["time"] - first) / (last - first), 1), bool(event["warning"]))
            for event in own
        }
        marks = "".join(
            f'<i class="{"mark warning" if bad else "mark"}" style="left:{left}%"></i>'
            for left, bad in sorted(places)
        )
        count = f"{len(own)} event{'s' if len(own) > 1 else ''}"
        lanes.append(
            f'<div class="bar"><span class="name">{escape(who)}</span>'
            f'<span class="lane">{marks}</span><span class="note">{count}</span></div>'
        )
    ends = f'<span class="ends"><span>{shown(first)}</span><span>{shown(last)}</span></span>'
    return f'{"".join(lanes)}<div class="bar"><span></span>{ends}<span></span></div>'


def _items(events: Sequence[Figures]) -> str:
    today, found = "", []
    for event, names in _told_together(events):
        day, _, moment = shown(event["time"]).removesuffix(" UTC").partition(" ")
        if day != today:
            found.append(f'<li class="day">{day}</li>')
            today = day
        often = f" ({event['count']} times)" if event["count"] > 1 else ""
        bad = ' class="bad"' if event["warning"] else ""
        found.append(
            f"<li><time>{moment}</time><span>{escape(', '.join(names))}</span>"
            f"<span><b{bad}>{escape(event['kind'])}</b> {escape(event['message'])}{often}</span></li>"
        )
    return "".join(found)


def _told_together(events: Sequence[Figures]) -> list[tuple[Figures, list[str]]]:
    """Events with who tells of them: what several say in the same words within seconds is one line."""
    lines: list[tuple[Figures, list[str]]] = []
    for event in events:
        for earlier, names in reversed(lines):
            if event["time"] - earlier["time"] > TOGETHER_SECONDS:
                lines.append((event, [event["who"]]))
                break
            same = all(earlier[key] == event[key] for key in ("kind", "message", "count"))
            if same and event["who"] not in names:
                names.append(event["who"])
                break
        else:
            lines.append((event, [event["who"]]))
    return lines
