"""The listener: accepts, and gives each newcomer a thread and a deadline to say who it is."""

import logging
import selectors
import socket
import threading
from collections.abc import Callable
from contextlib import suppress

from pcmoe_node.errors import ResourceError
from pcmoe_node.exchange.tls.handshake import Welcomed, parse_endpoint
from pcmoe_node.exchange.tls.waker import Waker

log = logging.getLogger(__name__)

UNAUTHENTICATED_LIMIT = 64
"""Connections that have not said HELLO; one more ends the oldest, so that idle ones block nobody."""


class Door:
    """A listening socket, an accept thread, and at most `UNAUTHENTICATED_LIMIT` newcomers."""

    def __init__(
        self,
        listen: str,
        greet: Callable[[socket.socket], Welcomed | None],
        take: Callable[[Welcomed], None],
    ) -> None:
        """Listen on `host:port`. `greet(sock)` runs on a thread of its own and owns the socket; `take` gets
        whom it welcomed.
        """
        host, port = parse_endpoint(listen)
        try:
            self._listener = socket.create_server(
                (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=128
            )
        except OSError as error:
            raise ResourceError(f"identity.listen: {listen}: can't listen there: {error.strerror}") from None
        self._listener.setblocking(False)
        self._greet = greet
        self._take = take
        self._closing = False
        self._newcomers: dict[int, socket.socket] = {}
        self._threads: dict[int, threading.Thread] = {}
        self._lock = threading.Lock()
        self._waker = Waker()
        self._thread = threading.Thread(target=self._run, name="pcmoe-door", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        number = 0
        with selectors.DefaultSelector() as selector:
            selector.register(self._listener, selectors.EVENT_READ)
            selector.register(self._waker.reader, selectors.EVENT_READ)
            while not self._closing:
                selector.select()
                try:
                    sock, _ = self._listener.accept()
                except OSError:
                    continue  # it went away before we took it
                number += 1
                self._admit(number, sock)

    def _admit(self, number: int, sock: socket.socket) -> None:
        with self._lock:
            if len(self._newcomers) >= UNAUTHENTICATED_LIMIT:
                oldest = next(iter(self._newcomers))
                log.warning("more than %d connections without HELLO: ended the oldest", UNAUTHENTICATED_LIMIT)
                handle = self._newcomers.pop(oldest)
                interrupt(handle)
                handle.close()
            # A second handle on the same connection: the newcomer's thread may close its own at any time.
            self._newcomers[number] = sock.dup()
            thread = threading.Thread(
                target=self._serve, args=(number, sock), name=f"pcmoe-newcomer-{number}", daemon=True
            )
            self._threads[number] = thread
        thread.start()

    def _serve(self, number: int, sock: socket.socket) -> None:
        welcomed = None
        try:
            welcomed = self._greet(sock)
        finally:
            with self._lock:
                handle = self._newcomers.pop(number, None)
            if handle is not None:
                handle.close()
            # Only now: a connection that is in use must not be among those that may be interrupted.
            if welcomed is not None:
                self._take(welcomed)
            with self._lock:
                self._threads.pop(number, None)

    def close(self) -> None:
        """Stop listening, end all newcomers, join all threads. Idempotent."""
        if self._closing:
            return
        self._closing = True
        self._waker.wake()
        self._thread.join()
        with self._lock:
            threads = list(self._threads.values())
            for handle in self._newcomers.values():
                interrupt(handle)
        for thread in threads:
            thread.join()
        self._listener.close()
        self._waker.close()


def interrupt(handle: socket.socket) -> None:
    """Wake the thread that is blocked on this connection: it finds it closed."""
    with suppress(OSError):
        # The plain socket's method also for TLS: the TLS object belongs to that thread.
        socket.socket.shutdown(handle, socket.SHUT_RDWR)
