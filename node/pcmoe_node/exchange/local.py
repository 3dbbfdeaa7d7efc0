"""Transports of N participants in one process, joined by queues: the readable one, the reference for `tls`.

Nothing is copied: the payload's buffer changes hands, and returns to its own pool when the receiver releases
it.
"""

import threading
import time
from collections.abc import Callable, Sequence

from pcmoe_node.config import NodeConfig
from pcmoe_node.errors import NodeError, PeerLostError, ProtocolError
from pcmoe_node.exchange.base import (
    DROPPED_AFTER_GOODBYE,
    Arrival,
    Buffer,
    Message,
    Presented,
    Pulse,
    Reach,
    Traffic,
)
from pcmoe_node.exchange.buffers import BufferPool
from pcmoe_node.exchange.inbox import Counters, Inbox, relayed, seal
from pcmoe_node.exchange.limits import Limits
from pcmoe_node.exchange.wire import TEXT_LIMIT, printable

Hook = Callable[[int, int, Message, Callable[[], None]], None]
"""(sender, receiver, message, deliver): called for every message; may call `deliver` later, in any order."""


class LocalNetwork:
    """The participants of one process. `transport(i)` is participant i's."""

    def __init__(self, configs: Sequence[NodeConfig] | Sequence[str], hook: Hook | None = None) -> None:
        self.names: tuple[str, ...] = tuple(c if isinstance(c, str) else c.participant for c in configs)
        limits = [None if isinstance(c, str) else Limits.from_config(c) for c in configs]
        self._transports = [LocalTransport(self, i, limit) for i, limit in enumerate(limits)]
        self.hook: Hook = hook or (lambda _sender, _receiver, _message, deliver: deliver())

    def transport(self, index: int) -> "LocalTransport":
        """The transport of one participant, always the same object."""
        return self._transports[index]

    def others(self, index: int) -> "list[LocalTransport]":
        """The transports of everybody else."""
        return [transport for transport in self._transports if transport.index != index]

    def kill(self, index: int) -> None:
        """End a participant without a word, as a crash does: its peers lose it."""
        self._transports[index].die()


class LocalTransport:
    """One participant's end of a `LocalNetwork`; see `base.Transport`."""

    def __init__(self, network: LocalNetwork, index: int, limits: Limits | None) -> None:
        self.index = index
        self._network = network
        self._limits = limits
        self._pool = BufferPool()
        self._inbox = Inbox()
        self._counters = Counters(i for i in range(len(network.names)) if i != index)
        self._lock = threading.Lock()
        self._closed = False
        self._pulse = (0, "", time.monotonic())
        self._waiting: frozenset[int] = frozenset()

    def open(self, timeout: float) -> None:
        """Nothing to wait for: everybody is here."""

    def allocate(self, size: int) -> Buffer:
        """A buffer of at least `size` bytes, content undefined."""
        return self._pool.allocate(size)

    def send(self, peer: int, message: Message) -> None:
        """Hand the message over; the receiver releases its payload."""
        seal(message)
        self._counters.sent(peer, message.header)
        target = self._network.transport(peer)
        self._network.hook(self.index, peer, message, lambda: target.deliver(self.index, message))

    def deliver(self, sender: int, message: Message) -> None:
        """A message of `sender` is here: checked as if it had come over a wire."""
        if self._closed:
            if message.payload is not None:
                message.payload.release()
            if message.header.kind not in DROPPED_AFTER_GOODBYE:
                self._network.transport(sender).lose(self.index, "left before it was done")
            return
        try:
            if self._limits is not None:
                self._limits.check(sender, message.header)
        except ProtocolError as error:
            if message.payload is not None:
                message.payload.release()
            if self._inbox.fail(sender, error):
                self._network.transport(sender).end(self.index, error, self.index, str(error))
            return
        self._counters.received(sender, message.header)
        self._inbox.deliver(sender, message)

    def end(self, peer: int, error: NodeError, origin: int, reason: str) -> None:
        """`peer` ends the run; it began at `origin` for `reason`."""
        reason = printable(reason, TEXT_LIMIT)
        self._inbox.fail(peer, relayed(type(error), self._network.names, peer, origin, reason))

    def lose(self, peer: int, how: str) -> None:
        """`peer` went away without a goodbye."""
        self._inbox.fail(peer, PeerLostError(f"{self._network.names[peer]} {how}"))

    def receive(self, timeout: float) -> Arrival | None:
        """The next arrival, or None after `timeout` seconds."""
        return self._inbox.receive(timeout)

    def interrupt(self, error: NodeError | None) -> None:
        """End a `receive` now."""
        if error is None:
            self._inbox.nudge(self.index)
        else:
            self._inbox.fail(self.index, error)

    def waiting(self, participants: frozenset[int]) -> None:
        """Whom this participant waits for."""
        self._waiting = participants

    def progress(self, phase: str) -> None:
        """Something moved."""
        with self._lock:
            self._pulse = (self._pulse[0] + 1, phase, time.monotonic())

    def pulses(self) -> dict[int, Pulse]:
        """What is known of each peer's progress."""
        return {other.index: other.pulse() for other in self._network.others(self.index)}

    def pulse(self) -> Pulse:
        """This participant's own progress."""
        counter, phase, since = self._pulse
        return Pulse(
            counter=counter,
            phase=phase,
            still_seconds=time.monotonic() - since,
            left=self._closed,
            waiting=self._waiting,
        )

    def reach(self) -> dict[int, Reach]:
        """Whoever has not ended is there."""
        here = not self._closed
        return {
            other.index: Reach(here and not other.pulse().left) for other in self._network.others(self.index)
        }

    def traffic(self) -> dict[int, Traffic]:
        """A copy of the counters."""
        return self._counters.copy()

    def presented(self) -> dict[int, Presented]:
        """Nobody needs a certificate here."""
        return {}

    @property
    def reconnected(self) -> int:
        """Nothing ever breaks here."""
        return 0

    def abort(self, error: NodeError) -> None:
        """Tell everybody that this participant ends, then close."""
        origin = self.index if error.origin is None else error.origin
        if not self._closed:
            for other in self._network.others(self.index):
                other.end(self.index, error, origin, error.reason)
        self.close()

    def die(self) -> None:
        """End without a word."""
        if not self._closed:
            for other in self._network.others(self.index):
                other.lose(self.index, "closed its connections without a goodbye")
        self.close()

    def close(self) -> None:
        """Take and send nothing more."""
        self._closed = True
        self._inbox.close()
