"""A node's session with the coordinator over mutual TLS: kept up for as long as the node lives, through every cut."""

import logging
import secrets
import time
from collections.abc import Callable

from pcmoe_node.config import NodeConfig
from pcmoe_node.coordination.channels import Channels
from pcmoe_node.coordination.seat import Seat
from pcmoe_node.coordination.words import read_notice, report_message
from pcmoe_node.errors import ConfigError, NodeError
from pcmoe_node.exchange import wire
from pcmoe_node.exchange.base import Kind
from pcmoe_node.exchange.tls import TlsTransport
from pcmoe_node.exchange.tls.connection import Connection
from pcmoe_node.exchange.tls.dialer import Dialer
from pcmoe_node.exchange.tls.handshake import Side, Welcomed
from pcmoe_node.exchange.tls.refusals import Refusals
from pcmoe_node.exchange.tls.transport import HANDSHAKE_SECONDS
from pcmoe_node.exchange.wire import Hello
from pcmoe_node.identity import Credentials
from pcmoe_node.protocol.membership import Member, Report, View

log = logging.getLogger("pcmoe")

LAST_WORDS_SECONDS = 2.0


class Session(Channels):
    """Sends the seat's reports, passes notices on to it. Dialled again whenever there is no connection."""

    def __init__(self, config: NodeConfig, credentials: Credentials, seat: Seat, incarnation: str) -> None:
        """Begins to dial at once."""
        self._seat = seat
        self._coordinator = len(config.participants)
        self._connection: Connection | None = None
        self._redial_at = 0.0
        self._sent: Report | None = None
        self._progress = (0, "LOADING")
        self._dialer: Dialer | None = None
        names = (*(peer.name for peer in config.participants), config.coordinator.name)
        timeout = float(config.transport.peer_timeout_seconds)
        super().__init__("pcmoe-session", names, Kind.NOTICE, timeout)
        side = Side(
            credentials=credentials,
            hello=hello_of(config, incarnation),
            agreement=config.identity.agreement,
            timeout=min(HANDSHAKE_SECONDS, timeout),
            expected=frozenset(),
        )
        endpoint = config.coordinator.endpoint
        if endpoint is None:
            raise ConfigError("coordinator.endpoint: must be set")
        self._dialer = Dialer(side, self, self._coordinator, endpoint, self._refused)
        self._forget_renewals = credentials.on_renewal(self._renewed)

    # Anybody's.

    def report(self) -> None:
        """The seat has something new to say."""
        self._loop.call(self._say)

    def progress(self, phase: str) -> None:
        """What the beats say of this node."""
        self._progress = (self._progress[0] + 1, phase)

    def leave(self) -> None:
        """Say the last words and close."""
        self._forget_renewals()
        self.close(LAST_WORDS_SECONDS)
        if self._dialer is not None:
            self._dialer.close()
            self._dialer.join()

    # For the dialer.

    def due(self, peer: int) -> int | None:
        """Whether the coordinator is to be dialled, for the first time or anew."""
        connected = self._connection is not None and time.monotonic() < self._redial_at
        return None if connected else 0

    def received(self, peer: int, number: int) -> int:
        """Nothing is counted here."""
        return 0

    def note(self, peer: int, text: str) -> None:
        """While there is no connection, people are told why."""
        if self._connection is None:
            self._seat.trouble = text

    # What the channel tells.

    def opened(self, connection: Connection, welcomed: Welcomed) -> None:
        """Connected: say where this node stands."""
        if not self._seat.still_sits():
            self.drop(connection, "another process has taken this place")
            return
        old, self._connection = self._connection, connection
        if old is not None:
            self.drop(old, "replaced")
        now = time.monotonic()
        self._redial_at = now + max(1.0, (connection.expires - now) / 2)
        self._sent, self._seat.trouble = None, ""
        self._say()

    def said(self, connection: Connection, data: bytes) -> None:
        """A notice."""
        if connection is self._connection:
            self._seat.notice(read_notice(data))

    def closed(self, connection: Connection, why: str) -> None:
        """Disconnected: training goes on, and the dialer dials."""
        if connection is self._connection:
            self._connection = None
            self._seat.trouble = why
            log.warning("the coordinator is away (%s): steps go on, commits wait", why)

    def fault(self, connection: Connection, error: NodeError) -> None:
        """The coordinator says what it may not."""
        self._seat.refuse(error)
        super().fault(connection, error)

    def beat(self) -> bytes:
        """Alive, and how far."""
        return wire.encode_beat(*self._progress, frozenset())

    def beaten(self, connection: Connection, data: bytes) -> None:
        """The coordinator is alive; nothing else."""

    def crashed(self, error: Exception) -> None:
        """Training goes on; what needs the coordinator ends with this."""
        self._seat.refuse(NodeError(f"the session's I/O thread: {type(error).__name__}"))

    # Inside.

    def _say(self) -> None:
        report = self._seat.report()
        if self._connection is not None and report != self._sent:
            self._sent = report
            self.queue(self._connection, report_message(report))

    def _refused(self, error: NodeError) -> None:
        self._seat.refuse(error)

    def _renewed(self) -> None:
        self._redial_at = 0.0
        self.look_again()


class TlsPlace:
    """A node's network and coordinator, over mutual TLS; see `place.Place`. One object is one incarnation."""

    def __init__(self, config: NodeConfig) -> None:
        """Read certificates; connects nothing. Raises `IdentityError` or `ConfigError`."""
        self._config = config
        self.incarnation = secrets.token_hex(16)
        self.credentials = Credentials(
            config.participant,
            (*config.participants, config.coordinator),
            config.identity.certificate_directory,
        )
        self._session: Session | None = None
        self._refusals = Refusals()

    def sit_down(self, member: Callable[[str], Member]) -> Seat:
        """Begin to look for the coordinator, now and for as long as this node lives."""
        names = [peer.name for peer in self._config.participants]
        seat = Seat(member(self.incarnation), names, self._report)
        self.credentials.start()
        self._session = Session(self._config, self.credentials, seat, self.incarnation)
        return seat

    def transport(self, view: View) -> TlsTransport:
        """What carries messages within a view."""
        return TlsTransport(self._config, view, self.credentials, self._refusals)

    def progress(self, phase: str) -> None:
        """What the coordinator is told of this node."""
        if self._session is not None:
            self._session.progress(phase)

    def refused(self) -> dict[str, int]:
        """Connections turned down in any view, by reason."""
        return self._refusals.counts()

    def certificate_ends(self) -> float | None:
        """When the certificate in use expires."""
        return self.credentials.identity.ends.timestamp()

    def close(self) -> None:
        """Leave the coordinator."""
        if self._session is not None:
            self._session.leave()
        self.credentials.close()

    def _report(self) -> None:
        if self._session is not None:
            self._session.report()


def hello_of(config: NodeConfig, incarnation: str) -> Hello:
    """What a node says to the coordinator: one connection, of no view."""
    return Hello(
        sender=config.participant,
        receiver=config.coordinator.name,
        agreement_id=config.identity.agreement_id,
        agreement_digest=config.identity.agreement_digest,
        plan_digest=config.identity.plan_digest,
        incarnation=incarnation,
        connection=0,
        connections=0,
    )
