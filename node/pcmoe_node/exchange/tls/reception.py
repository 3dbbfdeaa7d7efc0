"""What becomes of a frame: refused before it costs memory, taken by the transport itself, or delivered."""

import time
from collections.abc import Callable, Mapping

from pcmoe_node.errors import NodeError, ProtocolError
from pcmoe_node.exchange import wire
from pcmoe_node.exchange.base import Buffer, Header, Kind, Message
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
        self.relayed: tuple[NodeError, int, str] | None = None
        """The failure that a peer told us, where it began, and its reason there."""

    def expect(self, connection: Connection, data: memoryview) -> tuple[Header, Buffer | None]:
        """Check a header before anything is allocated for it."""
        name = self._parts.names[connection.peer]
        try:
            header = wire.decode_header(data)
        except ProtocolError as error:
            raise ProtocolError(f"{name} sent a frame that can't be read: {error}") from None
        self._parts.limits.check(connection.peer, header)
        control = header.kind >= Kind.STEP_END
        if control is not (connection.number == CONTROL):
            raise ProtocolError(
                f"{name} sent {header.kind.name} on connection {connection.number}: wrong one"
            )
        total = header.payload_length + header.pad_length
        return header, self._parts.pool.allocate(total) if total else None

    def deliver(self, connection: Connection, header: Header, payload: Buffer | None) -> None:
        peer = self._peers[connection.peer]
        if header.kind in (Kind.BEAT, Kind.ABORT) and payload is not None:
            data = bytes(payload.view[: header.payload_length])
            payload.release()
            if header.kind is Kind.BEAT:
                self._beaten(peer, data)
            else:
                self._aborted(peer, data)
            return
        if peer.over:
            if payload is not None:
                payload.release()
            return
        self._parts.counters.received(peer.index, header)
        self._parts.inbox.deliver(peer.index, Message(header, payload))

    def _beaten(self, peer: Peer, data: bytes) -> None:
        counter, phase = wire.decode_beat(data)
        if counter != peer.counter:
            peer.counter, peer.phase, peer.moved = counter, phase, time.monotonic()

    def _aborted(self, peer: Peer, data: bytes) -> None:
        kind, origin, reason = wire.decode_abort(data)
        failure = relayed(kind, self._parts.names, peer.index, origin, reason)
        if self._parts.inbox.failure is None:
            self.relayed = (failure, origin, reason)
        self._fail(peer, failure)
