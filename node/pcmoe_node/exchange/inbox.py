"""What both transports share: the queue of arrivals, the counters, and what is known of a peer's progress."""

import queue
import threading
from collections.abc import Iterable
from dataclasses import replace

from pcmoe_node.errors import NodeError
from pcmoe_node.exchange.base import UNNUMBERED, Arrival, Header, Kind, Message, Traffic
from pcmoe_node.exchange.wire import HEADER_SIZE


class Inbox:
    """Arrivals in order. Any thread delivers, one receives. Of each peer only the first failure is delivered."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Arrival] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._failures: dict[int, NodeError] = {}
        self._closed = False

    @property
    def failure(self) -> NodeError | None:
        """The failure that was delivered first."""
        return next(iter(self._failures.values()), None)

    def deliver(self, peer: int, message: Message) -> None:
        """Queue a message; after `close` its payload is released instead."""
        if self._closed:
            if message.payload is not None:
                message.payload.release()
            return
        self._queue.put(Arrival(peer, message))

    def fail(self, peer: int, failure: NodeError) -> bool:
        """Queue the end of a peer. False when one of it came before, or the inbox is closed.

        Later failures of others count too: a receiver may let the first one pass, because it needs that peer no more.
        """
        with self._lock:
            if peer in self._failures or self._closed:
                return False
            self._failures[peer] = failure
        self._queue.put(Arrival(peer, failure=failure))
        return True

    def nudge(self, peer: int) -> None:
        """Queue an arrival that says nothing, so that whoever waits looks around."""
        if not self._closed:
            self._queue.put(Arrival(peer))

    def receive(self, timeout: float) -> Arrival | None:
        """The next arrival, or None after `timeout` seconds."""
        try:
            if timeout <= 0:
                return self._queue.get_nowait()
            return self._queue.get(timeout=timeout)
        except queue.Empty:
            return None

    def close(self) -> None:
        """Take no more, and release the payloads that nobody will receive."""
        self._closed = True
        while (arrival := self.receive(0)) is not None:
            if arrival.message is not None and arrival.message.payload is not None:
                arrival.message.payload.release()


class Counters:
    """Traffic per peer, as handed over for sending and as delivered: frames with padding, without TLS.

    The carrier's own kinds aren't counted, nor what is sent again after a cut, so that equal runs count equal bytes.
    """

    def __init__(self, peers: Iterable[int]) -> None:
        self._lock = threading.Lock()
        self._traffic = {peer: Traffic() for peer in peers}

    def sent(self, peer: int, header: Header) -> None:
        """A message was queued for `peer`."""
        if header.kind in UNNUMBERED:
            return
        with self._lock:
            traffic = self._traffic[peer]
            traffic.bytes_sent += HEADER_SIZE + header.payload_length + header.pad_length
            traffic.messages_sent += 1
            if header.kind in (Kind.FORWARD, Kind.EVALUATE):
                traffic.hidden_rows_sent += header.rows

    def received(self, peer: int, header: Header) -> None:
        """A message of `peer` is complete."""
        if header.kind in UNNUMBERED:
            return
        with self._lock:
            traffic = self._traffic[peer]
            traffic.bytes_received += HEADER_SIZE + header.payload_length + header.pad_length
            traffic.messages_received += 1

    def copy(self) -> dict[int, Traffic]:
        """The counters as they are now."""
        with self._lock:
            return {peer: replace(traffic) for peer, traffic in self._traffic.items()}


def seal(message: Message) -> int:
    """Bytes of the payload on the wire, after its padding was overwritten with zeros.

    A pooled buffer holds what an earlier message left; none of that may ever leave this machine.
    """
    header = message.header
    total = header.payload_length + header.pad_length
    if message.payload is None:
        if total:
            raise ValueError(f"{header.kind.name} has no payload, and its header says {total} bytes")
        return 0
    view = message.payload.view
    if len(view) < total:
        raise ValueError(
            f"{header.kind.name} has a payload of {len(view)} bytes, and its header says {total}"
        )
    if header.pad_length:
        view[header.payload_length : total] = bytes(header.pad_length)
    return total


def relayed(
    kind: type[NodeError], names: tuple[str, ...], sender: int, origin: int, reason: str
) -> NodeError:
    """The failure that an ABORT means here: of the class it began with, root cause first."""
    if origin == sender or origin >= len(names):
        return kind(f"{names[sender]} ended the run: {reason}", origin=sender, reason=reason)
    text = f"{names[origin]} ended the run: {reason} (reported by {names[sender]})"
    return kind(text, origin=origin, reason=reason)
