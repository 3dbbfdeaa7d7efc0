"""The data-protection officer's section: what left, to whom, how much could be read, what was refused, the settings."""

from html import escape

from pcmoe_operator.report import words
from pcmoe_operator.report.figures import Figures
from pcmoe_operator.report.headlines import own_tokens_read, spread
from pcmoe_operator.report.html import Html, card, definitions, part, table, tiles
from pcmoe_operator.report.page_leak import leaks_of
from pcmoe_operator.units import size

LEDGER = (
    "from",
    "to",
    "tokens seen",
    "next tokens",
    "held-out tokens",
    "documents",
    "about own data",
    "in answer",
)
REFUSED = (
    "participant",
    "frames refused",
    "connections refused",
    "rounds that left again",
    "views without an end",
)


def privacy(figures: Figures) -> str:
    """The section."""
    parts = (
        _tiles(figures),
        _kinds(),
        _ledger(figures),
        leaks_of(figures),
        _refused(figures),
        _settings(figures),
    )
    return "\n".join(parts)


def _tiles(figures: Figures) -> str:
    ledgers = figures["exposure"].values()
    sent = [seen["tokensPercent"] for own in ledgers for seen in own["peers"].values()]
    seen = [each for each in sent if each is not None]
    read = [each for leak in figures["leak"].values() for each in own_tokens_read(leak)]
    about = sum(seen["bytesAsked"] for own in ledgers for seen in own["peers"].values())
    refused = sum(own["refusedFrames"] + own["refusedConnections"] for own in ledgers)
    unknown = "no ledger here"
    where = f"; measured for {', '.join(figures['leak'])}" if read else ""
    return tiles(
        [
            (
                spread(seen, "{:.1f} %") if seen else unknown,
                "of an organisation's tokens were sent to one partner",
            ),
            (
                spread(read, "{:.1f} %") if read else "not measured",
                f"of those read from their hidden states, by a probe{where}",
            ),
            (
                size(about) if seen else unknown,
                "of hidden states and gradients left, with what goes with them",
            ),
            (str(refused) if seen else unknown, "frames and connections refused"),
        ]
    )


def _kinds() -> str:
    pairs = "".join(
        f"<tr><td>{escape(sent)}</td><td>{escape(kept)}</td></tr>" for sent, kept in words.SENT_AND_KEPT
    )
    heads = '<th scope="col">was sent to partners</th><th scope="col">was not sent to anybody</th>'
    warning = Html(f"<b>{escape(words.WARNING_LEAD)}</b> {escape(words.WARNING)}")
    return part(
        "What is sent, and what is not",
        warning,
        card(f'<table class="words"><thead><tr>{heads}</tr></thead><tbody>{pairs}</tbody></table>'),
    )


def _ledger(figures: Figures) -> str:
    """Rows of the ledgers that lie here: a participant's stays with it."""
    rows = [
        [
            name,
            peer,
            *map(_percent, (seen["tokensPercent"], seen["nextTokensPercent"], seen["heldOutPercent"])),
            f"{seen['documentsSeen']} of {own['documents']}",
            size(seen["bytesAsked"]),
            size(seen["bytesAnswered"]),
        ]
        for name, own in figures["exposure"].items()
        for peer, seen in own["peers"].items()
    ]
    if not rows:
        return part("What left, by the ledgers", words.NO_LEDGER)
    return part("What left, and to whom", words.EXPOSURE, card(table(LEDGER, rows), "scroll", "pairs"))


def _refused(figures: Figures) -> str:
    rows = [
        [
            name,
            *(str(own[key]) for key in ("refusedFrames", "refusedConnections", "roundsAgain", "openViews")),
        ]
        for name, own in figures["exposure"].items()
    ]
    if not rows:
        return ""
    return part("What was refused, and what left twice", words.REFUSED, card(table(REFUSED, rows), "scroll"))


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.1f} %"


def _settings(figures: Figures) -> str:
    parts = [
        ("Settings", figures["settings"]),
        ("Digests", figures["digests"]),
        ("Software", figures["software"]),
    ]
    cards = "".join(
        card(f"<h4>{heading}</h4>{definitions(values, mono=heading == 'Digests')}")
        for heading, values in parts
        if values
    )
    return part("How it was made", words.SETTINGS, f'<div class="grid1">{cards}</div>')
