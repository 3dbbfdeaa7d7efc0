"""What the I/O thread knows of each peer, and the few messages of the transport itself."""

from dataclasses import dataclass, field

from pcmoe_node.errors import NodeError, PeerLostError
from pcmoe_node.exchange import wire
from pcmoe_node.exchange.base import DROPPED_AFTER_GOODBYE, Buffer, Header, Kind, Message, Reach
from pcmoe_node.exchange.buffers import BufferPool
from pcmoe_node.exchange.inbox import Counters, Inbox
from pcmoe_node.exchange.limits import Limits
from pcmoe_node.exchange.tls.connection import Connection
from pcmoe_node.exchange.tls.link import Link

CONTROL = 0
"""Number of the control link; tensors travel on the others."""


@dataclass(slots=True)
class Peer:
    """What the I/O thread knows of a peer. Others read it; only the I/O thread writes."""

    index: int
    name: str
    links: tuple[Link, ...]
    connections: dict[int, Connection] = field(default_factory=dict)
    """By number of the link."""
    redial: dict[int, float] = field(default_factory=dict)
    """By number of the link: from when on (monotonic) its connection is to be replaced."""
    leaf: str = ""
    """SHA-256 of the certificate of its newest connection, hex."""
    heard: float = 0.0
    """When its last byte came (monotonic)."""
    counter: int = -1
    phase: str = ""
    waiting: frozenset[int] = frozenset()
    moved: float = 0.0
    """When its counter last rose."""
    round_trip: float | None = None
    """Seconds to it and back, as TCP has it."""
    trouble: str = ""
    """How its last connection broke, for people."""
    attempt: str = ""
    """Why the last attempt at a new one failed, for people."""
    left: bool = False
    """It has said goodbye on every connection."""
    over: bool = False
    """It has failed: what it sends is thrown away."""
    doubt: tuple[float, NodeError] | None = None
    """It has said goodbye at the wrong time; unless its reason comes before this time, this is the failure."""

    @property
    def owed(self) -> bool:
        """There is something for it that may not be dropped."""
        kinds = [message.header.kind for link in self.links for message in link.pending]
        return any(kind not in DROPPED_AFTER_GOODBYE for kind in kinds)

    @property
    def reach(self) -> Reach:
        """How it is reached now."""
        up = self.missing is None and not (self.left or self.over)
        return Reach(up, self.round_trip if up else None)

    @property
    def missing(self) -> int | None:
        """The first link without a connection."""
        return next((link.number for link in self.links if link.number not in self.connections), None)


@dataclass(frozen=True, kw_only=True, slots=True)
class Parts:
    """What the transport shares with its I/O thread."""

    index: int
    names: tuple[str, ...]
    members: tuple[int, ...]
    """Participants of the view, oneself included."""
    view: int
    """Number of the view."""
    connections: int
    """Data links per peer."""
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
    buffer = Buffer(bytearray(payload)) if payload else None
    return Message(Header(kind=kind, payload_length=len(payload)), buffer)


def abort_message(error: NodeError, me: int) -> Message:
    """An ABORT: this node ends with `error`."""
    return control_message(Kind.ABORT, wire.encode_abort(error, me))
