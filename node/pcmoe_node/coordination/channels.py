"""Connections between nodes and the coordinator: reports one way, notices the other, beats both ways.

A link here lives no longer than its connection: whoever connects anew says everything anew. Nothing is kept for a
second attempt, and nothing old can arrive late.
"""

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence

from pcmoe_node.coordination.words import LIMIT
from pcmoe_node.errors import NodeError, ProtocolError
from pcmoe_node.exchange import wire
from pcmoe_node.exchange.base import Buffer, Header, Kind, Message
from pcmoe_node.exchange.tls.connection import Connection
from pcmoe_node.exchange.tls.handshake import Welcomed
from pcmoe_node.exchange.tls.link import Link
from pcmoe_node.exchange.tls.loop import Loop
from pcmoe_node.exchange.tls.peers import control_message

GOODBYE_SECONDS = 0.5
TICK_SECONDS = 0.2


class Channels(ABC):
    """The I/O thread of a node's session, or of the coordinator. Everything not said to be anybody's is its own."""

    def __init__(self, name: str, parties: Sequence[str], words: Kind, peer_timeout: float) -> None:
        """`words` is the one kind, beside beats, that may arrive."""
        self.parties = tuple(parties)
        self.changed = threading.Condition()
        self.ending = False
        self._words = words
        self._timeout = peer_timeout
        self._heard: dict[Connection, float] = {}
        self._next_beat = 0.0
        self._close_at = 0.0
        self._loop = Loop(self, name, min(TICK_SECONDS, peer_timeout / 12))
        self._loop.start()

    # What they are for.

    @abstractmethod
    def opened(self, connection: Connection, welcomed: Welcomed) -> None:
        """A connection is there."""

    @abstractmethod
    def said(self, connection: Connection, data: bytes) -> None:
        """Words arrived. A `NodeError` ends the connection."""

    @abstractmethod
    def closed(self, connection: Connection, why: str) -> None:
        """A connection is gone."""

    @abstractmethod
    def beat(self) -> bytes:
        """What a beat says now."""

    @abstractmethod
    def beaten(self, connection: Connection, data: bytes) -> None:
        """A beat arrived."""

    @abstractmethod
    def crashed(self, error: Exception) -> None:
        """A fault of the program ended the I/O thread; it has been logged."""

    # Anybody's.

    def take(self, welcomed: Welcomed) -> None:
        """Hand a welcomed connection over."""
        self._loop.call(lambda: self._adopt(welcomed))

    def close(self, flush_seconds: float) -> None:
        """Write what is queued, say goodbye, close, join the thread."""
        self._loop.call(lambda: self._begin_end(flush_seconds))
        self._loop.join(flush_seconds + GOODBYE_SECONDS + 5.0)

    def look_again(self) -> None:
        """Wake whoever waits for `changed`."""
        with self.changed:
            self.changed.notify_all()

    # For those that know what they are for.

    def queue(self, connection: Connection, message: Message) -> None:
        """Send."""
        connection.link.queue(message)
        self._loop.wake(connection)

    def drop(self, connection: Connection, why: str) -> None:
        """Close a connection and tell."""
        if self._heard.pop(connection, None) is None:
            return
        self._loop.remove(connection)
        connection.link.close()
        self.closed(connection, why)
        self.look_again()

    # What the loop tells.

    def reads(self, connection: Connection) -> bool:
        """Until the end."""
        return not self.ending

    def heard(self, connection: Connection) -> None:
        """The other side lives."""
        self._heard[connection] = time.monotonic()

    def broke(self, connection: Connection, how: str) -> None:
        """Without a goodbye."""
        self.drop(connection, f"the connection {how}")

    def goodbye(self, connection: Connection) -> None:
        """On purpose."""
        connection.say_goodbye()
        self.drop(connection, "the connection was closed")

    def fault(self, connection: Connection, error: NodeError) -> None:
        """Words that may not be said."""
        self.drop(connection, str(error))

    def ended(self) -> None:
        """Close everything."""
        self.ending = True
        for connection in list(self._heard):
            self.drop(connection, "the end")
        self.look_again()

    def tick(self, now: float) -> None:
        """Beat, and listen for silence."""
        if self.ending:
            if now >= self._close_at or all(c.link.idle for c in self._heard):
                for connection in self._heard:
                    connection.say_goodbye()
                self._loop.finish()
            return
        beat = now >= self._next_beat
        if beat:
            self._next_beat = now + self._timeout / 3
        for connection, heard in list(self._heard.items()):
            if now - heard > self._timeout:
                self.drop(connection, f"no byte for {self._timeout:g} s")
            elif now >= connection.expires:
                self.drop(connection, "a certificate has expired")
            elif beat and not connection.wants_write:
                self.queue(connection, control_message(Kind.BEAT, self.beat()))

    # Inside.

    def _adopt(self, welcomed: Welcomed) -> None:
        if self.ending:
            welcomed.sock.close()
            return
        connection = Connection(welcomed, Link(0), self._expect, self._deliver)
        self._heard[connection] = time.monotonic()
        self._loop.add(connection)
        self.opened(connection, welcomed)
        self.look_again()

    def _begin_end(self, flush_seconds: float) -> None:
        self.ending = True
        self._close_at = time.monotonic() + flush_seconds
        self._loop.tick_now(0.01)

    def _expect(self, connection: Connection, data: memoryview) -> tuple[Header, Buffer | None]:
        name = self.parties[connection.peer]
        try:
            header = wire.decode_header(data)
        except ProtocolError as error:
            raise ProtocolError(f"{name} sent a frame that can't be read: {error}") from None
        if header.kind not in (self._words, Kind.BEAT):
            raise ProtocolError(f"{name} sent {header.kind.name}: must be {self._words.name} or BEAT")
        limit = wire.BEAT.size if header.kind is Kind.BEAT else LIMIT
        if header.pad_length or not 0 < header.payload_length <= limit:
            length = header.payload_length + header.pad_length
            raise ProtocolError(f"{name} sent {header.kind.name} of {length} bytes: must be 1 to {limit}")
        return header, Buffer(bytearray(header.payload_length))

    def _deliver(self, connection: Connection, header: Header, payload: Buffer | None) -> None:
        data = b"" if payload is None else bytes(payload.view)
        if header.kind is not Kind.BEAT:
            self.said(connection, data)
        elif len(data) == wire.BEAT.size:
            self.beaten(connection, data)
        else:
            raise ProtocolError(f"{self.parties[connection.peer]} sent a BEAT of {len(data)} bytes")
