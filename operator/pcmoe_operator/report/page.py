"""The figures as one HTML page that loads nothing: no network, no scripts. Three sections, for three readers."""

from html import escape

from pcmoe_operator.report import words
from pcmoe_operator.report.figures import Figures
from pcmoe_operator.report.html import card, definitions
from pcmoe_operator.report.page_pays import pays
from pcmoe_operator.report.page_privacy import privacy
from pcmoe_operator.report.page_work import work
from pcmoe_operator.report.style import STYLE

SECTIONS = (("pays", pays), ("work", work), ("privacy", privacy))
POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
"""What a browser may do for this page: draw it with its own styles, and nothing else."""


def page_of(figures: Figures) -> str:
    """The whole page."""
    title = f"{figures['title']}: training report"
    sections = "\n".join(_section(name, body(figures)) for name, body in SECTIONS)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        f"{_head(figures)}\n{_gaps(figures)}\n{_contents()}\n{sections}\n</main>\n</body>\n</html>\n"
    )


def _head(figures: Figures) -> str:
    names, standing = figures["participants"], figures["standing"]
    done, planned = figures["roundsDone"], figures["roundsPlanned"]
    state = f"{done} of {planned} rounds" + ("" if done >= planned else ", not finished")
    organisations = f"{len(names)} organisation{'s' if len(names) != 1 else ''}: {', '.join(names)}"
    told = card(definitions(standing)) if standing else ""
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
    return card(f"<h4>Not in this report</h4><ul>{''.join(points)}</ul>", "gaps")


def _contents() -> str:
    """Where to begin, by reader."""
    links = "".join(
        f'<a class="card" href="#{name}"><span>{escape(words.SECTIONS[name][1])}</span>'
        f"<b>{escape(words.SECTIONS[name][0])}</b></a>"
        for name, _ in SECTIONS
    )
    return f'<nav class="contents">{links}</nav>'


def _section(name: str, body: str) -> str:
    title, reader = words.SECTIONS[name]
    head = f'<h2><span class="reader">{escape(reader)}</span>{escape(title)}</h2>'
    return f'<section id="{name}">\n{head}\n{body}\n</section>'
