"""What the I/O thread knows of each peer, and the few messages of the transport itself."""

from dataclasses import dataclass, field

from pcmoe_node.errors import NodeError, PeerLostError
from pcmoe_node.exchange import wire
from pcmoe_node.exchange.base import Buffer, Header, Kind, Message
from pcmoe_node.exchange.buffers import BufferPool
from pcmoe_node.exchange.inbox import Counters, Inbox
from pcmoe_node.exchange.limits import Limits
from pcmoe_node.exchange.tls.connection import Connection

CONTROL = 0
"""Number of the control connection; tensors travel on the others."""


@dataclass(slots=True)
class Peer:
    """What the I/O thread knows of a peer. Others read it; only the I/O thread writes."""

    index: int
    name: str
    incarnation: str = ""
    connections: dict[int, Connection] = field(default_factory=dict)
    heard: float = 0.0
    """When its last byte came (monotonic)."""
    counter: int = -1
    phase: str = ""
    moved: float = 0.0
    """When its counter last rose."""
    left: bool = False
    """It has said goodbye on every connection."""
    over: bool = False
    """It has failed: what it sends is thrown away."""
    doubt: tuple[float, NodeError] | None = None
    """A connection has ended; unless its reason comes before this time, this is the failure."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Parts:
    """What the transport shares with its I/O thread."""

    index: int
    names: tuple[str, ...]
    connections: int
    """Data connections per peer."""
    peer_timeout: float
    limits: Limits
    pool: BufferPool
    inbox: Inbox
    counters: Counters


def left_too_early(name: str) -> PeerLostError:
    """There is work for a peer that has said goodbye."""
    return PeerLostError(f"{name} left before it was done")


def control_message(kind: Kind, payload: bytes) -> Message:
    """A control message with its own small buffer."""
    return Message(Header(kind=kind, payload_length=len(payload)), Buffer(bytearray(payload)))


def abort_message(error: NodeError, origin: int, reason: str | None = None) -> Message:
    """An ABORT: the run ends with `error`, which began at participant `origin` (for `reason`, if told)."""
    told = error if reason is None else type(error)(reason)
    return control_message(Kind.ABORT, wire.encode_abort(told, origin))
