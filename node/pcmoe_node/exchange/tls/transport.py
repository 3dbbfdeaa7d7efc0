"""`TlsTransport`: the transport of one node in one view, put together from door, dialers and I/O thread."""

import logging
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass

from pcmoe_node.config import NodeConfig
from pcmoe_node.errors import ConfigError, IdentityError, NodeError, PeerLostError
from pcmoe_node.exchange.base import (
    DROPPED_AFTER_GOODBYE,
    Arrival,
    Buffer,
    Kind,
    Message,
    Presented,
    Pulse,
    Reach,
    Traffic,
)
from pcmoe_node.exchange.buffers import BufferPool
from pcmoe_node.exchange.inbox import Counters, Inbox, seal
from pcmoe_node.exchange.limits import Limits
from pcmoe_node.exchange.tls.dialer import Dialer
from pcmoe_node.exchange.tls.door import Door
from pcmoe_node.exchange.tls.handshake import NotAdmittedError, Refusal, Side, Welcomed, answer
from pcmoe_node.exchange.tls.io_thread import IoThread
from pcmoe_node.exchange.tls.peers import CONTROL, Parts, abort_message, left_too_early
from pcmoe_node.exchange.tls.refusals import Refusals
from pcmoe_node.exchange.wire import Hello, printable
from pcmoe_node.identity import Credentials
from pcmoe_node.protocol.membership import View

log = logging.getLogger(__name__)

HANDSHAKE_SECONDS = 10.0
FLUSH_SECONDS = 5.0
GOODBYE_SECONDS = 1.0
ABORT_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class _Turned:
    """A connection that was turned down."""

    claimed: int | None
    error: NodeError


