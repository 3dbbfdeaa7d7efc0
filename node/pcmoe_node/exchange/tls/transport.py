"""`TlsTransport`: the transport of one node, put together from door, dialers and I/O thread."""

import logging
import random
import secrets
import socket
import threading
import time

from pcmoe_node.config import NodeConfig
from pcmoe_node.errors import ConfigError, IdentityError, NodeError, PeerLostError
from pcmoe_node.exchange.base import Arrival, Buffer, Kind, Message, Pulse, Traffic
from pcmoe_node.exchange.buffers import BufferPool
from pcmoe_node.exchange.inbox import Counters, Inbox, seal
from pcmoe_node.exchange.limits import Limits
from pcmoe_node.exchange.local import DROPPED_AFTER_GOODBYE
from pcmoe_node.exchange.tls.door import Door, interrupt
from pcmoe_node.exchange.tls.handshake import (
    CONNECT_SECONDS,
    DRAIN_SECONDS,
    NotAdmittedError,
    Refusal,
    Side,
    TryAgainError,
    Welcomed,
    answer,
    dial,
)
from pcmoe_node.exchange.tls.io_thread import IoThread
from pcmoe_node.exchange.tls.peers import CONTROL, Parts, abort_message, left_too_early
from pcmoe_node.exchange.wire import Hello, printable
from pcmoe_node.identity import Identity

log = logging.getLogger(__name__)

HANDSHAKE_SECONDS = 10.0
FLUSH_SECONDS = 5.0
GOODBYE_SECONDS = 1.0
ABORT_SECONDS = 1.0
_RETRY_FIRST = 0.05
_RETRY_LONGEST = 2.0


