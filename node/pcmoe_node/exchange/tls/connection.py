"""One welcomed connection of a link, non-blocking: frames in, frames out. The I/O thread's alone.

Reading and writing one TLS object from two threads crashes, so nothing else ever touches the socket.
"""

import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from enum import Enum, auto

from pcmoe_node.exchange.base import Buffer, Header
from pcmoe_node.exchange.tls.handshake import Welcomed
from pcmoe_node.exchange.tls.link import Link
from pcmoe_node.exchange.wire import HEADER_SIZE, encode_header

_RECORD = 16384
"""Bytes of one TLS record; the header travels in one record with the payload's start."""
_FIRST = _RECORD - HEADER_SIZE

Expect = Callable[["Connection", memoryview], tuple[Header, Buffer | None]]
"""Given a header's bytes: the header and a buffer for its payload, or None. May raise a NodeError."""
Deliver = Callable[["Connection", Header, Buffer | None], None]


class Turn(Enum):
    """How a turn of reading or writing ended."""

    IDLE = auto()
    """Nothing more to do until the socket says so."""
    MORE = auto()
    """The budget is spent; TLS may hold bytes that the selector can't see."""
    CLOSED = auto()
    """The peer has said goodbye on this connection."""


class Connection:
    """A TLS socket and the frame it is in the middle of, each way."""

    __slots__ = (
        "_deliver",
        "_expect",
        "_got",
        "_header",
        "_header_bytes",
        "_payload",
        "_pieces",
        "_target",
        "expires",
        "generation",
        "link",
        "peer",
        "sequence",
        "sock",
        "wants_write",
        "writing",
    )

    def __init__(self, welcomed: Welcomed, link: Link, expect: Expect, deliver: Deliver) -> None:
        welcomed.sock.setblocking(False)
        self.sock: ssl.SSLSocket = welcomed.sock
        self.peer = welcomed.peer
        self.link = link
        self.expires = welcomed.expires
        """When the earlier of both certificates ends (monotonic)."""
        self.generation = welcomed.generation
        """Of our own certificate."""
        self.sequence = 0
        """Number of the message that is arriving; 0: not numbered."""
        self.wants_write = False
        """The socket is full: wait until it can be written."""
        self.writing = False
        """A message is under way."""
        self._pieces: list[memoryview] = []  # of that message, last first
        self._header_bytes = memoryview(bytearray(HEADER_SIZE))
        self._header: Header | None = None
        self._payload: Buffer | None = None
        self._target = self._header_bytes
        self._got = 0
        self._expect = expect
        self._deliver = deliver

    @property
    def inside_frame(self) -> bool:
        """A frame has begun to arrive and is not complete."""
        return self._header is not None or self._got > 0

    def write(self, budget: int) -> Turn:
        """Write queued frames until the socket is full, nothing is left, or `budget` bytes are written."""
        self.wants_write = False
        while budget > 0:
            if not self._pieces and not self._next():
                return Turn.IDLE
            piece = self._pieces[-1]
            try:
                # After a would-block OpenSSL must see the same bytes again: a piece is cut only once written.
                count = self.sock.send(piece)
            except ssl.SSLWantWriteError:
                self.wants_write = True
                return Turn.IDLE
            except ssl.SSLWantReadError:
                return Turn.IDLE
            budget -= count
            if count < len(piece):
                self._pieces[-1] = piece[count:]
                continue
            self._pieces.pop()
            if not self._pieces:
                self._written()
        return Turn.MORE

    def _next(self) -> bool:
        pulled = self.link.pull()
        if pulled is None:
            return False
        message, stamp = pulled
        self.writing = True
        header = message.header
        total = header.payload_length + header.pad_length
        head = bytearray(encode_header(header, stamp))
        if message.payload is not None:
            view = message.payload.view
            head += view[: min(total, _FIRST)]
            if total > _FIRST:
                self._pieces.append(view[_FIRST:total])
        self._pieces.append(memoryview(head))
        return True

    def _written(self) -> None:
        self.writing = False
        self.link.wrote()

    def read(self, budget: int) -> tuple[Turn, int]:
        """Read frames until the socket is empty or `budget` bytes are read; also how many bytes came."""
        left = budget
        recv_into = self.sock.recv_into
        while left > 0:
            target = self._target
            try:
                count = recv_into(target[self._got :] if self._got else target)
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                return Turn.IDLE, budget - left
            if count == 0:
                return Turn.CLOSED, budget - left
            left -= count
            self._got += count
            if self._got == len(target):
                self._complete()
        return Turn.MORE, budget - left

    def _complete(self) -> None:
        self._got = 0
        if self._header is None:
            header, buffer = self._expect(self, self._header_bytes)
            total = header.payload_length + header.pad_length
            if buffer is not None and total:
                self._header, self._payload = header, buffer
                self._target = buffer.view[:total]
                return
        else:
            header, buffer = self._header, self._payload
        self._header, self._payload, self._target = None, None, self._header_bytes
        self._deliver(self, header, buffer)

    def discard(self) -> bool:
        """Throw away what has arrived. True when the peer has closed its side."""
        scratch = bytearray(65536)
        try:
            for _ in range(64):
                # The plain socket's method: nobody decrypts what nobody reads.
                if socket.socket.recv_into(self.sock, scratch) == 0:
                    return True
        except BlockingIOError:
            return False
        except OSError:
            return True
        return False

    def say_goodbye(self) -> None:
        """Send TLS's closing alert, which tells a goodbye from a crash, and stop writing."""
        with suppress(OSError, ValueError):  # usually: the peer's own goodbye is yet to come
            self.sock.unwrap()
        with suppress(OSError):
            socket.socket.shutdown(self.sock, socket.SHUT_WR)

    def close(self) -> None:
        """Close the socket, give up the frames under way; what was not taken in full waits in the link."""
        self.writing = False
        self._pieces.clear()
        self.link.rewind()
        self._target = self._header_bytes
        if self._payload is not None:
            self._payload.release()
            self._payload = None
        self._header = None
        self._got = 0
        self.sock.close()
