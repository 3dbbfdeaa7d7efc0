"""A TCP proxy for what networks do: delay, throttle, freeze, cut and heal, swallow newcomers, flip a bit."""

import contextlib
import heapq
import selectors
import socket
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Self

CHUNK = 1 << 18
WINDOW = 256 << 20
"""Bytes under way in one direction before the proxy stops reading: far more than any test has in flight."""


@dataclass(slots=True, eq=False)
class _Pipe:
    """One direction of one connection."""

    source: socket.socket
    sink: socket.socket
    waiting: deque[tuple[float, bytes]] = field(default_factory=deque)
    """(due, bytes); empty bytes are the end of the stream."""
    size: int = 0
    ended: bool = False
    other: "_Pipe | None" = None
    free_at: float = 0.0
    """When the line has carried what was taken from it so far, under a rate."""


class FaultProxy:
    """Listens on 127.0.0.1 and forwards to `target` (`host:port`) with `delay` seconds each way; one thread.

    `rate` bounds the bytes per second of each direction of each connection; None: as fast as it goes.

    with FaultProxy("127.0.0.1:8443", 0.010) as proxy:
        connect to proxy.endpoint
    """

    def __init__(self, target: str, delay: float = 0.0, rate: float | None = None) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._delay = delay
        self._rate = rate
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setblocking(False)
        self.endpoint = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._selector = selectors.DefaultSelector()
        self._wake_reader, self._wake_writer = socket.socketpair()
        self._selector.register(self._listener, selectors.EVENT_READ, None)
        self._selector.register(self._wake_reader, selectors.EVENT_READ, None)
        self._pipes: dict[socket.socket, _Pipe] = {}  # by source
        self._due: list[tuple[float, int, _Pipe]] = []
        self._order = 0
        self._frozen = self._thawed = False
        self._cut = False
        self._flips = 0
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="delay-proxy", daemon=True)
        self._thread.start()

    def freeze(self) -> None:
        """Forward nothing any more and keep every connection open, new ones too: the peers fall silent (half-open)."""
        self._frozen = True
        self._wake()

    def thaw(self) -> None:
        """Forward again, first what has piled up."""
        self._frozen, self._thawed = False, True
        self._wake()

    def cut(self) -> None:
        """Close every connection at once, as a broken network does, and refuse new ones."""
        self._cut = True
        self._wake()

    def heal(self) -> None:
        """Let connections through again."""
        self._cut = False
        self._wake()

    def flip(self) -> None:
        """Change one bit of the next bytes that pass, as bad memory on the way does."""
        self._flips += 1

    def close(self) -> None:
        """Close everything and join the thread."""
        if not self._closing:
            self._closing = True
            self._wake()
            self._thread.join(5.0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _wake(self) -> None:
        with contextlib.suppress(OSError):
            self._wake_writer.send(b"\0")

    def _run(self) -> None:
        while not self._closing:
            timeout = max(0.0, self._due[0][0] - time.monotonic()) if self._due else None
            for key, mask in self._selector.select(timeout):
                self._handle(key.fileobj, mask)  # type: ignore[arg-type]
            if self._thawed:
                self._thawed = False
                for pipe in self._pipes.values():
                    self._order += 1
                    heapq.heappush(self._due, (0.0, self._order, pipe))
            if self._cut:
                for source in list(self._pipes):
                    self._drop(source)
            now = time.monotonic()
            while self._due and self._due[0][0] <= now:
                _, _, pipe = heapq.heappop(self._due)
                self._flush(pipe)
        for source in list(self._pipes):
            self._drop(source)
        self._selector.close()
        for sock in (self._listener, self._wake_reader, self._wake_writer):
            sock.close()

    def _handle(self, sock: socket.socket, mask: int) -> None:
        if sock is self._wake_reader:
            sock.recv(4096)
        elif sock is self._listener:
            self._accept()
        else:
            pipe = self._pipes.get(sock)
            if pipe is None:
                return
            if mask & selectors.EVENT_READ:
                self._read(pipe)
            if mask & selectors.EVENT_WRITE and pipe.other is not None:
                self._flush(pipe.other)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            near, _ = self._listener.accept()
            if self._cut:
                near.close()
                return
            try:
                far = socket.create_connection(self._target, timeout=1.0)
            except OSError:
                near.close()
                return
            there, back = _Pipe(near, far), _Pipe(far, near)
            there.other, back.other = back, there
            for pipe in (there, back):
                pipe.source.setblocking(False)
                pipe.source.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._pipes[pipe.source] = pipe
                self._selector.register(pipe.source, selectors.EVENT_READ, None)

    def _read(self, pipe: _Pipe) -> None:
        try:
            data = pipe.source.recv(CHUNK if self._rate is None else max(1, min(CHUNK, int(self._rate / 20))))
        except BlockingIOError:
            return
        except OSError:
            self._drop(pipe.source)
            return
        if self._flips and data:
            self._flips -= 1
            data = data[:-1] + bytes([data[-1] ^ 1])
        due = time.monotonic() + self._delay
        if self._rate is not None:
            pipe.free_at = max(pipe.free_at, due) + len(data) / self._rate
            due = pipe.free_at
        pipe.waiting.append((due, data))
        pipe.size += len(data)
        pipe.ended = pipe.ended or not data
        self._watch(pipe)
        self._order += 1
        heapq.heappush(self._due, (due, self._order, pipe))

    def _flush(self, pipe: _Pipe) -> None:
        """Write whatever is due."""
        if pipe.source not in self._pipes or self._frozen:
            return
        now = time.monotonic()
        try:
            while pipe.waiting and pipe.waiting[0][0] <= now:
                due, data = pipe.waiting[0]
                if not data:
                    pipe.waiting.popleft()
                    pipe.sink.shutdown(socket.SHUT_WR)
                    continue
                count = pipe.sink.send(data)
                pipe.size -= count
                if count == len(data):
                    pipe.waiting.popleft()
                else:
                    pipe.waiting[0] = (due, data[count:])
        except BlockingIOError:
            pass
        except OSError:
            self._drop(pipe.source)
            return
        self._watch(pipe)
        if pipe.other is not None:
            if pipe.ended and pipe.other.ended and not pipe.waiting and not pipe.other.waiting:
                self._drop(pipe.source)
            else:
                self._watch(pipe.other)

    def _watch(self, pipe: _Pipe) -> None:
        """Watch the source for reading unless it has ended or is far ahead, and for the way back's writing."""
        if pipe.source not in self._pipes:
            return
        mask = 0
        if not pipe.ended and pipe.size < (WINDOW if self._rate is None else max(1, self._rate / 4)):
            mask |= selectors.EVENT_READ
        back = pipe.other
        if back is not None and back.waiting and back.waiting[0][0] <= time.monotonic() and not self._frozen:
            mask |= selectors.EVENT_WRITE
        registered = pipe.source in self._selector.get_map()
        if mask and registered:
            self._selector.modify(pipe.source, mask, None)
        elif mask:
            self._selector.register(pipe.source, mask, None)
        elif registered:
            self._selector.unregister(pipe.source)

    def _drop(self, source: socket.socket) -> None:
        """Close both ends of a connection."""
        pipe = self._pipes.pop(source, None)
        if pipe is None:
            return
        if source in self._selector.get_map():
            self._selector.unregister(source)
        source.close()
        self._drop(pipe.sink)
