"""The coordinator as a process: a door, a session per node, and the mind that decides (`protocol/coordinator.py`).

It keeps nothing. While it is away nodes train on; they can't commit, and whoever was lost can't come back.
"""

import logging
import secrets
import socket
import time
from dataclasses import dataclass

from pcmoe_node.config import CoordinatorConfig
from pcmoe_node.coordination.channels import Channels
from pcmoe_node.coordination.page import CoordinatorPage, Shown
from pcmoe_node.coordination.words import notice_message, read_report
from pcmoe_node.errors import ConfigError
from pcmoe_node.exchange import wire
from pcmoe_node.exchange.base import Kind
from pcmoe_node.exchange.tls.connection import Connection
from pcmoe_node.exchange.tls.door import Door
from pcmoe_node.exchange.tls.handshake import NotAdmittedError, Refusal, Side, Welcomed, answer
from pcmoe_node.exchange.tls.transport import HANDSHAKE_SECONDS
from pcmoe_node.identity import Credentials
from pcmoe_node.journal import Journal
from pcmoe_node.protocol.coordinator import Coordinator, Tell

log = logging.getLogger("pcmoe")

GOODBYE_SECONDS = 1.0


@dataclass(slots=True)
class Guest:
    """One session."""

    connection: Connection
    phase: str = "STARTING"
    before: Connection | None = None
    """The one whose place it took: its node closes it, so that there is no moment without one."""


class CoordinatorServer(Channels):
    """Sessions by (participant, incarnation); the mind is only ever touched on the I/O thread."""

    def __init__(self, config: CoordinatorConfig, journal: Journal) -> None:
        """Read the certificate and listen. Raises `IdentityError`, `ConfigError`, `ResourceError`."""
        if config.identity.listen is None:
            raise ConfigError("identity.listen: must be set for the coordinator")
        names = tuple(peer.name for peer in config.participants)
        self.page = CoordinatorPage()
        self._names = names
        self._journal = journal
        self._mind = Coordinator(names)
        self._guests: dict[tuple[int, str], Guest] = {}
        self._of: dict[Connection, tuple[int, str]] = {}
        timeout = float(config.peer_timeout_seconds)
        self.credentials = Credentials(
            config.coordinator.name,
            (*config.participants, config.coordinator),
            config.identity.certificate_directory,
        )
        self.page.certificate_ends = lambda: self.credentials.identity.ends.timestamp()
        self._side = Side(
            credentials=self.credentials,
            hello=_hello(config),
            agreement=config.identity.agreement,
            timeout=min(HANDSHAKE_SECONDS, timeout),
            expected=frozenset(range(len(names))),
        )
        super().__init__("pcmoe-coordinator", (*names, config.coordinator.name), Kind.REPORT, timeout)
        try:
            self._door = Door(config.identity.listen, self._greet, self.take)
        except BaseException:
            self.close(0.0)
            raise
        self.credentials.start()
        self._show()

    def stop(self) -> None:
        """Say goodbye to everybody."""
        self.close(GOODBYE_SECONDS)
        self._door.close()
        self.credentials.close()

    # Who comes.

    def _greet(self, sock: socket.socket) -> Welcomed | None:
        try:
            return answer(sock, self._side, lambda _peer, _hello: Refusal.CLOSING if self.ending else 0)
        except NotAdmittedError as refusal:
            self.page.refusals.count(refusal)
            claimed = "someone" if refusal.claimed is None else self._names[refusal.claimed]
            text = wire.printable(str(refusal.error))
            log.warning("turned down %s: %s", claimed, text)
            if refusal.verified and refusal.claimed is not None:
                member, code = refusal.claimed, refusal.error.exit_code
                self._loop.call(lambda: self._carry_out(self._mind.refused(member, code, text)))
            return None

    def opened(self, connection: Connection, welcomed: Welcomed) -> None:
        """A node's session; a second one of the same incarnation takes the first one's place."""
        key = (welcomed.peer, welcomed.incarnation)
        old = self._guests.get(key)
        self._guests[key], self._of[connection] = Guest(connection), key
        if old is not None:
            self._guests[key].before = old.connection
            self._of.pop(old.connection, None)
            if old.before is not None:
                self.drop(old.before, "replaced twice")
        self._mind.connected(*key)

    def said(self, connection: Connection, data: bytes) -> None:
        """A report."""
        key = self._of.get(connection)
        if key is not None:
            self._carry_out(self._mind.report(*key, read_report(data, self._names[key[0]])))

    def beat(self) -> bytes:
        """Alive."""
        return wire.encode_beat(int(time.monotonic()), self.page.shown.state, frozenset())

    def beaten(self, connection: Connection, data: bytes) -> None:
        """A node is alive, and where it is."""
        key = self._of.get(connection)
        if key is not None:
            _, self._guests[key].phase, _ = wire.decode_beat(data)
            self._carry_out(self._mind.alive(*key))

    def crashed(self, error: Exception) -> None:
        """The process ends, and whoever started it starts it again."""

    def closed(self, connection: Connection, why: str) -> None:
        """A session has ended."""
        key = self._of.pop(connection, None)
        if key is None:
            return
        before = self._guests.pop(key).before
        if before is not None:
            self.drop(before, "what took its place is gone")  # its node, if it still uses it, connects anew
        log.info("%s is not connected any more: %s", self._names[key[0]], why)
        self._carry_out(self._mind.disconnected(*key))

    # What follows.

    def _carry_out(self, tells: list[Tell]) -> None:
        for tell in tells:
            guest = self._guests.get((tell.member, tell.incarnation))
            if guest is not None:
                self.queue(guest.connection, notice_message(tell.notice))
        self._show()

    def _show(self) -> None:
        mind, before = self._mind, self.page.shown
        present = mind.present()
        state = "RUNNING" if mind.view else "FAILED" if mind.failure is not None else "FORMING"
        members: list[dict[str, object]] = []
        for member, name in enumerate(self._names):
            incarnation, report = present.get(member, ("", None))
            guest = self._guests.get((member, incarnation))
            members.append(
                {
                    "name": name,
                    "connected": report is not None,
                    "phase": guest.phase if guest else "ABSENT",
                    "round": report.newest if report else None,
                    "lost": report.lost if report else "",
                }
            )
        failure = mind.failure
        error = None if failure is None or mind.view else failure.reason
        self.page.shown = Shown(state, mind.view, mind.round, mind.reason, error, tuple(members))
        self._tell_people(before, self.page.shown)

    def _tell_people(self, before: Shown, now: Shown) -> None:
        if now.view != before.view and now.view:
            self.page.views += 1
            self._say("ViewFormed", f"view {now.view} stands")
        elif now.view != before.view:
            self._say("ViewOver", f"view {before.view} is over: {now.reason}")
        if now.round > before.round:
            self.page.last_commit = time.time()
            self._say("Committed", f"round {now.round} is committed")
        if now.error is not None and now.error != before.error:
            self._say("Failed", now.error)

    def _say(self, kind: str, text: str) -> None:
        log.info("%s", text)
        self._journal.event(kind, text)


def _hello(config: CoordinatorConfig) -> wire.Hello:
    return wire.Hello(
        sender=config.coordinator.name,
        receiver="",
        agreement_id=config.identity.agreement_id,
        agreement_digest=config.identity.agreement_digest,
        plan_digest=config.identity.plan_digest,
        incarnation=secrets.token_hex(16),
        connection=0,
        connections=0,
    )
