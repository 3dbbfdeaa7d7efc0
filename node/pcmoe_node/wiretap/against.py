"""The ledger against the wire: whether a participant's own account says exactly what it sent."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pcmoe_node.errors import ConfigError
from pcmoe_node.exchange.base import Kind
from pcmoe_node.wiretap.account import Account, Key

CONTROL = (Kind.STEP_END.name, Kind.VOTE.name)
Place = tuple[int, str, str, str]
"""View, peer, layer or "", kind or "control"."""
Figures = Counter[str]


@dataclass(slots=True)
class Ledger:
    """What a participant wrote down, added up over the lines of each view."""

    sums: dict[Place, Figures] = field(default_factory=dict)
    ended: dict[int, str | None] = field(default_factory=dict)
    """How each view ended that has a rest: None in order, else the kind of error."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Compared:
    """One participant."""

    equal: int
    """Sums that are the same in the ledger and on the wire."""
    differences: list[str]
    unsent: int
    """Bytes in the ledger that were still queued when a view broke: handed over, and never sent."""


def read_ledger(path: Path) -> Ledger:
    """Sums of an `exposure.jsonl`; `ConfigError` names the line that can't be read."""
    ledger = Ledger()
    try:
        lines = path.read_text("utf-8").splitlines()
    except OSError as error:
        raise ConfigError(f"{path}: can't be read: {error.strerror}") from error
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            if record["record"] == "rest":
                ledger.ended[record["view"]] = record["because"]
            if record["record"] != "view":
                _add(ledger, record)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"{path}: line {number} can't be read: {type(error).__name__}") from None
    return ledger


def _add(ledger: Ledger, record: Mapping[str, Any]) -> None:
    view = record["view"]
    for peer, entry in record["peers"].items():
        control = {"messages": entry["control"]["messages"], "bytes": entry["control"]["bytes"]}
        _into(ledger.sums, (view, peer, "", "control"), control)
        for layer, kinds in entry["layers"].items():
            for kind, sent in kinds.items():
                figures = {name: sent[name] for name in ("messages", "rows", "slots")} | sent["bytes"]
                _into(ledger.sums, (view, peer, layer, kind), figures)


def _into(sums: dict[Place, Figures], place: Place, figures: Mapping[str, int]) -> None:
    sums.setdefault(place, Counter()).update({name: count for name, count in figures.items() if count})


def wire_sums(account: Account, participant: str) -> dict[Place, Figures]:
    """The same sums from what a participant's recordings say that it sent, each message once."""
    sums: dict[Place, Figures] = {}
    for key, total in account.sums.items():
        if key.participant == participant and key.out and _counted(key):
            if key.layer is None:
                figures = {"messages": total.frames, "bytes": total.total}
                _into(sums, (key.view, key.peer, "", "control"), figures)
            else:
                figures = {"messages": total.frames, "rows": total.rows, "slots": total.slots, **total.bytes}
                _into(sums, (key.view, key.peer, str(key.layer), key.kind), figures)
    return sums


def _counted(key: Key) -> bool:
    return key.layer is not None or key.kind in CONTROL


def compared(account: Account, participant: str, ledger: Ledger) -> Compared:
    """Every sum of one participant: equal where a view ended in order, never more on the wire than in the ledger."""
    equal, unsent, differences = 0, 0, []
    wire = wire_sums(account, participant)
    for place in sorted({*wire, *(where for where, figures in ledger.sums.items() if figures)}):
        sent, written = wire.get(place, Counter()), ledger.sums.get(place, Counter())
        view = place[0]
        broken = ledger.ended.get(view, "killed") is not None
        if sent == written:
            equal += 1
        elif broken and sent <= written:
            unsent += sum(
                n for name, n in (written - sent).items() if name not in ("messages", "rows", "slots")
            )
        else:
            differences.append(_difference(participant, place, sent, written))
    return Compared(equal=equal, differences=differences, unsent=unsent)


def _difference(participant: str, place: Place, sent: Figures, written: Figures) -> str:
    view, peer, layer, kind = place
    names = sorted(name for name in {*sent, *written} if sent[name] != written[name])
    what = ", ".join(f"{name} {written[name]} written, {sent[name]} sent" for name in names)
    return f"{participant} to {peer}, view {view}, layer {layer or '–'}, {kind}: {what}"
