"""What a partner could read, layer by layer, as it was measured: a chart and a table each for own and next tokens."""

from collections.abc import Mapping, Sequence
from html import escape

from pcmoe_operator.report import words
from pcmoe_operator.report.charts import Dot, DotRow, Scale, dot_chart, marks
from pcmoe_operator.report.figures import Figures
from pcmoe_operator.report.headlines import read_of
from pcmoe_operator.report.html import Html, card, paragraph, part, table, thousands

Attacks = Mapping[str, str]
"""What to call each, by its key in the figures."""


def leaks_of(figures: Figures) -> str:
    """Every measurement that is there, and of whom there is none."""
    told = figures["leak"]
    without = [name for name in figures["participants"] if name not in told]
    lacking = f"Not measured for {', '.join(without)}: {words.MEASURE}" if without else ""
    return part(
        "How much could be read",
        words.LEAK if told else lacking,
        *(_leak(name, own) for name, own in told.items()),
        _knows(told) if told else "",
        paragraph(lacking, "after") if told and lacking else "",
    )


def _leak(name: str, leak: Figures) -> str:
    about = (
        f"Weights at {leak['weights']}; {thousands(leak['tokens'])} tokens of {leak['documents']} of {name}'s "
        f"documents; layers kept at home at the end: {leak['atEnd']}."
    )
    read = paragraph(Html(f"<b>{escape(read_of(name, leak))}</b>"))
    said = f"<h4>{escape(name)}</h4>{read}{paragraph(about, 'soft')}"
    charts = "".join(_chart(name, leak, what) for what in ("ownToken", "nextToken"))
    tables = "".join(_table(leak, what) for what in ("ownToken", "nextToken"))
    return f'<div class="leak">{said}<div class="charts">{charts}</div>{tables}</div>'


def _chart(name: str, leak: Figures, what: str) -> str:
    attacks = _present(leak, what)
    rows = [
        DotRow(
            label=_place(layer),
            dots=[
                Dot(value=read["value"], low=read["low"], high=read["high"], style=f"m-{attack}")
                for attack in attacks
                if (read := layer[what][attack]) is not None
            ],
            quiet=not layer["leaves"],
        )
        for layer in leak["layers"]
    ]
    title = f"{words.TOKENS[what]}, of {name}, by layer"
    return (
        f'<figure class="card"><h4>{escape(words.TOKENS[what])}</h4>'
        + dot_chart(title, rows, "% of tokens; bars are 95 % intervals", Scale(x_max=100, y_min=0, y_max=1))
        + marks({f"m-{attack}": text for attack, text in attacks.items()})
        + "</figure>"
    )


def _place(layer: Figures) -> str:
    stays = "" if layer["leaves"] else " if it left; it stays at home"
    return f"layer {layer['layer']}: {layer['sentPercent']:.0f} % sent{stays}"


def _table(leak: Figures, what: str) -> str:
    attacks = _present(leak, what)
    rows = [
        [
            str(layer["layer"]),
            "yes" if layer["leaves"] else "no",
            f"{layer['sentPercent']:.1f} %",
            *(_read(layer[what][attack]) for attack in attacks),
        ]
        for layer in leak["layers"]
    ]
    heads = ["layer", "leaves", "tokens sent", *attacks.values()]
    return card(f"<h4>{escape(words.TOKENS[what])}</h4>{table(heads, rows)}", "scroll", "after", "narrow")


def _present(leak: Figures, what: str) -> Attacks:
    """The attacks that were tried on any layer, in the order of the words."""
    tried = {key for layer in leak["layers"] for key, read in layer[what].items() if read is not None}
    return {key: text for key, text in words.ATTACKS[what].items() if key in tried}


def _read(read: Mapping[str, float] | None) -> str:
    if read is None:
        return "–"
    return Html(f"{read['value']:.1f} % <small>{read['low']:.1f} to {read['high']:.1f}</small>")


def _knows(told: Mapping[str, Figures]) -> str:
    """What the adversary knows, and how the figures are to be read; each sentence once, whoever measured."""
    knows = {attack: text for leak in told.values() for attack, text in leak["adversaryKnows"].items()}
    limits: Sequence[str] = list(dict.fromkeys(limit for leak in told.values() for limit in leak["limits"]))
    caveats = dict.fromkeys(leak["caveat"] for leak in told.values())
    points = [
        *(Html(f"<b>{escape(attack)}</b> knows {escape(text)}.") for attack, text in knows.items()),
        *(Html(escape(limit)) for limit in limits),
        *(Html(f"<b>{escape(caveat)}</b>") for caveat in caveats),
    ]
    items = "".join(f"<li>{point}</li>" for point in points)
    return card(
        f'<h4>What the adversary knows, and what these figures are not</h4><ul class="said">{items}</ul>',
        "after",
    )
