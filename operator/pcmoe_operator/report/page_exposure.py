"""The page's part about what left, and to whom, from the participants' own ledgers."""

from html import escape

from pcmoe_operator.report import words
from pcmoe_operator.report.figures import Figures
from pcmoe_operator.report.html import table
from pcmoe_operator.units import size

HEADS = (
    "from",
    "to",
    "tokens seen",
    "next tokens",
    "held-out tokens",
    "documents",
    "about own data",
    "in answer",
)


def exposure_of(figures: Figures) -> str:
    """Nothing where no ledger is here: a participant's ledger stays with it."""
    told = figures["exposure"]
    rows = [
        [
            name,
            peer,
            *map(_percent, (seen["tokensPercent"], seen["nextTokensPercent"], seen["heldOutPercent"])),
        ]
        + [
            f"{seen['documentsSeen']} of {own['documents']}",
            size(seen["bytesAsked"]),
            size(seen["bytesAnswered"]),
        ]
        for name, own in told.items()
        for peer, seen in own["peers"].items()
    ]
    if not rows:
        return ""
    notes = [_note(name, own) for name, own in told.items()]
    return (
        f"<h2>What left, and to whom</h2>\n<p>{escape(words.EXPOSURE)}</p>"
        + f'<div class="card scroll">{table(HEADS, rows)}</div>'
        + "".join(f'<p class="after">{escape(note)}</p>' for note in notes if note)
    )


def _note(name: str, own: Figures) -> str:
    """What else must be known to read a participant's row."""
    notes = []
    if own["roundsAgain"]:
        notes.append(f"{own['roundsAgain']} rounds were done again after a loss, and count again")
    if own["openViews"]:
        notes.append(
            "a view's end is not written down (it goes on, or the process was killed): at least this much left"
        )
    if own["refusedFrames"]:
        notes.append(f"{own['refusedFrames']} frames were refused")
    return f"{name}: {'; '.join(notes)}." if notes else ""


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.1f} %"
