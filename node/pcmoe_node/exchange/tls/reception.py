"""What becomes of a frame: refused before it costs memory, taken by the transport itself, or delivered."""

import time
from collections.abc import Callable, Mapping

from pcmoe_node.errors import NodeError, ProtocolError
from pcmoe_node.exchange import wire
from pcmoe_node.exchange.base import UNNUMBERED, Buffer, Header, Kind, Message
from pcmoe_node.exchange.inbox import relayed
from pcmoe_node.exchange.tls.connection import Connection
from pcmoe_node.exchange.tls.peers import CONTROL, Parts, Peer


class Reception:
    """Takes every connection's frames, on the I/O thread. `fail(peer, failure)` is called for an ABORT."""

    def __init__(
        self, parts: Parts, peers: Mapping[int, Peer], fail: Callable[[Peer, NodeError], None]
    ) -> None:
        self._parts = parts
        self._peers = peers
        self._fail = fail
        self.repeated = 0
        """Messages that came a second time after a cut, and were dropped."""

    def expect(self, connection: Connection, data: memoryview) -> tuple[Header, Buffer | None]:
        """Check a header before anything is allocated for it."""
        name = self._parts.names[connection.peer]
        try:
            header = wire.decode_header(data)
        except ProtocolError as error:
            raise ProtocolError(f"{name} sent a frame that can't be read: {error}") from None
        self._parts.limits.check(connection.peer, header)
        control = header.kind >= Kind.STEP_END
        if header.kind is not Kind.ACK and control is not (connection.link.number == CONTROL):
            raise ProtocolError(
                f"{name} sent {header.kind.name} on connection {connection.link.number}: wrong one"
            )
        self._check_stamp(connection, header, wire.decode_stamp(data))
        total = header.payload_length + header.pad_length
        return header, self._parts.pool.allocate(total) if total else None

    def deliver(self, connection: Connection, header: Header, payload: Buffer | None) -> None:
        """A frame is complete."""
        peer = self._peers[connection.peer]
        if header.kind in UNNUMBERED:
            data = b"" if payload is None else bytes(payload.view[: header.payload_length])
            _release(payload)
            if header.kind is Kind.BEAT:
                self._beaten(peer, data)
            elif header.kind is Kind.ABORT:
                self._aborted(peer, data)
            return
        if not connection.link.accept(connection.sequence):
            self.repeated += 1
            _release(payload)
        elif peer.over:
            _release(payload)
        else:
            self._parts.counters.received(peer.index, header)
            self._parts.inbox.deliver(peer.index, Message(header, payload))

    def _check_stamp(self, connection: Connection, header: Header, stamp: wire.Stamp) -> None:
        what = f"{self._parts.names[connection.peer]} sent {header.kind.name} with"
        if stamp.view != self._parts.view:
            raise ProtocolError(f"{what} view {stamp.view}: must be {self._parts.view}")
        link = connection.link
        if header.kind in UNNUMBERED:
            if stamp.sequence:
                raise ProtocolError(f"{what} sequence {stamp.sequence}: must be 0")
        elif not link.expects(stamp.sequence):
            raise ProtocolError(
                f"{what} sequence {stamp.sequence}: must be at most {link.delivered + 1}, from 1"
            )
        try:
            link.acknowledge(stamp.acknowledged)
        except ProtocolError as error:
            raise ProtocolError(f"{what} a wrong count: {error}") from None
        connection.sequence = stamp.sequence

    def _beaten(self, peer: Peer, data: bytes) -> None:
        counter, phase, peer.waiting = wire.decode_beat(data)
        if counter != peer.counter:
            peer.counter, peer.phase, peer.moved = counter, phase, time.monotonic()

    def _aborted(self, peer: Peer, data: bytes) -> None:
        kind, origin, reason = wire.decode_abort(data)
        self._fail(peer, relayed(kind, self._parts.names, peer.index, origin, reason))


def _release(payload: Buffer | None) -> None:
    if payload is not None:
        payload.release()
