"""Where things stand in a payload, and how long it is. Sections start at multiples of 16 bytes.

    FORWARD, EVALUATE                x [rows, H] | weights [slots] f32 | experts [slots] u16 | slots per row [rows] u8
    FORWARD_REPLY, EVALUATE_REPLY    y [rows, H]
    BACKWARD                         dy [rows, H]
    BACKWARD_REPLY                   dx [rows, H] | dweights [slots] f32
    STEP_END                         tokens u64, ok u8
    VOTE                             squared norm f64, finite u8

`experts` are the host's own numbers within the layer, ascending with the model's. Slots are sorted by row.
"""

import struct
from dataclasses import dataclass

from pcmoe_node.exchange.base import Header, Kind

ALIGNMENT = 16
BUCKETS = 16
STEP_END = struct.Struct("<QB")
VOTE = struct.Struct("<dB")

REQUESTS = (Kind.FORWARD, Kind.BACKWARD, Kind.EVALUATE)
REPLY_TO = {
    Kind.FORWARD: Kind.FORWARD_REPLY,
    Kind.BACKWARD: Kind.BACKWARD_REPLY,
    Kind.EVALUATE: Kind.EVALUATE_REPLY,
}
REPLIES = tuple(REPLY_TO.values())


@dataclass(frozen=True, slots=True)
class Sections:
    """Byte offsets of a tensor payload; an absent section has the offset of the end."""

    weights: int
    experts: int
    counts: int
    length: int


def _aligned(length: int) -> int:
    return -(-length // ALIGNMENT) * ALIGNMENT


def sections(header: Header, hidden_size: int) -> Sections:
    """Offsets of a tensor message (`REQUESTS`, `REPLIES`) with `header.rows` rows of `hidden_size` elements."""
    weights = _aligned(header.rows * hidden_size * header.dtype.size)
    if header.kind in (Kind.FORWARD, Kind.EVALUATE):
        experts = weights + _aligned(4 * header.slots)
        counts = experts + _aligned(2 * header.slots)
        return Sections(weights, experts, counts, counts + _aligned(header.rows))
    if header.kind is Kind.BACKWARD_REPLY:
        end = weights + _aligned(4 * header.slots)
        return Sections(weights, end, end, end)
    return Sections(weights, weights, weights, weights)


def padded(length: int, largest: int) -> int:
    """`length` raised to the next sixteenth of `largest`, at least one: what a message takes on the wire."""
    unit = _aligned(-(-largest // BUCKETS))
    return max(1, -(-length // unit)) * unit


def gaps(header: Header, hidden_size: int) -> list[tuple[int, int]]:
    """The byte ranges between sections that no section writes; the sender zeroes them."""
    at = sections(header, hidden_size)
    ends = [(header.rows * hidden_size * header.dtype.size, at.weights)]
    if header.kind in (Kind.FORWARD, Kind.EVALUATE):
        ends.append((at.weights + 4 * header.slots, at.experts))
        ends.append((at.experts + 2 * header.slots, at.counts))
        ends.append((at.counts + header.rows, at.length))
    elif header.kind is Kind.BACKWARD_REPLY:
        ends.append((at.weights + 4 * header.slots, at.length))
    return [(start, end) for start, end in ends if start < end]
