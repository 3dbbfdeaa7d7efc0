"""The one thread that owns every socket after the handshake: it reads, writes, beats, listens for silence.

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

from pcmoe_node.errors import NodeError, PeerLostError, ProtocolError
from pcmoe_node.exchange import wire
from pcmoe_node.exchange.base import Kind, Message, Pulse
from pcmoe_node.exchange.local import DROPPED_AFTER_GOODBYE
from pcmoe_node.exchange.tls.connection import Connection, Turn
from pcmoe_node.exchange.tls.handshake import Welcomed
from pcmoe_node.exchange.tls.peers import (
    CONTROL,
    Parts,
    Peer,
    abort_message,
    control_message,
    left_too_early,
)
from pcmoe_node.exchange.tls.reception import Reception
from pcmoe_node.exchange.tls.waker import Waker

log = logging.getLogger(__name__)

BUDGET = 2 << 20
"""Bytes of one connection per turn, so that none starves the others."""
GRACE_SECONDS = 1.0
"""How long the reason (an ABORT on the control connection) may come after a connection's end."""


class IoThread:
    """The loop. `opened` is set once everybody is fully connected; then a lost connection is a failure."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self.peers = {
            index: Peer(index, name) for index, name in enumerate(parts.names) if index != parts.index
        }
        self.changed = threading.Condition()
        """Notified when a peer's connections change or a failure is known."""
        self.opened = not self.peers
        self.reception = Reception(parts, self.peers, lambda peer, error: self.fail(peer, error, tell=False))
        self._progress = (0, "STARTING")
        self._calls: deque[Callable[[], None]] = deque()
        self._arrivals: deque[Welcomed] = deque()
        self._dirty: deque[Connection] = deque()
        self._hot: set[Connection] = set()
        self._selector = selectors.DefaultSelector()
        self._waker = Waker()
        self._selector.register(self._waker.reader, selectors.EVENT_READ)
        self._asleep = False
        self._ending = False
        self._draining = False
        self._flush_until = self._close_at = self._drain_seconds = 0.0
        self._finished = False
        self._tick_seconds = min(0.2, parts.peer_timeout / 12)
        self._next_tick = 0.0
        self._next_beat = 0.0
        self._thread = threading.Thread(target=self._run, name="pcmoe-io", daemon=True)
        self._thread.start()

    # Called by other threads.

    def send(self, peer: int, number: int, message: Message) -> bool:
        """Queue a message for one of a peer's connections; False when there is none (any more)."""
        connection = self.peers[peer].connections.get(number)
        if connection is None or self._ending:
            return False
        connection.queue(message)
        self._dirty.append(connection)
        if self._asleep:
            self._waker.wake()
        return True

    def progress(self, phase: str) -> None:
        """Raise the counter that the beats carry."""
        self._progress = (self._progress[0] + 1, phase)

    def call(self, what: Callable[[], None]) -> None:
        """Run something on the I/O thread, soon."""
        self._calls.append(what)
        if self._asleep:
            self._waker.wake()

    def take(self, welcomed: Welcomed) -> None:
        """Hand a welcomed connection over."""
        self._arrivals.append(welcomed)
        if self._asleep:
            self._waker.wake()

    def turn_away(self) -> None:
        """After the end: close connections that were handed over too late."""
        while self._arrivals:
            self._arrivals.popleft().sock.close()

    def pulses(self) -> dict[int, Pulse]:
        """What the peers' beats said."""
        now = time.monotonic()
        return {
            index: Pulse(
                counter=peer.counter, phase=peer.phase, still_seconds=now - peer.moved, left=peer.left
            )
            for index, peer in self.peers.items()
        }

    def end(self, last_words: Message | None, flush_seconds: float, drain_seconds: float) -> None:
        """Write what is queued (or `last_words` only), say goodbye, close, and join the thread."""
        if threading.current_thread() is self._thread:
            raise RuntimeError("the I/O thread can't join itself")
        self.call(lambda: self._begin_end(last_words, flush_seconds, drain_seconds))
        self._thread.join(flush_seconds + drain_seconds + 5.0)

    # The loop.

    def _run(self) -> None:
        try:
            while not self._finished:
                self._turn()
        except Exception as error:
            log.exception("the I/O thread failed")
            self._parts.inbox.fail(self._parts.index, NodeError(f"I/O thread: {type(error).__name__}"))
        finally:
            self._close_all()

    def _turn(self) -> None:
        self._take_orders()
        timeout = max(0.0, self._next_tick - time.monotonic())
        # First say that we sleep, then look once more: whoever queues after the look sees it and wakes us.
        self._asleep = True
        if self._calls or self._arrivals or self._dirty or self._hot or self._finished:
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
            self._next_tick = now + self._tick_seconds
            self._tick(now)

    def _take_orders(self) -> None:
        """What other threads have left for us."""
        while self._calls:
            self._calls.popleft()()
        while self._arrivals:
            self._adopt(self._arrivals.popleft())
        for _ in range(len(self._dirty)):  # not those that come back for a second turn
            connection = self._dirty.popleft()
            if not connection.wants_write:
                self._write(connection)

    def _write(self, connection: Connection) -> None:
        if not self._alive(connection):
            self._too_late(connection)
            return
        waited = connection.wants_write
        try:
            if connection.write(BUDGET) is Turn.MORE:
                self._dirty.append(connection)
        except OSError as error:
            self._ended(connection, f"broke: {error.strerror or error}")
            return
        if connection.wants_write is not waited:
            mask = selectors.EVENT_READ | (selectors.EVENT_WRITE if connection.wants_write else 0)
            self._selector.modify(connection.sock, mask, connection)

    def _read(self, connection: Connection) -> None:
        if not self._alive(connection):
            return
        peer = self.peers[connection.peer]
        if peer.over or self._draining:
            if connection.discard():
                self._remove(connection)
            return
        try:
            turn, count = connection.read(BUDGET)
        except NodeError as error:
            self.fail(peer, error, tell=True)
            return
        except ssl.SSLEOFError:
            self._ended(connection, "closed without a goodbye")
            return
        except OSError as error:
            self._ended(connection, f"broke: {error.strerror or error}")
            return
        if count:
            peer.heard = time.monotonic()
        if turn is Turn.MORE:
            self._hot.add(connection)
        elif turn is Turn.CLOSED:
            self._said_goodbye(connection)

    def _too_late(self, connection: Connection) -> None:
        """Something was queued while the connection ended."""
        peer = self.peers[connection.peer]
        dropped = connection.drop_outbox()
        if (
            peer.left
            and not self._ending
            and any(m.header.kind not in DROPPED_AFTER_GOODBYE for m in dropped)
        ):
            self.fail(peer, left_too_early(peer.name), tell=False)

    def _alive(self, connection: Connection) -> bool:
        return self.peers[connection.peer].connections.get(connection.number) is connection

    # Connections come and go.

    def _adopt(self, welcomed: Welcomed) -> None:
        """Take over a welcomed connection. A new incarnation's first one ends those of the old."""
        peer = self.peers[welcomed.peer]
        if self._ending or peer.over:
            welcomed.sock.close()
            return
        if peer.incarnation != welcomed.incarnation:
            for old in list(peer.connections.values()):
                self._remove(old)
            peer.incarnation = welcomed.incarnation
            peer.left, peer.doubt = False, None
        elif (old_one := peer.connections.get(welcomed.number)) is not None:
            self._remove(old_one)
        connection = Connection(
            welcomed.sock, peer.index, welcomed.number, self.reception.expect, self.reception.deliver
        )
        peer.connections[welcomed.number] = connection
        peer.heard = peer.moved = time.monotonic()
        self._selector.register(connection.sock, selectors.EVENT_READ, connection)
        self._hot.add(connection)  # TLS may already hold bytes of the first frame
        if welcomed.number == CONTROL:
            self._beat(peer)
        if not self.opened and all(self.missing(index) is None for index in self.peers):
            self.opened = True
        self._notify()

    def missing(self, peer: int) -> int | None:
        """The first connection that a peer lacks, or None when it is complete."""
        present = self.peers[peer].connections
        return next((n for n in range(self._parts.connections + 1) if n not in present), None)

    def _remove(self, connection: Connection) -> None:
        peer = self.peers[connection.peer]
        if peer.connections.get(connection.number) is connection:
            del peer.connections[connection.number]
        self._hot.discard(connection)
        with suppress(KeyError, ValueError):
            self._selector.unregister(connection.sock)
        connection.close()
        self._notify()

    def _said_goodbye(self, connection: Connection) -> None:
        peer = self.peers[connection.peer]
        unsent = [m.header.kind for m in connection.outbox] + (
            [connection.writing.header.kind] if connection.writing else []
        )
        cut_short = connection.inside_frame
        connection.drop_outbox()
        connection.say_goodbye()
        self._remove(connection)
        if not self.opened or self._ending:
            return
        if cut_short:
            self._doubt(peer, ProtocolError(f"{peer.name} closed its connection in the middle of a frame"))
        elif any(kind not in DROPPED_AFTER_GOODBYE for kind in unsent):
            self._doubt(peer, left_too_early(peer.name))
        if not peer.connections:
            peer.left = True

    def _ended(self, connection: Connection, how: str) -> None:
        """A connection ended without a goodbye."""
        peer = self.peers[connection.peer]
        self._remove(connection)
        if not self.opened:
            for other in list(peer.connections.values()):
                self._remove(other)
        elif not self._ending:
            self._doubt(peer, PeerLostError(f"{peer.name} is lost: its connection {connection.number} {how}"))

    def _doubt(self, peer: Peer, error: NodeError) -> None:
        if peer.doubt is None:
            peer.doubt = (time.monotonic() + GRACE_SECONDS, error)
            if CONTROL not in peer.connections:
                peer.doubt = (0.0, error)  # nothing more can come that would explain it

    def fail(self, peer: Peer, error: NodeError, *, tell: bool) -> None:
        """A peer is over. The first failure of all goes to the receiver; `tell` sends the peer an ABORT."""
        if peer.over:
            return
        peer.over = True
        self._parts.inbox.fail(peer.index, error)
        control = peer.connections.get(CONTROL)
        for connection in peer.connections.values():
            connection.drop_outbox(keep_current=connection is control)
        if tell and control is not None and not self._ending:
            control.queue(abort_message(error, self._parts.index))
            self._dirty.append(control)
        self._notify()

    def _notify(self) -> None:
        with self.changed:
            self.changed.notify_all()

    # Time.

    def _tick(self, now: float) -> None:
        if self._ending:
            self._tick_ending(now)
            return
        beat = now >= self._next_beat
        if beat:
            self._next_beat = now + self._parts.peer_timeout / 3
        for peer in self.peers.values():
            if peer.over or (not peer.connections and peer.doubt is None):
                continue
            if peer.doubt is not None and now >= peer.doubt[0]:
                self.fail(peer, peer.doubt[1], tell=True)
            elif not peer.left and now - peer.heard > self._parts.peer_timeout:
                self._silent(peer)
            elif beat:
                self._beat(peer)

    def _silent(self, peer: Peer) -> None:
        if self.opened:
            rule = f"no byte for {self._parts.peer_timeout:g} s"
            self.fail(peer, PeerLostError(f"{peer.name} is lost: {rule}"), tell=True)
            return
        for connection in list(peer.connections.values()):
            self._remove(connection)

    def _beat(self, peer: Peer) -> None:
        control = peer.connections.get(CONTROL)
        if control is None or len(control.outbox) > 16:
            return
        control.queue(control_message(Kind.BEAT, wire.encode_beat(*self._progress)))
        self._dirty.append(control)

    # The end.

    def _begin_end(self, last_words: Message | None, flush_seconds: float, drain_seconds: float) -> None:
        if self._ending:
            return
        self._ending = True
        self._tick_seconds = 0.01
        self._next_tick = 0.0
        self._flush_until = time.monotonic() + flush_seconds
        self._drain_seconds = drain_seconds
        for connection in self._all():
            if last_words is not None:
                connection.drop_outbox(keep_current=connection.number == CONTROL)
                if connection.number == CONTROL:
                    connection.queue(last_words)
            self._dirty.append(connection)

    def _tick_ending(self, now: float) -> None:
        if not self._draining:
            if now < self._flush_until and not all(connection.idle for connection in self._all()):
                return
            self._draining = True
            self._close_at = now + self._drain_seconds
            for connection in self._all():
                connection.drop_outbox()
                connection.say_goodbye()
        elif now >= self._close_at or not self._all():
            self._finished = True

    def _all(self) -> list[Connection]:
        return [c for peer in self.peers.values() for c in peer.connections.values()]

    def _close_all(self) -> None:
        self._ending = True
        for connection in self._all():
            self._remove(connection)
        self._selector.close()
        self._waker.close()
        self._notify()
