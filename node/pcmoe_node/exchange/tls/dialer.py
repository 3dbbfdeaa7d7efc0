"""Dials a peer whenever one of its links needs a connection: at the start, after a cut, and for a new certificate."""

import random
import socket
import threading
import time
from collections.abc import Callable
from typing import Protocol

from pcmoe_node.errors import NodeError
from pcmoe_node.exchange.tls.door import interrupt
from pcmoe_node.exchange.tls.frames import DRAIN_SECONDS
from pcmoe_node.exchange.tls.handshake import CONNECT_SECONDS, Call, Side, TryAgainError, Welcomed, dial

FIRST_PAUSE = 0.05
LONGEST_PAUSE = 1.0


class Dialled(Protocol):
    """Whoever wants connections."""

    changed: threading.Condition
    """Notified when anything below may have changed."""
    ending: bool

    def due(self, peer: int) -> int | None:
        """The link of a peer that needs a connection now; None: none does."""

    def received(self, peer: int, number: int) -> int:
        """Messages taken in full on a link so far."""

    def note(self, peer: int, text: str) -> None:
        """An attempt failed, and why; for people."""

    def take(self, welcomed: Welcomed) -> None:
        """A connection for it; soon after, it isn't due any more."""


class Dialer:
    """One thread for one peer, until closed. `fatal(error)` hears what time may not cure; dialling goes on."""

    def __init__(
        self, side: Side, io: Dialled, peer: int, endpoint: str, fatal: Callable[[NodeError], None]
    ) -> None:
        self._side = side
        self._io = io
        self._peer = peer
        self._endpoint = endpoint
        self._fatal = fatal
        self._closed = False
        self._held: socket.socket | None = None
        self._thread = threading.Thread(
            target=self._run, name=f"pcmoe-dial-{side.identity.names[peer]}", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """End an attempt under way and dial no more; `join` waits for it."""
        self._closed = True
        held = self._held
        if held is not None:
            interrupt(held)
        with self._io.changed:
            self._io.changed.notify_all()

    def join(self) -> None:
        """Wait for the thread."""
        self._thread.join(CONNECT_SECONDS + 2 * DRAIN_SECONDS)

    def _run(self) -> None:
        pause = FIRST_PAUSE
        while not self._closed and not self._io.ending:
            number = self._io.due(self._peer)
            if number is None:
                self._wait(0.5, lambda: self._io.due(self._peer) is not None)
            elif self._attempt(number):
                pause = FIRST_PAUSE
            else:
                self._wait(pause, lambda: False)
                pause = min(LONGEST_PAUSE, pause * 1.6) * random.uniform(0.8, 1.0)

    def _attempt(self, number: int) -> bool:
        """Dial for one link; whether it is connected now."""
        received = self._io.received(self._peer, number)
        call = Call(peer=self._peer, endpoint=self._endpoint, number=number, received=received)
        try:
            welcomed = dial(self._side, call, self._hold)
        except NodeError as error:
            self._io.note(self._peer, str(error))
            self._fatal(error)
            return False
        except TryAgainError as error:
            self._io.note(self._peer, str(error))
            return False
        finally:
            # Before it is handed over: a connection in use must not be interrupted.
            self._held = None
        self._io.take(welcomed)
        # Until the I/O thread has taken it over, so that it isn't dialled twice.
        self._wait(1.0, lambda: self._io.due(self._peer) != number)
        return True

    def _hold(self, sock: socket.socket) -> None:
        self._held = sock
        if self._closed:
            raise TryAgainError("closing")

    def _wait(self, seconds: float, over: Callable[[], bool]) -> None:
        deadline = time.monotonic() + seconds
        with self._io.changed:
            self._io.changed.wait_for(
                lambda: self._closed or self._io.ending or over(), max(0.0, deadline - time.monotonic())
            )
