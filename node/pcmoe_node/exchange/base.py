"""The seam below dispatch and combine: messages, the buffers they live in, and what a transport must do.

A transport carries `Message`s between participants, which are known by their index in the agreement's sorted
list. `local` (threads of one process) and `tls` (sockets, mutual TLS) stand behind this seam and are held to one
conformance suite. Imports no torch: tensors enter and leave through buffers.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from enum import IntEnum
from typing import Protocol

from pcmoe_node.errors import NodeError


class Kind(IntEnum):
    """Every kind of message, once.

    Handshake:      HELLO, WELCOME, REFUSED, DIFFERS (carries the canonical agreement to a verified peer)
    Owner to host:  FORWARD (hidden states), BACKWARD (gradients), EVALUATE (hidden states, leaves no state)
    Host to owner:  FORWARD_REPLY, BACKWARD_REPLY, EVALUATE_REPLY
    Step:           STEP_END (an owner is done), VOTE (a host's gradient norm)
    End:            DONE (the sender knows that the last round is committed, and needs nobody more)
    Carrier:        BEAT (alive, how far, and whom it waits for), ACK (taken in full so far), ABORT (the sender ends)
    Coordinator:    REPORT (where a node stands), NOTICE (the view that stands, what is committed)
    """

    HELLO = 1
    WELCOME = 2
    REFUSED = 3
    DIFFERS = 4
    FORWARD = 16
    FORWARD_REPLY = 17
    BACKWARD = 18
    BACKWARD_REPLY = 19
    EVALUATE = 20
    EVALUATE_REPLY = 21
    STEP_END = 32
    VOTE = 33
    DONE = 34
    BEAT = 48
    ACK = 49
    ABORT = 50
    REPORT = 64
    NOTICE = 65


UNNUMBERED = (Kind.BEAT, Kind.ACK, Kind.ABORT, Kind.REPORT, Kind.NOTICE)
"""Kinds of which only the latest counts: neither numbered nor sent again after a cut."""

DROPPED_AFTER_GOODBYE = (Kind.DONE, *UNNUMBERED)
"""What may be sent to a peer that has left, and is dropped; anything else means that it left too early."""


class WireDtype(IntEnum):
    """Element type of the hidden states or gradients in a payload."""

    NONE = 0
    FLOAT32 = 1
    BFLOAT16 = 2

    @property
    def size(self) -> int:
        """Bytes per element."""
        return {WireDtype.NONE: 0, WireDtype.FLOAT32: 4, WireDtype.BFLOAT16: 2}[self]


@dataclass(frozen=True, kw_only=True, slots=True)
class Header:
    """What stands before every payload (`wire.py` has its bytes)."""

    kind: Kind
    step: int = 0
    """Global step; for EVALUATE the version, that is, the number of steps decided so far."""
    micro_batch: int = 0
    layer: int = 0
    request: int = 0
    """Chosen by the owner, unique per (owner, host); a reply repeats it."""
    dtype: WireDtype = WireDtype.NONE
    rows: int = 0
    """Distinct tokens."""
    slots: int = 0
    """(token, expert) pairs."""
    payload_length: int = 0
    """Bytes that mean something."""
    pad_length: int = 0
    """Zero bytes after them, so that sizes on the network tell little."""


class Buffer:
    """A writable block of memory of a pool; `release` gives it back, once."""

    __slots__ = ("_give_back", "view")

    def __init__(self, memory: bytearray, give_back: Callable[[bytearray], None] | None = None) -> None:
        self.view = memoryview(memory)
        self._give_back = give_back

    def release(self) -> None:
        """Give the memory back to its pool. The view must not be used any more; a second call does nothing."""
        if self._give_back is not None:
            give_back, self._give_back = self._give_back, None
            memory = self.view.obj
            assert isinstance(memory, bytearray)
            give_back(memory)


@dataclass(frozen=True, slots=True)
class Message:
    """A header and its payload (`payload_length + pad_length` bytes at the buffer's start)."""

    header: Header
    payload: Buffer | None = None


@dataclass(frozen=True, slots=True)
class Arrival:
    """A message from a peer, or the end of that peer (`failure`): lost, silent, aborted, malformed, refused."""

    peer: int
    message: Message | None = None
    failure: NodeError | None = None


@dataclass(slots=True)
class Traffic:
    """Bytes and messages exchanged with one peer since start; content counts padding, not TLS."""

    bytes_sent: int = 0
    bytes_received: int = 0
    messages_sent: int = 0
    messages_received: int = 0
    hidden_rows_sent: int = field(default=0)
    """Rows of hidden states (FORWARD, EVALUATE) sent to this peer."""

    def __add__(self, other: "Traffic") -> "Traffic":
        """Both together."""
        return Traffic(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


@dataclass(frozen=True, kw_only=True, slots=True)
class Pulse:
    """What a peer's beats say. A wait ends the run when its root stands still for longer than agreed."""

    counter: int
    """Raised by the peer whenever something moved there."""
    phase: str
    still_seconds: float
    """Time since the counter was last seen to rise."""
    left: bool
    """The peer has said goodbye."""
    waiting: frozenset[int] = frozenset()
    """Participants that the peer waits for."""


@dataclass(frozen=True, slots=True)
class Reach:
    """How a peer is reached now."""

    up: bool
    """All its connections stand."""
    round_trip: float | None = None
    """Seconds, as the kernel has it; None where it doesn't tell."""


@dataclass(frozen=True, slots=True)
class Presented:
    """How a peer has proved who it is: SHA-256 of certificates, hex."""

    leaf: str
    """Of its newest connection."""
    authorities: str
    """Those that may sign for it, as the agreement lists them; more than one: separated by ", "."""


class Transport(Protocol):
    """Carries messages between the members of one view, each once and in order per pair and lane.

    `receive` has one caller; everything else may be called from any thread.
    """

    def open(self, timeout: float) -> None:
        """Be connected to every peer, both ways welcomed, within `timeout` seconds, or raise a `NodeError`."""

    def allocate(self, size: int) -> Buffer:
        """A buffer of at least `size` bytes from the pool, content undefined; never blocks."""

    def send(self, peer: int, message: Message) -> None:
        """Queue a message and return at once; the transport releases its payload when the peer has it."""

    def receive(self, timeout: float) -> Arrival | None:
        """The next arrival, or None after `timeout` seconds. The caller releases its payload."""

    def interrupt(self, error: NodeError | None) -> None:
        """End a `receive` now: with this failure, or, without one, with an arrival that says nothing."""

    def progress(self, phase: str) -> None:
        """Something moved: raises the counter that the beats carry, with the phase it moved in."""

    def waiting(self, participants: frozenset[int]) -> None:
        """Whom this node waits for, nobody while it works: the beats say so."""

    def pulses(self) -> dict[int, Pulse]:
        """The last beat of every peer: its progress counter, its phase, and for how long it has not moved."""

    def pulse(self) -> Pulse:
        """The same of this node itself."""

    def reach(self) -> dict[int, Reach]:
        """How every peer is reached; answers at once."""

    def traffic(self) -> dict[int, Traffic]:
        """A copy of the counters, per peer."""

    def presented(self) -> dict[int, Presented]:
        """The certificates of every peer that has shown one."""

    @property
    def reconnected(self) -> int:
        """Connections that took the place of one that broke or whose certificate was renewed."""

    def abort(self, error: NodeError) -> None:
        """Tell every peer that this node ends, with its exit code and reason, then close (at most 2 s)."""

    def close(self) -> None:
        """Say goodbye, write what is queued (at most 5 s), close everything, join the I/O thread. Idempotent."""
