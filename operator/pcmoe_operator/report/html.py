"""Pieces of HTML from text: everything is escaped but what is HTML already."""

from collections.abc import Mapping, Sequence
from html import escape


class Html(str):
    """Text that is HTML already, made here from escaped parts."""

    __slots__ = ()


def cell(text: str) -> str:
    """Text as HTML."""
    return text if isinstance(text, Html) else escape(text)


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table. `Html` cells are taken as they are, everything else is text and escaped."""
    head = "".join(f'<th scope="col">{escape(text)}</th>' for text in heads)
    body = "".join("<tr>" + "".join(f"<td>{cell(each)}</td>" for each in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def definitions(values: Mapping[str, str], *, mono: bool = False) -> str:
    """Names with what they mean."""
    kind = ' class="mono"' if mono else ""
    found = "".join(
        f"<dt>{escape(key)}</dt><dd{kind}>{escape(str(value))}</dd>" for key, value in values.items()
    )
    return f"<dl>{found}</dl>"