class TlsTransport:
    """One node's connections to the other members of a view; see `base.Transport`. All of it is mutual TLS."""

    def __init__(
        self, config: NodeConfig, view: View, credentials: Credentials, refusals: Refusals | None = None
    ) -> None:
        """Compute limits; connects nothing. Raises `ConfigError`. `refusals` counts who is turned down."""
        self._refusals = refusals or Refusals()
        self._config = config
        self._view = view
        self._credentials = credentials
        self._names = tuple(peer.name for peer in config.participants)
        members = tuple(who for who, _ in view.members)
        peers = [who for who in members if who != config.index]
        timeout = float(config.transport.peer_timeout_seconds)
        self._pool = BufferPool()
        self._inbox = Inbox()
        self._counters = Counters(peers)
        self._side = Side(
            credentials=credentials,
            hello=_hello(config, view),
            agreement=config.identity.agreement,
            timeout=min(HANDSHAKE_SECONDS, timeout),
            expected=frozenset(peers),
        )
        self._parts = Parts(
            index=config.index,
            names=self._names,
            members=members,
            view=view.number,
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
        self._dialers: dict[int, Dialer] = {}
        self._fatal: NodeError | None = None
        self._turned_down: list[_Turned] = []
        self._forget_renewals: Callable[[], None] = _nothing
        self._closed = False
        self._closing = threading.Lock()

    def open(self, timeout: float) -> None:
        """Listen, dial, and wait until every peer is welcomed on all connections, or raise a `NodeError`.

        When it raises, those who were connected have been told and everything is closed.
        """
        io = self._io = IoThread(self._parts)
        try:
            if self._config.identity.listen is not None:
                self._door = Door(self._config.identity.listen, self._greet, io.take)
            for peer, endpoint in self._dials.items():
                self._dialers[peer] = Dialer(self._side, io, peer, endpoint, self._end_open)
            self._forget_renewals = self._credentials.on_renewal(io.redial_all)
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
        missing = [index for index, peer in io.peers.items() if peer.missing is not None]
        for peer in missing:
            for turned in reversed(self._turned_down):
                if turned.claimed in (peer, None):
                    text = f"{self._names[peer]} is not connected after {timeout:g} s; last refused: {turned.error}"
                    return IdentityError(text)
        names = ", ".join(self._names[peer] for peer in missing)
        latest = "; ".join(filter(None, (io.peers[peer].attempt for peer in missing)))
        return PeerLostError(
            f"not connected after {timeout:g} s: {names}" + (f" ({latest})" if latest else "")
        )

    # Who comes to us.

    def _greet(self, sock: socket.socket) -> Welcomed | None:
        try:
            return answer(sock, self._side, self._admit)
        except NotAdmittedError as refusal:
            self._refusals.count(refusal)
            self._note_refusal(refusal)
            return None

    def _admit(self, peer: int, hello: Hello) -> Refusal | int:
        """Only who is of this view, in the incarnation that the view names, may come; the newest connection counts."""
        io, view = self._io, self._view
        if io is None or self._closed or io.peers[peer].over or io.peers[peer].left:
            return Refusal.CLOSING
        if (hello.view, hello.mark) != (view.number, view.mark):
            return Refusal.VIEW
        if hello.incarnation != view.incarnation(peer):
            return Refusal.VIEW
        return io.peers[peer].links[hello.connection].delivered

    def _note_refusal(self, refusal: NotAdmittedError) -> None:
        claimed = (
            "someone"
            if refusal.claimed is None
            else f"a connection claiming to be {self._names[refusal.claimed]}"
        )
        log.warning("turned down %s: %s", claimed, printable(str(refusal.error)))
        if refusal.code in (Refusal.VIEW, Refusal.CLOSING):
            return
        if self._io is not None:
            for peer in self._io.peers.values():
                if refusal.claimed == peer.index or (refusal.claimed is None and peer.missing is not None):
                    self._io.note(peer.index, f"last refused: {refusal.error}")
        self._turned_down = [*self._turned_down[-15:], _Turned(refusal.claimed, refusal.error)]
        if refusal.verified and self._io is not None and not self._io.opened:
            self._end_open(refusal.error)

    def _end_open(self, error: NodeError) -> None:
        io = self._io
        assert io is not None
        if not io.opened:  # later: a cut that lasts, and the peer's silence ends it
            self._fatal = self._fatal or error
            io.look_again()

    # Messages.

    def allocate(self, size: int) -> Buffer:
        """A buffer of at least `size` bytes from the pool, content undefined; never blocks."""
        return self._pool.allocate(size)

    def send(self, peer: int, message: Message) -> None:
        """Queue a message and return at once; its payload is released when the peer has it."""
        seal(message)
        io = self._io
        if io is None:
            raise RuntimeError("send before open")
        header, known = message.header, io.peers[peer]
        self._counters.sent(peer, header)
        if not (known.left or known.over or io.ending):
            control = header.kind >= Kind.STEP_END
            io.send(peer, CONTROL if control else 1 + header.request % self._parts.connections, message)
            return
        if message.payload is not None:
            message.payload.release()
        if known.left and not self._closed and header.kind not in DROPPED_AFTER_GOODBYE:
            self._inbox.fail(peer, left_too_early(known.name))

    def receive(self, timeout: float) -> Arrival | None:
        """The next arrival, or None after `timeout` seconds. The caller releases its payload."""
        return self._inbox.receive(timeout)

    def interrupt(self, error: NodeError | None) -> None:
        """End a `receive` now: with this failure, or, without one, with an arrival that says nothing."""
        if error is None:
            self._inbox.nudge(self._config.index)
        else:
            self._inbox.fail(self._config.index, error)
            if self._io is not None:
                self._io.look_again()

    def progress(self, phase: str) -> None:
        """Something moved: the beats say so."""
        if self._io is not None:
            self._io.progress(phase)

    def waiting(self, participants: frozenset[int]) -> None:
        """Whom this node waits for: the beats say so."""
        if self._io is not None:
            self._io.waiting(participants)

    def pulses(self) -> dict[int, Pulse]:
        """What is known of each peer's progress."""
        return self._io.pulses() if self._io is not None else {}

    def reach(self) -> dict[int, Reach]:
        """How every peer is reached now."""
        return self._io.reach() if self._io is not None else {}

    def pulse(self) -> Pulse:
        """What our own beats say."""
        if self._io is None:
            return Pulse(counter=0, phase="STARTING", still_seconds=0.0, left=False)
        return self._io.pulse()

    def traffic(self) -> dict[int, Traffic]:
        """A copy of the counters, per peer."""
        return self._counters.copy()

    def presented(self) -> dict[int, Presented]:
        """The certificates of every peer that has connected."""
        identity, peers = self._credentials.identity, self._io.peers if self._io is not None else {}
        return {
            index: Presented(peer.leaf, identity.trusted(index)) for index, peer in peers.items() if peer.leaf
        }

    @property
    def reconnected(self) -> int:
        """Connections that took the place of an earlier one of this view."""
        return self._io.reconnected if self._io is not None else 0

    # The end.

    def abort(self, error: NodeError) -> None:
        """Tell every peer that this node ends, and why, then close (at most 2 s)."""
        self._end(abort_message(error, self._config.index), ABORT_SECONDS, GOODBYE_SECONDS / 2)

    def close(self) -> None:
        """Write what is queued (at most 5 s), say goodbye, close everything, join all threads. Idempotent."""
        self._end(None, FLUSH_SECONDS, GOODBYE_SECONDS)

    def _end(self, last_words: Message | None, flush_seconds: float, drain_seconds: float) -> None:
        with self._closing:
            if self._closed:
                return
            self._closed = True
            self._forget_renewals()
            self._inbox.close()
            for dialer in self._dialers.values():
                dialer.close()
            if self._io is not None:
                self._io.end(last_words, flush_seconds, drain_seconds)
            if self._door is not None:
                self._door.close()
            for dialer in self._dialers.values():
                dialer.join()
            self._inbox.close()


def _nothing() -> None:
    """No renewals are listened to yet."""


def _hello(config: NodeConfig, view: View) -> Hello:
    return Hello(
        sender=config.participant,
        receiver="",
        agreement_id=config.identity.agreement_id,
        agreement_digest=config.identity.agreement_digest,
        plan_digest=config.identity.plan_digest,
        incarnation=view.incarnation(config.index) or "",
        connection=0,
        connections=config.transport.connections,
        view=view.number,
        mark=view.mark,
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
