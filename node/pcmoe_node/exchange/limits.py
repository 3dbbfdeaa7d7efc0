"""What a peer may send, computed from the agreement alone and checked before anything is allocated.

The sender pads by the same figures (`Limits.sized`), so a receiver can hold every length to an exact value.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NoReturn

from pcmoe_node.config import NodeConfig
from pcmoe_node.errors import ConfigError, ProtocolError
from pcmoe_node.exchange import layout, wire
from pcmoe_node.exchange.base import Header, Kind, WireDtype

CONTROL_LENGTHS: Mapping[Kind, int] = {
    Kind.STEP_END: layout.STEP_END.size,
    Kind.VOTE: layout.VOTE.size,
    Kind.DONE: 0,
    Kind.BEAT: wire.BEAT.size,
    Kind.ACK: 0,
    Kind.ABORT: wire.ABORT.size,
}
"""Payload bytes of every control message."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """Bounds of every field of every message between this node and its peers."""

    names: tuple[str, ...]
    index: int
    hidden_size: int
    dtype: WireDtype
    rows: int
    """Rows of one message."""
    slots_per_row: Mapping[tuple[int, int], int]
    """(host, layer) to experts of that host that one token may use there; absent: it hosts none."""
    micro_batches: int
    evaluation_micro_batches: int
    steps: int

    @staticmethod
    def from_config(config: NodeConfig) -> "Limits":
        """The limits that follow from the agreed parts of a configuration."""
        try:
            hidden_size = int(json.loads(config.model.architecture)["hidden_size"])
        except (ValueError, KeyError, TypeError):
            raise ConfigError("model.architecture: must be JSON with an integer hidden_size") from None
        per_row = config.quota.slots_per_row  # the most experts of any one host that a token may use
        slots: dict[tuple[int, int], int] = {}
        for place in config.placement:
            for host in set(place.hosts or ()):
                slots[host, place.layer] = min(per_row, (place.hosts or ()).count(host))
        training = config.training
        return Limits(
            names=tuple(peer.name for peer in config.participants),
            index=config.index,
            hidden_size=hidden_size,
            dtype={"float32": WireDtype.FLOAT32, "bfloat16": WireDtype.BFLOAT16}[config.transport.wire_dtype],
            rows=config.quota.rows_per_message,
            slots_per_row=slots,
            micro_batches=training.micro_batches_per_step,
            evaluation_micro_batches=-(-training.evaluation_sequences // training.sequences_per_micro_batch),
            steps=config.total_steps,
        )

    def largest(self, kind: Kind, host: int) -> int:
        """Bytes of the longest payload of a tensor message from or to `host`: every row, every slot."""
        per_row = max((n for (peer, _), n in self.slots_per_row.items() if peer == host), default=1)
        header = Header(kind=kind, dtype=self.dtype, rows=self.rows, slots=self.rows * per_row)
        return layout.sections(header, self.hidden_size).length

    def padded_length(self, header: Header, host: int) -> int:
        """Bytes that the payload takes on the wire: padded for tensors, exact for control messages."""
        if header.kind in CONTROL_LENGTHS:
            return CONTROL_LENGTHS[header.kind]
        length = layout.sections(header, self.hidden_size).length
        return layout.padded(length, self.largest(header.kind, host))

    def sized(self, header: Header, host: int) -> Header:
        """The header with its lengths filled in. `host` is the participant whose experts it is about."""
        if header.kind in CONTROL_LENGTHS:
            return replace(header, payload_length=CONTROL_LENGTHS[header.kind], pad_length=0)
        length = layout.sections(header, self.hidden_size).length
        pad = layout.padded(length, self.largest(header.kind, host)) - length
        return replace(header, payload_length=length, pad_length=pad)

    def check(self, peer: int, header: Header) -> None:
        """Raise a `ProtocolError` naming peer, field, value and rule unless `peer` may send us this."""
        if header.kind in layout.REQUESTS:
            self._check_tensors(peer, header, host=self.index)
        elif header.kind in layout.REPLIES:
            self._check_tensors(peer, header, host=peer)
        elif header.kind in CONTROL_LENGTHS:
            self._check_control(peer, header)
        else:
            self._fault(peer, header, "kind", header.kind.name, "has no place between participants")

    def _check_control(self, peer: int, header: Header) -> None:
        for name in ("rows", "slots", "layer", "micro_batch", "pad_length"):
            self._require(peer, header, name, getattr(header, name), 0, 0)
        self._require(peer, header, "step", header.step, 0, self.steps)
        if header.dtype is not WireDtype.NONE:
            self._fault(peer, header, "dtype", header.dtype.name, "must be NONE")
        length = CONTROL_LENGTHS[header.kind]
        self._require(peer, header, "payload_length", header.payload_length, length, length)

    def _check_tensors(self, peer: int, header: Header, host: int) -> None:
        if header.dtype is not self.dtype:
            self._fault(peer, header, "dtype", header.dtype.name, f"must be the agreed {self.dtype.name}")
        per_row = self.slots_per_row.get((host, header.layer))
        if per_row is None:
            rule = f"must be one with experts at {self.names[host]}"
            self._fault(peer, header, "layer", header.layer, rule)
        evaluation = header.kind in (Kind.EVALUATE, Kind.EVALUATE_REPLY)
        micro_batches = self.evaluation_micro_batches if evaluation else self.micro_batches
        self._require(peer, header, "micro_batch", header.micro_batch, 0, micro_batches - 1)
        self._require(peer, header, "step", header.step, 0, self.steps if evaluation else self.steps - 1)
        self._require(peer, header, "rows", header.rows, 0, self.rows)
        fewest = header.rows if header.kind in (Kind.FORWARD, Kind.EVALUATE) else 0
        self._require(peer, header, "slots", header.slots, fewest, header.rows * per_row)
        expected = self.sized(header, host)
        for name in ("payload_length", "pad_length"):
            value = getattr(expected, name)
            self._require(peer, header, name, getattr(header, name), value, value)

    def _require(self, peer: int, header: Header, name: str, value: int, low: int, high: int) -> None:
        if not low <= value <= high:
            rule = f"must be {low}" if low == high else f"must be from {low} to {high}"
            self._fault(peer, header, name, value, rule)

    def _fault(self, peer: int, header: Header, name: str, value: int | str, rule: str) -> NoReturn:
        raise ProtocolError(f"{self.names[peer]} sent {header.kind.name} with {name} {value}: {rule}")
