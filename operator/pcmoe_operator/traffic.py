"""What travels, in whole bytes, if every expert is as likely as any other; with padding, without TLS.

Per token and shared layer a host is used with probability 1 - C(E-h, k)/C(E, k) when it hosts h of E experts
and the router picks k; then the hidden state goes to it once, whatever the number of its experts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, comb

from pcmoe_node.exchange.base import Header, Kind, WireDtype
from pcmoe_node.exchange.layout import padded, sections
from pcmoe_operator.placement import LayerHosts, place
from pcmoe_operator.schema import Consortium
from pcmoe_operator.shape import ModelShape, shape_in

HEADER_BYTES = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Traffic:
    """Bytes between one participant and all others."""

    sent: int
    received: int

    def __add__(self, other: "Traffic") -> "Traffic":
        return Traffic(sent=self.sent + other.sent, received=self.received + other.received)

    def times(self, count: int) -> "Traffic":
        """The same, `count` times."""
        return Traffic(sent=self.sent * count, received=self.received * count)


NOTHING = Traffic(sent=0, received=0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Wire:
    """What sizes of messages follow from."""

    hidden_size: int
    dtype: WireDtype
    rows: int
    """Tokens of a micro-batch: the most rows of one message."""
    slots_per_row: int
    """The most experts of one host that one token uses."""

    def message(self, kind: Kind, rows: int, slots: int) -> int:
        """Bytes of one message on the wire: header, payload, padding."""
        return HEADER_BYTES + padded(self._length(kind, rows, slots), self.largest(kind))

    def largest(self, kind: Kind) -> int:
        """Bytes of the longest payload of a kind: every token goes to this host, with all its slots."""
        return self._length(kind, self.rows, self.rows * self.slots_per_row)

    def _length(self, kind: Kind, rows: int, slots: int) -> int:
        header = Header(kind=kind, dtype=self.dtype, rows=rows, slots=slots)
        return sections(header, self.hidden_size).length


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """What memory and traffic follow from."""

    consortium: Consortium
    shape: ModelShape
    placement: tuple[LayerHosts, ...]
    wire: Wire

    @property
    def count(self) -> int:
        """Participants."""
        return len(self.consortium.names)

    @property
    def owners(self) -> int:
        """Owners of one step."""
        return self.count if self.consortium.agreement.training.schedule == "Concurrent" else 1


def layout_of(consortium: Consortium) -> Layout:
    """The layout of a consortium; its configuration was checked when the manifest was parsed."""
    shape = shape_in(consortium.config)
    placement = place(consortium, shape)
    count, training = len(consortium.names), consortium.agreement.training
    most = max((layer.hosted_by(host) for layer in placement for host in range(count)), default=0)
    wire = Wire(
        hidden_size=shape.hidden_size,
        dtype=WireDtype[consortium.agreement.transport.wire_dtype.upper()],
        rows=training.sequences_per_micro_batch * training.sequence_length,
        slots_per_row=max(1, min(shape.top_k, most)),
    )
    return Layout(consortium=consortium, shape=shape, placement=placement, wire=wire)


def expected_rows(rows: int, hosted: int, shape: ModelShape) -> int:
    """Tokens of `rows` that use at least one of `hosted` experts of a layer, rounded up."""
    missed = Fraction(comb(shape.experts - hosted, shape.top_k), comb(shape.experts, shape.top_k))
    return ceil(rows * (1 - missed))


def expected_slots(rows: int, hosted: int, shape: ModelShape) -> int:
    """(token, expert) pairs of `rows` tokens at `hosted` experts of a layer, rounded up."""
    return ceil(Fraction(rows * shape.top_k * hosted, shape.experts))


def micro_batch_bytes(wire: Wire, hosted: int, shape: ModelShape, *, training: bool) -> Traffic:
    """One owner's micro-batch at one host with `hosted` experts of one layer, seen by the owner.

    A host with none of a layer's experts is not asked. Evaluation has no way back.
    """
    if hosted == 0:
        return NOTHING
    rows, slots = expected_rows(wire.rows, hosted, shape), expected_slots(wire.rows, hosted, shape)
    sent = wire.message(Kind.FORWARD, rows, slots)
    received = wire.message(Kind.FORWARD_REPLY, rows, slots)
    if training:
        sent += wire.message(Kind.BACKWARD, rows, slots)
        received += wire.message(Kind.BACKWARD_REPLY, rows, slots)
    return Traffic(sent=sent, received=received)


def host_bytes(layout: Layout, *, training: bool) -> tuple[Traffic, ...]:
    """For each host: one micro-batch of an owner over all shared layers, as that owner sees it."""
    by_hosted: dict[int, Traffic] = {}
    totals = [NOTHING] * layout.count
    for layer in layout.placement:
        for host in range(layout.count):
            hosted = layer.hosted_by(host)
            if hosted not in by_hosted:
                by_hosted[hosted] = micro_batch_bytes(layout.wire, hosted, layout.shape, training=training)
            totals[host] += by_hosted[hosted]
    return tuple(totals)


def participant_bytes(hosts: Sequence[Traffic], participant: int) -> Traffic:
    """What one participant sends and receives when every participant does one micro-batch."""
    served = hosts[participant]
    others = Traffic(sent=served.received, received=served.sent).times(len(hosts) - 1)
    return sum((traffic for host, traffic in enumerate(hosts) if host != participant), others)


def traffic_of(layout: Layout) -> tuple[tuple[Traffic, Traffic], ...]:
    """(an average step, the whole run) of each participant; the run has its evaluations too."""
    terms = layout.consortium.agreement.training
    trained, evaluated = host_bytes(layout, training=True), host_bytes(layout, training=False)
    steps = terms.rounds * terms.steps_per_round
    # Sequential: every owner has every count-th step.
    shares = steps * terms.micro_batches_per_step * layout.owners // layout.count
    batches = -(-terms.evaluation.sequences // terms.sequences_per_micro_batch)
    evaluations = batches * (1 + terms.rounds // terms.evaluation.every_rounds)
    found = []
    for index in range(layout.count):
        training = participant_bytes(trained, index).times(shares)
        step = Traffic(sent=training.sent // steps, received=training.received // steps)
        found.append((step, training + participant_bytes(evaluated, index).times(evaluations)))
    return tuple(found)
