"""Tables: whole for a pipe, as kubectl prints them; for a terminal in colour, and no wider than it is.

Laid out here, not by rich: its tables leave out columns where they are short of room, and its import takes 50 ms.
"""

import os
import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from pcmoe_operator.remote.summary import age, standing

Object = dict[str, Any]
Rows = Sequence[Sequence[str]]
Part = str | tuple[Sequence[str], Rows]
"""A line, or a table: headings and rows."""
GAP = "   "
LEAST = 20
"""So wide the last column is at least, however narrow the terminal."""
BOLD, DIM, RED, GREEN, YELLOW, CYAN = 1, 2, 31, 32, 33, 36
COLOURS: Mapping[str, int] = {
    **dict.fromkeys(("Failed", "Invalid", "Unknown"), RED),
    **dict.fromkeys(("Suspended", "Stopped"), DIM),
    "Completed": GREEN,
    "Running": CYAN,
}
"""Of states; one on the way to another is yellow."""


def consortia_table(shown: Sequence[Object], *, everywhere: bool) -> tuple[list[str], list[list[str]]]:
    """One line each; the last column is what is wrong, or what holds it up, or empty."""
    now = datetime.now(UTC)
    headings = ["NAME", "STATE", "ROUND", "READY", "LOSS", "AGE", "WHAT IS WRONG"]
    rows = []
    for each in shown:
        verdict = each["verdict"]
        wrong = "" if verdict["level"] == "fine" else verdict["sentence"]
        figures = [
            f"{each['round']}/{each['rounds']}",
            f"{each['ready']}/{each['here']}",
            _loss(each["loss"]),
        ]
        first = [each["namespace"]] if everywhere else []
        rows.append([*first, each["name"], each["state"], *figures, age(each["created"], now), wrong])
    return (["NAMESPACE", *headings] if everywhere else headings), rows


def participants_table(shown: Object) -> tuple[list[str], list[list[str]]]:
    """The participants that run in this cluster."""
    headings = ["PARTICIPANT", "STATE", "ROUND", "PHASE", "RESTARTS", "MACHINE", "REASON"]
    rows = [
        [
            each["name"], each["state"], "" if each["round"] is None else str(each["round"]),
            each["phase"] or "", str(each["restarts"]), each["machine"] or "", each["reason"] or "",
        ]
        for each in shown["participants"]
    ]  # fmt: skip
    return headings, rows


def events_table(events: Sequence[Object]) -> tuple[list[str], list[list[str]]]:
    """The last events, oldest first."""
    now = datetime.now(UTC)
    headings = ["LAST SEEN", "TYPE", "REASON", "MESSAGE"]
    rows = [
        [age(each["time"], now) + (f" (x{each['count']})" if each["count"] > 1 else ""),
         each["type"], each["reason"], each["message"]]
        for each in events
    ]  # fmt: skip
    return headings, rows


def headline(shown: Object) -> str:
    """The first line about one consortium: what is wrong, and what to do."""
    verdict = shown["verdict"]
    fine = "" if verdict["level"] != "fine" or verdict["end"] else "; nothing is wrong"
    note = f" ({verdict['note']})" if verdict["note"] else ""
    return f"{shown['name']}: {verdict['sentence']}{fine}{note}"


def figures(shown: Object) -> str:
    """The second line."""
    started = age(shown["created"], datetime.now(UTC))
    return f"{standing(shown)}, attempt {shown['attempt']}, age {started}"


def aligned(
    headings: Sequence[str], rows: Rows, width: int | None = None, *, colour: bool = False
) -> list[str]:
    """The lines of a table; all of each cell where no `width` is given.

    Else the last column takes what is left of it: a message goes on below, anything else is cut off.
    """
    widths = [max(len(row[column]) for row in [headings, *rows]) for column in range(len(headings))]
    before = sum(widths[:-1]) + len(GAP) * (len(widths) - 1)
    last = widths[-1] if width is None else max(LEAST, width - before)
    state = headings.index("STATE") if "STATE" in headings else -1
    lines = [_painted(GAP.join([*_padded(headings, widths), headings[-1]]), DIM if colour else 0)]
    for row in rows:
        cells = _padded(row, widths)
        if colour and state >= 0:
            cells[state] = _painted(cells[state], COLOURS.get(row[state], YELLOW))
        first, *below = _fitted(row[-1], last, fold=headings[-1] == "MESSAGE")
        lines.append(GAP.join([*cells, first]).rstrip())
        lines += [" " * before + each for each in below]
    return lines


def _padded(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    return [cell.ljust(width) for cell, width in zip(row[:-1], widths[:-1], strict=True)]


def _fitted(text: str, width: int, *, fold: bool) -> list[str]:
    if len(text) <= width:
        return [text]
    return textwrap.wrap(text, width) if fold else [text[: width - 1] + "…"]


def _painted(text: str, colour: int) -> str:
    return f"\x1b[{colour}m{text}\x1b[0m" if colour else text


def laid_out(*parts: Part, width: int | None, colour: bool) -> list[str]:
    """Lines and tables, one after another; a table without rows is left out. The first line counts most."""
    lines: list[str] = []
    for place, each in enumerate(parts):
        if isinstance(each, str):
            lines.append(_painted(each, BOLD) if colour and place == 0 else each)
        elif each[1]:
            lines += aligned(*each, width, colour=colour)
    return lines


def print_tables(*parts: Part) -> None:
    """Print them, to fit a terminal or whole."""
    terminal = sys.stdout.isatty()
    width = shutil.get_terminal_size().columns if terminal else None
    colour = terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    sys.stdout.write("\n".join(laid_out(*parts, width=width, colour=colour)) + "\n")


def all_about(shown: Object, problem: str = "") -> list[Part]:
    """All about one consortium: the sentence that counts first. `problem`: something to say before the tables."""
    parts: list[Part] = [headline(shown), figures(shown), *((problem,) if problem else ())]
    for table in (participants_table(shown), events_table(shown["events"])):
        if table[1]:
            parts += ["", table]
    return parts


def _loss(value: float | None) -> str:
    return "" if value is None else f"{value:g}"
