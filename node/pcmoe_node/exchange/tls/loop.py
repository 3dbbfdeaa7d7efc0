"""The thread that owns sockets after the handshake: it reads, writes, and lets time pass. What any of it means is
its handler's business.

Other threads reach it through two queues: connections with something to write, and calls to run here. It is
woken through a socket pair, and only when it sleeps.
"""

import logging
import selectors
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from pcmoe_node.errors import NodeError, places_of
from pcmoe_node.exchange.tls.connection import Connection, Turn
from pcmoe_node.exchange.tls.waker import Waker

log = logging.getLogger(__name__)

BUDGET = 2 << 20
"""Bytes of one connection per turn, so that none starves the others."""


class Handler(Protocol):
    """What happens to connections; every method is called on the loop's thread."""

    def reads(self, connection: Connection) -> bool:
        """Whether what arrives is read; else it is thrown away until the peer closes."""

    def heard(self, connection: Connection) -> None:
        """Bytes have come."""

    def broke(self, connection: Connection, how: str) -> None:
        """It ended without a goodbye. It is still to be removed."""

    def goodbye(self, connection: Connection) -> None:
        """The peer has closed its side. It is still to be removed."""

    def fault(self, connection: Connection, error: NodeError) -> None:
        """What came may not come."""

    def tick(self, now: float) -> None:
        """Some time has passed; `now` is monotonic."""

    def crashed(self, error: Exception) -> None:
        """The loop itself failed and ends."""

    def ended(self) -> None:
        """The loop has ended; nothing is read or written any more."""


class Loop:
    """A selector on a thread of its own."""

    def __init__(self, handler: Handler, name: str, tick_seconds: float) -> None:
        """Made still; `start` starts it."""
        self.tick_seconds = tick_seconds
        self._handler = handler
        self._calls: deque[Callable[[], None]] = deque()
        self._dirty: deque[Connection] = deque()
        self._hot: set[Connection] = set()
        self._open: set[Connection] = set()
        self._selector = selectors.DefaultSelector()
        self._waker = Waker()
        self._selector.register(self._waker.reader, selectors.EVENT_READ)
        self._asleep = False
        self._finished = self._gone = False
        self._next_tick = 0.0
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    # Called by any thread.

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def wake(self, connection: Connection) -> None:
        """Its link has something to write."""
        self._dirty.append(connection)
        if self._asleep:
            self._waker.wake()

    def call(self, what: Callable[[], None]) -> None:
        """Run something on the loop's thread, soon."""
        self._calls.append(what)
        if self._gone:
            self._drain()  # nobody else will: it must not be lost, for it may hold a socket
        elif self._asleep:
            self._waker.wake()

    def join(self, timeout: float) -> None:
        """Wait until the loop has ended."""
        if threading.current_thread() is self._thread:
            raise RuntimeError("the I/O thread can't join itself")
        self._thread.join(timeout)

    # Called by the handler, on the loop's thread.

    def add(self, connection: Connection) -> None:
        """Watch a connection."""
        self._open.add(connection)
        self._selector.register(connection.sock, selectors.EVENT_READ, connection)
        self._hot.add(connection)  # TLS may already hold bytes of the first frame
        self._dirty.append(connection)

    def remove(self, connection: Connection) -> None:
        """Close a connection."""
        self._open.discard(connection)
        self._hot.discard(connection)
        with suppress(KeyError, ValueError):
            self._selector.unregister(connection.sock)
        connection.close()

    def tick_now(self, every: float) -> None:
        """Let the handler's time pass in smaller steps from now on."""
        self.tick_seconds, self._next_tick = every, 0.0

    def finish(self) -> None:
        """End after this turn."""
        self._finished = True

    # The loop.

    def _run(self) -> None:
        try:
            while not self._finished:
                self._turn()
        except Exception as error:
            log.error("the I/O thread failed: %s", places_of(error))
            self._handler.crashed(error)
        finally:
            self._handler.ended()
            self._gone = True
            self._drain()
            self._selector.close()
            self._waker.close()

    def _drain(self) -> None:
        while self._calls:
            with suppress(IndexError):  # the other thread was faster
                self._calls.popleft()()

    def _turn(self) -> None:
        self._take_orders()
        timeout = max(0.0, self._next_tick - time.monotonic())
        # First say that we sleep, then look once more: whoever queues after the look sees it and wakes us.
        self._asleep = True
        if self._calls or self._dirty or self._hot or self._finished:
            timeout = 0.0
        events = self._selector.select(timeout)
        self._asleep = False
        hot, self._hot = self._hot, set()
        for key, mask in events:
            if key.data is None:
                self._waker.drain()
                continue
            if mask & selectors.EVENT_WRITE:
                self._write(key.data)
            if mask & selectors.EVENT_READ:
                hot.add(key.data)
        for connection in hot:
            self._read(connection)
        if (now := time.monotonic()) >= self._next_tick:
            self._next_tick = now + self.tick_seconds
            self._handler.tick(now)

    def _take_orders(self) -> None:
        """What other threads have left for us."""
        self._drain()
        for _ in range(len(self._dirty)):  # not those that come back for a second turn
            connection = self._dirty.popleft()
            if not connection.wants_write:
                self._write(connection)

    def _write(self, connection: Connection) -> None:
        if connection not in self._open:
            return
        waited = connection.wants_write
        try:
            if connection.write(BUDGET) is Turn.MORE:
                self._dirty.append(connection)
        except OSError as error:
            self._handler.broke(connection, f"broke: {error.strerror or error}")
            return
        if connection.wants_write is not waited:
            mask = selectors.EVENT_READ | (selectors.EVENT_WRITE if connection.wants_write else 0)
            self._selector.modify(connection.sock, mask, connection)

    def _read(self, connection: Connection) -> None:
        if connection not in self._open:
            return
        if not self._handler.reads(connection):
            if connection.discard():
                self._handler.goodbye(connection)
            return
        try:
            turn, count = connection.read(BUDGET)
        except NodeError as error:
            self._handler.fault(connection, error)
            return
        except ssl.SSLEOFError:
            self._handler.broke(connection, "closed without a goodbye")
            return
        except OSError as error:
            self._handler.broke(connection, f"broke: {error.strerror or error}")
            return
        if count:
            self._handler.heard(connection)
        if turn is Turn.MORE:
            self._hot.add(connection)
        elif turn is Turn.CLOSED:
            self._handler.goodbye(connection)
