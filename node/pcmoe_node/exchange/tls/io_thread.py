"""The exchange's side of the I/O thread: peers and their links, beats, silence, the end.

A connection that ends without a goodbye is a cut: its link waits for the next one, and the peer is lost only when no
byte has come from it for the agreed time. One that ends with TLS's goodbye was closed on purpose.
"""

import threading
import time

from pcmoe_node.errors import NodeError, PeerLostError, ProtocolError
from pcmoe_node.exchange import wire
from pcmoe_node.exchange.base import Kind, Message, Pulse, Reach
from pcmoe_node.exchange.tls.connection import Connection
from pcmoe_node.exchange.tls.handshake import Welcomed
from pcmoe_node.exchange.tls.link import Link
from pcmoe_node.exchange.tls.loop import Loop
from pcmoe_node.exchange.tls.peers import (
    CONTROL,
    Parts,
    Peer,
    abort_message,
    control_message,
    left_too_early,
)
from pcmoe_node.exchange.tls.reception import Reception
from pcmoe_node.exchange.tls.tcp_info import least_round_trip

GRACE_SECONDS = 1.0
"""How long the reason (an ABORT on the control connection) may come after an untimely goodbye."""


class IoThread:
    """`opened` is set once everybody is fully connected; until then nobody can be lost."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self.peers = {i: self._peer(i) for i in parts.members if i != parts.index}
        self.changed = threading.Condition()
        """Notified when a peer's connections change or a failure is known."""
        self.opened = not self.peers
        self.ending = False
        self.reconnected = 0
        """Connections that took the place of one that broke, once all were connected."""
        self.reception = Reception(parts, self.peers, lambda peer, error: self.fail(peer, error, tell=False))
        self._progress = (0, "STARTING")
        self._moved = time.monotonic()
        self._waiting: frozenset[int] = frozenset()
        self._draining = False
        self._flush_until = self._close_at = self._drain_seconds = 0.0
        self._next_beat = 0.0
        self._loop = Loop(self, "pcmoe-io", min(0.2, parts.peer_timeout / 12))
        self._loop.start()

    def _peer(self, index: int) -> Peer:
        links = tuple(Link(number, self._parts.view) for number in range(self._parts.connections + 1))
        return Peer(index, self._parts.names[index], links, heard=time.monotonic(), moved=time.monotonic())

    # Called by other threads.

    def send(self, peer: int, number: int, message: Message) -> None:
        """Queue a message on one of a peer's links."""
        known = self.peers[peer]
        known.links[number].queue(message)
        connection = known.connections.get(number)
        if connection is not None:
            self._loop.wake(connection)

    def progress(self, phase: str) -> None:
        """Raise the counter that the beats carry."""
        self._progress = (self._progress[0] + 1, phase)
        self._moved = time.monotonic()

    def waiting(self, participants: frozenset[int]) -> None:
        """Whom the beats say that this node waits for."""
        self._waiting = participants

    def take(self, welcomed: Welcomed) -> None:
        """Hand a welcomed connection over."""
        self._loop.call(lambda: self._adopt(welcomed))

    def due(self, peer: int) -> int | None:
        """The first link that needs a connection, or a new one; None: all is well."""
        known, now = self.peers[peer], time.monotonic()
        if known.left or known.over:
            return None
        if (missing := known.missing) is not None:
            return missing
        return next((number for number, when in list(known.redial.items()) if when <= now), None)

    def received(self, peer: int, number: int) -> int:
        """Messages taken in full on a link so far."""
        return self.peers[peer].links[number].delivered

    def note(self, peer: int, text: str) -> None:
        """An attempt at a new connection failed."""
        self.peers[peer].attempt = text

    def redial_all(self) -> None:
        """Replace every connection soon: this node's certificate is a new one."""

        def redial() -> None:
            for peer in self.peers.values():
                self._redial(peer, time.monotonic())

        self._loop.call(redial)

    def pulses(self) -> dict[int, Pulse]:
        """What the peers' beats said."""
        now = time.monotonic()
        return {
            index: Pulse(
                counter=peer.counter,
                phase=peer.phase,
                still_seconds=now - peer.moved,
                left=peer.left,
                waiting=peer.waiting,
            )
            for index, peer in self.peers.items()
        }

    def reach(self) -> dict[int, Reach]:
        """How each peer is reached now."""
        return {index: peer.reach for index, peer in self.peers.items()}

    def pulse(self) -> Pulse:
        """What our own beats say."""
        counter, phase = self._progress
        still = time.monotonic() - self._moved
        return Pulse(
            counter=counter, phase=phase, still_seconds=still, left=self.ending, waiting=self._waiting
        )

    def end(self, last_words: Message | None, flush_seconds: float, drain_seconds: float) -> None:
        """Write what is queued (or `last_words` only), say goodbye, close, and join the thread."""
        self._loop.call(lambda: self._begin_end(last_words, flush_seconds, drain_seconds))
        self._loop.join(flush_seconds + drain_seconds + 5.0)

    # Connections come and go.

    def _adopt(self, welcomed: Welcomed) -> None:
        """Take over a welcomed connection, in the place of the link's present one."""
        peer = self.peers[welcomed.peer]
        if self.ending or peer.over or peer.left:
            welcomed.sock.close()
            return
        link = peer.links[welcomed.number]
        if (old := peer.connections.get(link.number)) is not None:
            self._remove(old)
        try:
            link.acknowledge(welcomed.received)
        except ProtocolError as error:
            welcomed.sock.close()
            self.fail(peer, ProtocolError(f"{peer.name}: {error}"), tell=True)
            return
        connection = Connection(welcomed, link, self.reception.expect, self.reception.deliver)
        peer.connections[link.number] = connection
        peer.heard = now = time.monotonic()
        peer.attempt = ""
        peer.leaf = welcomed.leaf
        peer.redial[link.number] = now + max(1.0, (connection.expires - now) / 2)
        self.reconnected += self.opened
        self._loop.add(connection)
        if link.number == CONTROL:
            self._beat(peer)
        if not self.opened and all(other.missing is None for other in self.peers.values()):
            self.opened = True
        self.look_again()

    def _remove(self, connection: Connection) -> None:
        peer = self.peers[connection.peer]
        if peer.connections.get(connection.link.number) is connection:
            del peer.connections[connection.link.number]
        self._loop.remove(connection)
        self.look_again()

    def _redial(self, peer: Peer, when: float) -> None:
        for number in peer.connections:
            peer.redial[number] = min(when, peer.redial.get(number, when))
        self.look_again()

    # What the loop tells.

    def reads(self, connection: Connection) -> bool:
        """Not from a peer that is over, nor at the end."""
        return not (self.peers[connection.peer].over or self._draining)

    def heard(self, connection: Connection) -> None:
        """The peer lives."""
        self.peers[connection.peer].heard = time.monotonic()

    def fault(self, connection: Connection, error: NodeError) -> None:
        """The peer sent what it must not."""
        self.fail(self.peers[connection.peer], error, tell=True)

    def broke(self, connection: Connection, how: str) -> None:
        """A cut: the link goes on over the next connection."""
        self.peers[connection.peer].trouble = f"its connection {connection.link.number} {how}"
        self._remove(connection)

    def goodbye(self, connection: Connection) -> None:
        """The peer has closed one of its connections on purpose."""
        peer = self.peers[connection.peer]
        cut_short = connection.inside_frame
        connection.say_goodbye()
        self._remove(connection)
        if not self.opened or self.ending or peer.over:
            return
        if cut_short:
            self._doubt(peer, ProtocolError(f"{peer.name} closed its connection in the middle of a frame"))
        if not peer.connections:
            peer.left = True

    def crashed(self, error: Exception) -> None:
        """A fault of the program."""
        self._parts.inbox.fail(self._parts.index, NodeError(f"I/O thread: {type(error).__name__}"))

    def ended(self) -> None:
        """Close everything and give every buffer back."""
        self.ending = True
        for connection in self._all():
            self._remove(connection)
        for peer in self.peers.values():
            for link in peer.links:
                link.close()
        self.look_again()

    def _doubt(self, peer: Peer, error: NodeError) -> None:
        if peer.doubt is None:
            peer.doubt = (time.monotonic() + GRACE_SECONDS, error)

    def fail(self, peer: Peer, error: NodeError, *, tell: bool) -> None:
        """A peer is over. The first failure of all goes to the receiver; `tell` sends the peer an ABORT."""
        if peer.over:
            return
        peer.over = True
        self._parts.inbox.fail(peer.index, error)
        for link in peer.links:
            link.drop()
        control = peer.connections.get(CONTROL)
        if tell and control is not None and not self.ending:
            control.link.queue(abort_message(error, self._parts.index))
            self._loop.wake(control)
        self.look_again()

    def look_again(self) -> None:
        """Wake whoever waits for `changed`."""
        with self.changed:
            self.changed.notify_all()

    # Time.

    def tick(self, now: float) -> None:
        """Look who has fallen silent, what has expired, who is owed a beat or an acknowledgement."""
        if self.ending:
            self._tick_ending(now)
            return
        beat = now >= self._next_beat
        if beat:
            self._next_beat = now + self._parts.peer_timeout / 3
        for peer in self.peers.values():
            if peer.over:
                continue
            peer.round_trip = least_round_trip(c.sock for c in peer.connections.values())
            self._look_at(peer, now)
            if beat and not peer.over:
                self._beat(peer)
        for connection in self._all():
            if now >= connection.expires:
                self.broke(connection, "was closed: a certificate has expired")
            elif connection.link.owes_acknowledgement and not self.peers[connection.peer].over:
                connection.link.queue(control_message(Kind.ACK, b""))
                self._loop.wake(connection)

    def _look_at(self, peer: Peer, now: float) -> None:
        silent = now - peer.heard
        if peer.doubt is not None and now >= peer.doubt[0]:
            self.fail(peer, peer.doubt[1], tell=True)
        elif peer.left:
            if peer.owed:
                self.fail(peer, left_too_early(peer.name), tell=False)
        elif self.opened and silent > self._parts.peer_timeout:
            known = [f"no byte for {self._parts.peer_timeout:g} s"]
            if peer.missing is not None:
                known += filter(None, (peer.trouble, peer.attempt))
            self.fail(peer, PeerLostError(f"{peer.name} is lost: {'; '.join(known)}"), tell=True)
        elif silent > self._parts.peer_timeout / 2 and peer.connections:
            # The network in between may have forgotten these connections: see whether new ones get through.
            self._redial(peer, now)

    def _beat(self, peer: Peer) -> None:
        control = peer.connections.get(CONTROL)
        if control is None or control.wants_write:
            return
        control.link.queue(control_message(Kind.BEAT, wire.encode_beat(*self._progress, self._waiting)))
        self._loop.wake(control)

    # The end.

    def _begin_end(self, last_words: Message | None, flush_seconds: float, drain_seconds: float) -> None:
        if self.ending:
            return
        self.ending = True
        self._flush_until = time.monotonic() + flush_seconds
        self._drain_seconds = drain_seconds
        for connection in self._all():
            if last_words is not None:
                connection.link.drop()
                if connection.link.number == CONTROL:
                    connection.link.queue(last_words)
            self._loop.wake(connection)
        self._loop.tick_now(0.01)

    def _tick_ending(self, now: float) -> None:
        if not self._draining:
            if now < self._flush_until and not all(c.link.idle for c in self._all()):
                return
            self._draining = True
            self._close_at = now + self._drain_seconds
            for connection in self._all():
                connection.say_goodbye()
        elif now >= self._close_at or not self._all():
            self._loop.finish()

    def _all(self) -> list[Connection]:
        return [c for peer in self.peers.values() for c in peer.connections.values()]
