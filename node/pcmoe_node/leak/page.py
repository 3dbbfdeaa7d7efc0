"""A measurement in words and as JSON: shares and counts only, never a token or a text. Pure."""

from collections.abc import Iterable
from dataclasses import asdict
from textwrap import wrap
from typing import Any

from pcmoe_node.leak.floors import RESAMPLES, Share
from pcmoe_node.leak.measure import (
    CLOSED_FORM,
    CURRENT,
    GRADIENTS,
    HIDDEN,
    NEXT,
    PROBE,
    START,
    Measurement,
    Reading,
)

VERSION = "pcmoe-leak/1"
WIDTH = 120
CAVEAT = "These attacks only; learned ones may do better."
KNOWS = {
    CLOSED_FORM: "head and final norm of the start, which every participant has; nothing of the owner's",
    PROBE: "other text of the owner's (the half of these documents that it is not measured on, both ways round), and "
    "what the model makes of it with the weights that it was taught at. Those of the start everybody has, those of a "
    "later round only the owner: an upper bound of this attack",
}
LIMITS = (
    "One host that keeps its rows; several together see more tokens.",
    "Recorded in one process as the dispatch would send it; the experts of peers are those of the start, because only "
    "they hold the present ones.",
    "A token is what the tokenizer makes one. Intervals are over documents (95 %, "
    f"{RESAMPLES:,} resamples), floors guess in hindsight.",
)


def as_json(participant: str, measurements: Iterable[Measurement]) -> dict[str, Any]:
    """Everything that the tables say."""
    return {
        "version": VERSION,
        "participant": participant,
        "caveat": CAVEAT,
        "adversaryKnows": KNOWS,
        "limits": LIMITS,
        "measurements": [asdict(measurement) for measurement in measurements],
    }


def as_text(participant: str, measurements: Iterable[Measurement], *, tables: bool = True) -> str:
    """For each state of the weights what is read, with every layer's row or without; what the attacker knows."""
    lines = [f"What a host reads of {participant}'s text from what it is sent"]
    for measurement in measurements:
        lines += [
            "",
            *_headline(measurement),
            *(_table(measurement) if tables else ()),
            *_summary(measurement),
        ]
    lines += ["", "What the attacker knows"]
    for attack, text in KNOWS.items():
        lines += wrap(f"{attack}: {text}.", WIDTH, initial_indent="  ", subsequent_indent="    ")
    lines += ["", *(line for limit in LIMITS for line in wrap(limit, WIDTH)), CAVEAT]
    return "\n".join(lines) + "\n"


def _headline(found: Measurement) -> list[str]:
    return [
        f"Weights at {found.weights}, localLayers.atEnd {found.at_end}. Of {found.tokens:,} tokens of "
        f"{found.documents} documents {found.host} sees {100 * found.tokens_share:.1f} % in at least one layer."
    ]


def _table(found: Measurement) -> list[str]:
    heading = (
        f"layer  leaves         sees  {'attack':<28}  {'taught at':<10} token    read, 95 % interval      "
        "most frequent  unigram"
    )
    return ["", heading, *(_row(reading, found.at_end) for reading in found.readings), ""]


def _row(reading: Reading, at_end: int) -> str:
    leaves = "yes" if reading.sent_if_at_end >= at_end else f"if atEnd {reading.sent_if_at_end}"
    attack = f"{reading.attack}, {reading.signal}"
    read = f"{_percent(reading.read.value):>7} {_interval(reading.read)}"
    return (
        f"{reading.layer:>5}  {leaves:<10} {_percent(reading.rows_share):>7}  {attack:<28}  {reading.taught or '':<10} "
        f"{reading.token:<7}  {read:<22}  {_percent(reading.most_frequent.value):>13}  "
        f"{_percent(reading.unigram.value):>7}"
    )


def _summary(found: Measurement) -> list[str]:
    """The figures that matter: of the row's own token, and of the next one at the last layer that leaves."""
    sent = [r for r in found.readings if r.sent_if_at_end >= found.at_end]
    own = [r.read.value for r in sent if r.token == CURRENT and r.taught == START]
    return [
        f"Own token: the probe taught at the start reads {_percent(min(own))} to {_percent(max(own))}, by layer.",
        *(line for at_end in (0, 1) for line in _ahead(found, at_end)),
    ]


def _ahead(found: Measurement, at_end: int) -> list[str]:
    layer = max((r.layer for r in found.readings if r.sent_if_at_end >= at_end), default=None)
    if layer is None:
        return []
    readings = [r for r in reversed(found.readings) if r.layer == layer and r.token == NEXT]
    # The first of two probes, which is the last to be put here, is the one that anybody can teach.
    here = {(r.attack, r.signal): r for r in readings}
    closed, probe, guess = here[CLOSED_FORM, GRADIENTS], here[PROBE, GRADIENTS], here[PROBE, HIDDEN]
    return [
        f"Next token, localLayers.atEnd {at_end}: the last layer sent is {layer}. From its gradients the closed form "
        f"reads {_percent(closed.read.value)} {_interval(closed.read)},",
        f"  the probe {_percent(probe.read.value)}; {_percent(guess.read.value)} are guessed from its hidden states, "
        f"{_percent(closed.most_frequent.value)} by naming the most frequent.",
    ]


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _interval(share: Share) -> str:
    return f"[{100 * share.low:.1f}, {100 * share.high:.1f}]"
