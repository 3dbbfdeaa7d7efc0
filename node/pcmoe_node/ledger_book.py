"""`exposure.jsonl`: what left for whom, round by round, on the owner's disk and nowhere else.

    {"record": "view", …}     a view was entered: who is in it, by which certificates, under which agreement
    {"record": "round", …}    a round is stored: everything since the line before
    {"record": "rest", …}     the view is over: what left after its last stored round

A round that is done again in a later view has left the house again, and has a line in both. A view without a rest
belongs to a process that was killed: what it sent after its last line is not counted.
"""

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pcmoe_node.config import NodeConfig
from pcmoe_node.errors import ProtocolError, StorageError
from pcmoe_node.exchange.base import Kind, Presented, WireDtype
from pcmoe_node.exchange.limits import Limits
from pcmoe_node.exchange.wire import HEADER_SIZE
from pcmoe_node.journal import append, mend
from pcmoe_node.ledger import Control, Entries, Own, Seen, Sent
from pcmoe_node.protocol.membership import View

log = logging.getLogger("pcmoe")

FILE = "exposure.jsonl"
FORMAT = "pcmoe-exposure/1"
ROWS_ARE = {
    Kind.FORWARD: "hiddenStates",
    Kind.EVALUATE: "hiddenStates",
    Kind.BACKWARD: "gradients",
    Kind.FORWARD_REPLY: "outputs",
    Kind.EVALUATE_REPLY: "outputs",
    Kind.BACKWARD_REPLY: "returnedGradients",
}
"""What the rows of each kind of message are."""


class Book:
    """Writes one participant's account. That it can't be written ends the run: nothing leaves unaccounted for."""

    def __init__(self, config: NodeConfig) -> None:
        self._path = Path(config.log_directory) / FILE
        self._config = config
        self._names = tuple(peer.name for peer in config.participants)
        self._hidden_size = Limits.from_config(config).hidden_size
        self._view = self._round = 0
        mend(self._path)

    def entered(self, view: View, presented: Mapping[int, Presented], corpus: Mapping[str, object]) -> None:
        """A view was entered, and everybody is connected. `corpus`: its fingerprint and its documents."""
        self._view, self._round = view.number, view.round
        identity = self._config.identity
        self._write(
            "view",
            {
                "format": FORMAT,
                "participant": self._config.participant,
                "after": view.round,
                "incarnation": view.incarnation(self._config.index) or "",
                "agreement": identity.agreement_digest,
                "plan": identity.plan_digest,
                "corpus": dict(corpus),
                "members": {
                    self._names[who]: self._certificates(presented.get(who))
                    for who, _ in view.members
                    if who != self._config.index
                },
            },
        )

    def round(
        self,
        number: int,
        entries: Entries,
        refused: Mapping[str, int],
        presented: Mapping[int, Presented],
    ) -> None:
        """A round is stored. `refused`: connections turned down by this process so far, by reason."""
        self._round = number
        self._write("round", self._entry(entries, refused, presented))

    def left(
        self,
        entries: Entries,
        refused: Mapping[str, int],
        presented: Mapping[int, Presented],
        error: BaseException | None,
    ) -> None:
        """The view is over, in order or because of `error`, of which only the kind is written down."""
        if not self._view:
            return
        entry = self._entry(entries, refused, presented)
        entry["because"] = None if error is None else type(error).__name__
        entry["refusedFrames"] = int(isinstance(error, ProtocolError))
        try:
            self._write("rest", entry)
        except StorageError as fault:
            if error is None:
                raise
            log.error(
                "what left in view %d after round %d is not written down: %s", self._view, self._round, fault
            )
        self._view = 0

    def _write(self, record: str, entry: Mapping[str, object]) -> None:
        line = {"record": record, "time": time.time(), "view": self._view, **entry}
        append(self._path, line, mode=0o600)

    def _entry(
        self, entries: Entries, refused: Mapping[str, int], presented: Mapping[int, Presented]
    ) -> dict[str, Any]:
        peers = {peer for peer, _, _ in entries.sent} | set(entries.control) | set(entries.seen)
        return {
            "round": self._round,
            "own": _own(entries.own),
            "refusedConnections": {reason: count for reason, count in refused.items() if count},
            "peers": {
                self._names[peer]: {
                    **self._certificates(presented.get(peer)),
                    **_seen(entries.seen.get(peer, Seen())),
                    "control": _control(entries.control.get(peer, Control())),
                    "smallest": _smallest(entries, peer),
                    "layers": self._layers(entries, peer),
                }
                for peer in sorted(peers)
            },
        }

    def _layers(self, entries: Entries, peer: int) -> dict[str, dict[str, object]]:
        layers: dict[str, dict[str, object]] = {}
        for (to, layer, kind), sent in sorted(entries.sent.items()):
            if to == peer:
                layers.setdefault(str(layer), {})[kind.name] = _messages(kind, sent, self._hidden_size)
        return layers

    @staticmethod
    def _certificates(presented: Presented | None) -> dict[str, str]:
        if presented is None:
            return {}
        return {"leaf": presented.leaf, "authorities": presented.authorities}


def _own(own: Own) -> dict[str, int]:
    return {"tokens": own.tokens, "targets": own.targets, "heldOut": own.held_out}


def _seen(seen: Seen) -> dict[str, object]:
    by_times: dict[str, list[int]] = {}
    for document, times in sorted(seen.documents.items()):
        by_times.setdefault(str(times), []).append(document)
    return {
        "tokens": seen.tokens,
        "targets": seen.targets,
        "heldOut": seen.held_out,
        "documents": by_times,
    }


def _control(control: Control) -> dict[str, int]:
    return {"messages": control.messages, "bytes": control.bytes}


def _smallest(entries: Entries, peer: int) -> int | None:
    """Rows of the smallest own request that has any: the fewer rows, the more a host learns of each."""
    requests = (Kind.FORWARD, Kind.BACKWARD, Kind.EVALUATE)
    rows = [s.smallest for (to, _, kind), s in entries.sent.items() if to == peer and kind in requests]
    return min((count for count in rows if count), default=None)


def _messages(kind: Kind, sent: Sent, hidden_size: int) -> dict[str, object]:
    """Bytes by part, from sums alone: every part but the last two is so many bytes per row or slot."""
    parts = {ROWS_ARE[kind]: sent.rows * hidden_size * sent.dtype.size}
    if kind in (Kind.FORWARD, Kind.EVALUATE):
        parts |= {"weights": 4 * sent.slots, "experts": 2 * sent.slots, "counts": sent.rows}
    elif kind is Kind.BACKWARD_REPLY:
        parts["weightGradients"] = 4 * sent.slots
    parts["gaps"] = sent.payload - sum(parts.values())
    return {
        "messages": sent.messages,
        "empty": sent.empty,
        "rows": sent.rows,
        "slots": sent.slots,
        "dtype": WireDtype(sent.dtype).name.lower(),
        "bytes": {"header": sent.messages * HEADER_SIZE, **parts, "padding": sent.padding},
    }
