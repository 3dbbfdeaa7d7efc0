"""Pieces of HTML from text: everything is escaped but what is HTML already."""

import re
from collections.abc import Mapping, Sequence
from html import escape

from pcmoe_operator.units import size


class Html(str):
    """Text that is HTML already, made here from escaped parts."""

    __slots__ = ()


TYPED = re.compile(r"`([^`<>]+)`")
UNKNOWN = Html('<span class="soft">unknown</span>')


def cell(text: str) -> str:
    """Text as HTML."""
    return text if isinstance(text, Html) else escape(text)


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table. `Html` cells are taken as they are, everything else is text and escaped."""
    head = "".join(f'<th scope="col">{cell(text)}</th>' for text in heads)
    body = "".join("<tr>" + "".join(f"<td>{cell(each)}</td>" for each in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def definitions(values: Mapping[str, str], *, mono: bool = False) -> str:
    """Names with what they mean."""
    kind = ' class="mono"' if mono else ""
    found = "".join(
        f"<dt>{escape(key)}</dt><dd{kind}>{escape(str(value))}</dd>" for key, value in values.items()
    )
    return f"<dl>{found}</dl>"


def paragraph(text: str, *classes: str) -> str:
    """Text as a paragraph; what stands in backticks is to be typed."""
    kind = f' class="{" ".join(classes)}"' if classes else ""
    typed = TYPED.sub(r"<code>\1</code>", cell(text))
    return f"<p{kind}>{typed}</p>"


def part(title: str, text: str, *bodies: str) -> str:
    """A part of a section: a heading, what it is about, and what is shown."""
    return f"<h3>{cell(title)}</h3>\n{paragraph(text) if text else ''}" + "".join(bodies)


def card(body: str, *classes: str) -> str:
    """A box."""
    return f'<div class="{" ".join(("card", *classes))}">{body}</div>'


def tiles(values: Sequence[tuple[str, str]]) -> str:
    """Figures to be seen first, each with what it is."""
    cells = "".join(card(f"<b>{cell(a)}</b><span>{cell(b)}</span>", "tile") for a, b in values)
    return f'<div class="tiles">{cells}</div>'


def known(kinds: set[str], words: Mapping[str, str]) -> dict[str, str]:
    """The keys of a legend, in the order of `words`."""
    return {k: words.get(k, k) for k in [*(w for w in words if w in kinds), *sorted(kinds - set(words))]}


def shown(value: float | None, form: str) -> str:
    """A number, or a dash where there is none."""
    return "–" if value is None else form.format(value)


def shown_size(count: int | None) -> str:
    """Bytes, or a dash where there is no figure."""
    return "–" if count is None else size(count)


def thousands(count: int) -> str:
    """A whole number with thin gaps."""
    return f"{count:,}".replace(",", "\u202f")