class TlsTransport:
    """One node's connections to all others; see `base.Transport`. Nothing travels in plain text, ever."""

    def __init__(self, config: NodeConfig) -> None:
        """Read certificates and compute limits; connects nothing. Raises `IdentityError` or `ConfigError`."""
        self._config = config
        self._identity = Identity(config)
        self._names = self._identity.names
        peers = [i for i in range(len(self._names)) if i != config.index]
        timeout = float(config.transport.peer_timeout_seconds)
        self._pool = BufferPool()
        self._inbox = Inbox()
        self._counters = Counters(peers)
        self._side = Side(
            identity=self._identity,
            hello=_hello(config),
            agreement=config.identity.agreement,
            timeout=min(HANDSHAKE_SECONDS, timeout),
        )
        self._parts = Parts(
            index=config.index,
            names=self._names,
            connections=config.transport.connections,
            peer_timeout=timeout,
            limits=Limits.from_config(config),
            pool=self._pool,
            inbox=self._inbox,
            counters=self._counters,
        )
        self._dials = {peer: endpoint for peer in peers if (endpoint := _dialled(config, peer)) is not None}
        self._io: IoThread | None = None
        self._door: Door | None = None
        self._dialers: list[threading.Thread] = []
        self._fatal: NodeError | None = None
        self._refused: list[tuple[int | None, NodeError]] = []
        self._latest: dict[int, str] = {}
        self._held: dict[int, socket.socket] = {}
        self._closed = False
        self._closing = threading.Lock()

    def open(self, timeout: float) -> None:
        """Listen, dial, and wait until every peer is welcomed on all connections, or raise a `NodeError`.

        When it raises, those who were connected have been told and everything is closed.
        """
        deadline = time.monotonic() + timeout
        io = self._io = IoThread(self._parts)
        try:
            if self._config.identity.listen is not None:
                self._door = Door(self._config.identity.listen, self._greet, io.take)
            for peer, endpoint in self._dials.items():
                thread = threading.Thread(
                    target=self._keep_dialling,
                    args=(peer, endpoint, deadline),
                    name=f"pcmoe-dial-{self._names[peer]}",
                    daemon=True,
                )
                self._dialers.append(thread)
                thread.start()
            with io.changed:
                io.changed.wait_for(lambda: io.opened or self._over() is not None, timeout)
            if not io.opened:
                raise self._over() or self._not_connected(timeout)
        except NodeError as error:
            self.abort(error)
            raise
        log.info(
            "connected to %s", ", ".join(self._names[peer] for peer in io.peers) or "nobody: there is one"
        )

    def _over(self) -> NodeError | None:
        return self._fatal or self._inbox.failure

    def _not_connected(self, timeout: float) -> NodeError:
        """Why the deadline of `open` passed: the first missing peer, and the last thing known of it."""
        io = self._io
        assert io is not None
        missing = [peer for peer in io.peers if io.missing(peer) is not None]
        for peer in missing:
            for claimed, error in reversed(self._refused):
                if claimed in (peer, None):
                    text = f"{self._names[peer]} is not connected after {timeout:g} s; last refused: {error}"
                    return IdentityError(text)
        names = ", ".join(self._names[peer] for peer in missing)
        latest = "; ".join(self._latest[peer] for peer in missing if peer in self._latest)
        return PeerLostError(
            f"not connected after {timeout:g} s: {names}" + (f" ({latest})" if latest else "")
        )

    # Who comes to us.

    def _greet(self, sock: socket.socket) -> Welcomed | None:
        try:
            return answer(sock, self._side, self._admit)
        except NotAdmittedError as refusal:
            self._note_refusal(refusal)
            return None

    def _admit(self, peer: int, incarnation: str, number: int) -> Refusal | None:
        """Newest wins until all are connected; then a second incarnation means that the first is gone."""
        io = self._io
        if io is None or self._closed:
            return Refusal.CLOSING
        known = io.peers[peer]
        if not io.opened:
            return None
        if incarnation == known.incarnation:
            return Refusal.CONNECTED
        if not known.left:
            failure = PeerLostError(f"{known.name} is lost: it has started again as another incarnation")
            io.call(lambda: io.fail(known, failure, tell=False))
        return Refusal.RESTARTED

    def _note_refusal(self, refusal: NotAdmittedError) -> None:
        claimed = (
            "someone"
            if refusal.claimed is None
            else f"a connection claiming to be {self._names[refusal.claimed]}"
        )
        log.warning("turned down %s: %s", claimed, printable(str(refusal.error)))
        self._refused = [*self._refused[-15:], (refusal.claimed, refusal.error)]
        if refusal.verified and self._io is not None and not self._io.opened:
            self._end_open(refusal.error)

    def _end_open(self, error: NodeError) -> None:
        io = self._io
        assert io is not None
        with io.changed:
            self._fatal = self._fatal or error
            io.changed.notify_all()

    # Whom we go to.

    def _keep_dialling(self, peer: int, endpoint: str, deadline: float) -> None:
        """Dial what a peer lacks, again and again, until everybody is connected or somebody gives up."""
        io = self._io
        assert io is not None
        pause = _RETRY_FIRST
        while not io.opened and self._over() is None and not self._closed and time.monotonic() < deadline:
            number = io.missing(peer)
            if number is None:
                with io.changed:
                    io.changed.wait(0.5)
                continue
            try:
                welcomed = dial(self._side, peer, number, endpoint, lambda sock: self._hold(peer, sock))
            except TryAgainError as error:
                self._latest[peer] = str(error)
                with io.changed:
                    io.changed.wait_for(lambda: self._closed or self._over() is not None, pause)
                pause = min(_RETRY_LONGEST, pause * 1.6) * random.uniform(0.8, 1.0)
                continue
            except NodeError as error:
                self._end_open(error)
                return
            finally:
                # Before it is handed over: a connection in use must not be interrupted.
                self._held.pop(peer, None)
            pause = _RETRY_FIRST
            io.take(welcomed)
            self._wait_adopted(peer, number)

    def _wait_adopted(self, peer: int, number: int) -> None:
        """Until the I/O thread has taken the connection over, so that it isn't dialled twice."""
        io = self._io
        assert io is not None
        with io.changed:
            io.changed.wait_for(lambda: io.missing(peer) != number or self._closed, 1.0)

    def _hold(self, peer: int, sock: socket.socket) -> None:
        self._held[peer] = sock
        if self._closed:
            raise TryAgainError("closing")

    # Messages.

    def allocate(self, size: int) -> Buffer:
        """A buffer of at least `size` bytes from the pool, content undefined; never blocks."""
        return self._pool.allocate(size)

    def send(self, peer: int, message: Message) -> None:
        """Queue a message and return at once; its payload is released when it is written."""
        seal(message)
        io = self._io
        if io is None:
            raise RuntimeError("send before open")
        header = message.header
        control = header.kind >= Kind.STEP_END
        number = CONTROL if control else 1 + header.request % self._parts.connections
        self._counters.sent(peer, header)
        if io.send(peer, number, message):
            return
        if message.payload is not None:
            message.payload.release()
        known = io.peers[peer]
        if known.left and not self._closed and header.kind not in DROPPED_AFTER_GOODBYE:
            self._inbox.fail(peer, left_too_early(known.name))

    def receive(self, timeout: float) -> Arrival | None:
        """The next arrival, or None after `timeout` seconds. The caller releases its payload."""
        return self._inbox.receive(timeout)

    def progress(self, phase: str) -> None:
        """Something moved: the beats say so."""
        if self._io is not None:
            self._io.progress(phase)

    def pulses(self) -> dict[int, Pulse]:
        """What is known of each peer's progress."""
        return self._io.pulses() if self._io is not None else {}

    def traffic(self) -> dict[int, Traffic]:
        """A copy of the counters, per peer."""
        return self._counters.copy()

    # The end.

    def abort(self, error: NodeError) -> None:
        """Tell every peer that this node ends, and why, then close (at most 2 s)."""
        told = self._io.reception.relayed if self._io is not None else None
        if told is not None and error is told[0]:
            last_words = abort_message(error, told[1], told[2])
        else:
            last_words = abort_message(error, self._config.index)
        self._end(last_words, ABORT_SECONDS, GOODBYE_SECONDS / 2)

    def close(self) -> None:
        """Write what is queued (at most 5 s), say goodbye, close everything, join all threads. Idempotent."""
        self._end(None, FLUSH_SECONDS, GOODBYE_SECONDS)

    def _end(self, last_words: Message | None, flush_seconds: float, drain_seconds: float) -> None:
        with self._closing:
            if self._closed:
                return
            self._closed = True
            self._inbox.close()
            for sock in list(self._held.values()):
                interrupt(sock)
            if self._io is not None:
                self._io.end(last_words, flush_seconds, drain_seconds)
            if self._door is not None:
                self._door.close()
            for thread in self._dialers:
                thread.join(CONNECT_SECONDS + 2 * DRAIN_SECONDS)
            if self._io is not None:
                self._io.turn_away()
            self._inbox.close()


def _hello(config: NodeConfig) -> Hello:
    return Hello(
        sender=config.participant,
        receiver="",
        agreement_id=config.identity.agreement_id,
        agreement_digest=config.identity.agreement_digest,
        plan_digest=config.identity.plan_digest,
        incarnation=secrets.token_hex(16),
        connection=0,
        connections=config.transport.connections,
    )


def _dialled(config: NodeConfig, peer: int) -> str | None:
    """The peer's endpoint if we are the one to dial: the smaller name, or the one without an endpoint."""
    ours, theirs = config.participants[config.index], config.participants[peer]
    if theirs.endpoint is None:
        if ours.endpoint is None:
            raise ConfigError(
                f"participants: {ours.name} and {theirs.name}: at least one must have an endpoint"
            )
        return None
    if ours.endpoint is None or config.index < peer:
        return theirs.endpoint
    return None
