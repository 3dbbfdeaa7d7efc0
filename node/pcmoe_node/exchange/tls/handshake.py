"""From a TCP connection to a welcomed one, on either side. Blocking sockets, every call with a deadline.

    dialer                          listener
    TLS 1.3, leaf and ALPN checked on both sides
    HELLO  ───────────────────────▶ claims checked against this one participant's CA
           ◀─────────────────────── WELCOME, or REFUSED{code, reason}, or DIFFERS{digests, agreement}
    DIFFERS ──────────────────────▶ (only after a DIFFERS, so that both sides can name the path)

The dialer's TLS is done before the listener has looked at its certificate: it is connected once it has read
WELCOME.
"""

import socket
import ssl
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import StrEnum

from pcmoe_node.errors import ConfigError, IdentityError, NodeError, PeerLostError, ProtocolError
from pcmoe_node.exchange import wire
from pcmoe_node.exchange.base import Kind
from pcmoe_node.exchange.tls.difference import difference
from pcmoe_node.exchange.tls.frames import DRAIN_SECONDS, hang_up, read_frame, write_frame
from pcmoe_node.exchange.tls.wrapping import wrapped
from pcmoe_node.identity import ALPN, Credentials, Identity, fingerprint, presented

CONNECT_SECONDS = 3.0
"""One attempt; dialling goes on until the deadline of `open`."""


class Refusal(StrEnum):
    """Codes of REFUSED."""

    MALFORMED = "malformed"
    IDENTITY = "identity"
    AGREEMENT = "agreement"
    VIEW = "another-view"
    CLOSING = "closing"


RETRIED = (Refusal.VIEW, Refusal.CLOSING)
"""Refusals that time may cure: one of both has yet to hear of the other's view."""


class TryAgainError(Exception):
    """Not connected for a reason that may pass: the peer isn't up yet, or the connection broke."""


class NotAdmittedError(Exception):
    """The listener turned a connection down."""

    def __init__(
        self, error: NodeError, *, code: Refusal | None, claimed: int | None, verified: bool
    ) -> None:
        super().__init__(str(error))
        self.error = error
        self.code = code
        """What to tell the dialer, or None: there is no TLS to tell it over, or it knows."""
        self.claimed = claimed
        """The participant it claimed to be."""
        self.verified = verified
        """It proved to be that participant, so its disagreement counts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Welcomed:
    """A connection that both sides agree on."""

    sock: ssl.SSLSocket
    peer: int
    number: int
    """0 is control."""
    incarnation: str
    received: int
    """Messages that the peer has taken in full on this link."""
    expires: float
    """When the earlier of both certificates ends (monotonic)."""
    generation: int
    """Of our own certificate (`Credentials`)."""
    leaf: str
    """SHA-256 of the peer's certificate, hex."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Side:
    """What this node brings to every handshake."""

    credentials: Credentials
    hello: wire.Hello
    """Ours, with `receiver`, `connection` and `received` still to fill in."""
    agreement: str
    timeout: float
    """Seconds for TLS, and as many again for HELLO and its answer."""
    expected: frozenset[int]
    """Who may come to us, among those that the identity knows."""

    @property
    def identity(self) -> Identity:
        """As it is now: certificates are renewed while a node runs."""
        return self.credentials.identity


def parse_endpoint(text: str) -> tuple[str, int]:
    """Host and port of `host:port` (IPv6 in brackets)."""
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise ConfigError(f"endpoint {text}: must be host:port")
    return host.strip("[]"), int(port)


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """Whom to connect to, for which of the pair's links."""

    peer: int
    endpoint: str
    number: int = 0
    received: int = 0
    """Messages taken in full on that link so far."""


Admit = Callable[[int, wire.Hello], Refusal | int]
"""What a verified peer's HELLO gets: a refusal, or the number of messages taken in full on that link."""


def dial(side: Side, call: Call, hold: Callable[[socket.socket], None]) -> Welcomed:
    """Connect to a peer. Raises `TryAgainError` for what may pass and a `NodeError` for what won't.

    `hold` is given the socket once it is connected: whoever shuts it down ends this call.
    """
    identity, generation = side.credentials.current()
    name, peer, endpoint = identity.names[call.peer], call.peer, call.endpoint
    try:
        raw = socket.create_connection(parse_endpoint(endpoint), timeout=min(CONNECT_SECONDS, side.timeout))
    except OSError as error:
        raise TryAgainError(f"{endpoint}: {error.strerror or error}") from None
    try:
        sock = wrapped(raw, identity.client_context(peer), identity.server_name(peer))
    except OSError as error:
        raise TryAgainError(f"{endpoint}: {error.strerror or error}") from None
    try:
        hold(sock)
        sock.settimeout(side.timeout)
        sock.do_handshake()
        _check_alpn(sock, name)
        leaf = sock.getpeercert(binary_form=True) or b""
        identity.verify(peer, leaf)
        answered = _introduce(sock, side, call)
        return Welcomed(
            sock=sock,
            peer=peer,
            number=call.number,
            incarnation=answered.incarnation,
            received=answered.received,
            expires=_expiry(identity, leaf),
            generation=generation,
            leaf=fingerprint(leaf),
        )
    except ssl.SSLCertVerificationError as error:
        failure = _explained(side, peer, sock, error)
        hang_up(sock)
        raise failure from None
    except (ssl.SSLEOFError, ssl.SSLZeroReturnError) as error:
        sock.close()
        raise TryAgainError(f"{endpoint}: closed the connection during the handshake") from error
    except ssl.SSLError as error:
        sock.close()
        if not _is_refusal(error):  # bytes changed on the way, say
            raise TryAgainError(f"{endpoint}: {_reason(error)}") from None
        raise _alert(side, name, error) from None
    except OSError as error:
        sock.close()
        raise TryAgainError(f"{endpoint}: {error.strerror or error}") from None
    except BaseException:
        hang_up(sock)
        raise


def _introduce(sock: ssl.SSLSocket, side: Side, call: Call) -> wire.Welcome:
    name = side.identity.names[call.peer]
    deadline = time.monotonic() + side.timeout
    hello = replace(side.hello, receiver=name, connection=call.number, received=call.received)
    write_frame(sock, Kind.HELLO, wire.encode_json(hello), deadline)
    kind, payload = read_frame(sock, deadline)
    if kind is Kind.WELCOME:
        return wire.decode_welcome(payload)
    if kind is Kind.REFUSED:
        refused = wire.decode_refused(payload)
        text = f"{name} refused the connection: {refused.reason} ({refused.code})"
        if refused.code in RETRIED:
            raise TryAgainError(text)
        raise ProtocolError(text) if refused.code == Refusal.MALFORMED else IdentityError(text)
    if kind is Kind.DIFFERS:
        theirs = wire.decode_differs(payload)
        write_frame(sock, Kind.DIFFERS, wire.encode_json(_our_differs(side)), deadline)
        raise _disagreement(side, name, theirs)
    raise ProtocolError(f"{name} answered HELLO with {kind.name}: must be WELCOME, REFUSED or DIFFERS")


def answer(raw: socket.socket, side: Side, admit: Admit) -> Welcomed:
    """Take an accepted connection to WELCOME. Raises `NotAdmittedError`; the socket is then closed."""
    identity, generation = side.credentials.current()
    try:
        sock = wrapped(raw, identity.server_context(), None)
    except OSError as error:
        failure = IdentityError(f"handshake: {_reason(error)}")
        raise NotAdmittedError(failure, code=None, claimed=None, verified=False) from None
    try:
        sock.settimeout(side.timeout)
        hello, peer = _receive(sock, side, admit)
        leaf = sock.getpeercert(binary_form=True) or b""
        return Welcomed(
            sock=sock,
            peer=peer,
            number=hello.connection,
            incarnation=hello.incarnation,
            received=hello.received,
            expires=_expiry(identity, leaf),
            generation=generation,
            leaf=fingerprint(leaf),
        )
    except NotAdmittedError as refusal:
        if refusal.code is not None:
            payload = wire.encode_json(wire.Refused(code=refusal.code, reason=wire.printable(str(refusal))))
            with suppress(OSError):
                write_frame(sock, Kind.REFUSED, payload, time.monotonic() + DRAIN_SECONDS)
        hang_up(sock)
        raise
    except OSError as error:
        hang_up(sock)
        failure = IdentityError(f"handshake: {_reason(error)}")
        raise NotAdmittedError(failure, code=None, claimed=None, verified=False) from None
    except BaseException:
        sock.close()
        raise


def _expiry(identity: Identity, leaf: bytes) -> float:
    """When the earlier of our certificate and the peer's ends, on the monotonic clock."""
    return time.monotonic() + identity.seconds_left(leaf)


def _receive(sock: ssl.SSLSocket, side: Side, admit: Admit) -> tuple[wire.Hello, int]:
    """HELLO and who sent it, once it is welcomed."""
    sock.do_handshake()
    deadline = time.monotonic() + side.timeout
    claimed: int | None = None
    try:
        _check_alpn(sock, "the dialer")
        kind, payload = read_frame(sock, deadline)
        if kind is not Kind.HELLO:
            raise ProtocolError(f"the first frame is {kind.name}: must be HELLO")
        hello = wire.decode_hello(payload)
        claimed = _claimed(side, hello)
        side.identity.verify(claimed, sock.getpeercert(binary_form=True) or b"")
    except ProtocolError as error:
        raise NotAdmittedError(error, code=Refusal.MALFORMED, claimed=claimed, verified=False) from None
    except IdentityError as error:
        raise NotAdmittedError(error, code=Refusal.IDENTITY, claimed=claimed, verified=False) from None
    ours = side.hello
    if (hello.agreement_digest, hello.plan_digest) != (ours.agreement_digest, ours.plan_digest):
        disagreement = _exchange_differs(sock, side, claimed, deadline)
        raise NotAdmittedError(disagreement, code=None, claimed=claimed, verified=True)
    if hello.connections != ours.connections:
        rule = f"must be the agreed {ours.connections}"
        failure = ProtocolError(f"{hello.sender} wants {hello.connections} data connections: {rule}")
        raise NotAdmittedError(failure, code=Refusal.MALFORMED, claimed=claimed, verified=True)
    admitted = admit(claimed, hello)
    if isinstance(admitted, Refusal):
        conflict = PeerLostError(f"connection {hello.connection} of {hello.sender}: {admitted}")
        raise NotAdmittedError(conflict, code=admitted, claimed=claimed, verified=False)
    welcome = wire.Welcome(incarnation=ours.incarnation, received=admitted)
    write_frame(sock, Kind.WELCOME, wire.encode_json(welcome), deadline)
    return hello, claimed


def _claimed(side: Side, hello: wire.Hello) -> int:
    """Index of the participant that HELLO claims to come from; it must be meant for us."""
    ours = side.hello
    for field, theirs, rule in (
        ("receiver", hello.receiver, ours.sender),
        ("agreement_id", hello.agreement_id, ours.agreement_id),
    ):
        if theirs != rule:
            raise IdentityError(f"HELLO: {field} is {wire.printable(theirs, 80)}: must be {rule}")
    names = side.identity.names
    if hello.sender not in names or names.index(hello.sender) not in side.expected:
        raise IdentityError(
            f"HELLO: sender is {wire.printable(hello.sender, 80)}: must be another participant"
        )
    return names.index(hello.sender)


def _our_differs(side: Side) -> wire.Differs:
    fits = len(side.agreement.encode()) <= wire.AGREEMENT_LIMIT
    return wire.Differs(
        agreement_digest=side.hello.agreement_digest,
        plan_digest=side.hello.plan_digest,
        agreement=side.agreement if fits else "",
    )


def _exchange_differs(sock: ssl.SSLSocket, side: Side, peer: int, deadline: float) -> IdentityError:
    name = side.identity.names[peer]
    try:
        write_frame(sock, Kind.DIFFERS, wire.encode_json(_our_differs(side)), deadline)
        kind, payload = read_frame(sock, deadline)
        if kind is Kind.DIFFERS:
            return _disagreement(side, name, wire.decode_differs(payload))
    except (OSError, ProtocolError):
        pass
    return IdentityError(f"{name} holds another agreement or plan, and didn't say which")


def _disagreement(side: Side, name: str, theirs: wire.Differs) -> IdentityError:
    ours = side.hello
    if theirs.agreement_digest == ours.agreement_digest:
        return IdentityError(
            f"{name} holds another plan of the same agreement: ours {ours.plan_digest}, "
            f"{name}'s {wire.printable(theirs.plan_digest, 80)}: must be equal (another version of this program?)"
        )
    where = difference(side.agreement, theirs.agreement, name) if theirs.agreement else "its text is too long"
    return IdentityError(
        f"{name} holds another agreement (ours {ours.agreement_digest}, {name}'s "
        f"{wire.printable(theirs.agreement_digest, 80)}): {where}"
    )


def _check_alpn(sock: ssl.SSLSocket, name: str) -> None:
    chosen = sock.selected_alpn_protocol()
    if chosen != ALPN:
        raise IdentityError(f"{name}: ALPN is {wire.printable(str(chosen), 40)}: must be {ALPN}")


def _explained(
    side: Side, peer: int, sock: ssl.SSLSocket, error: ssl.SSLCertVerificationError
) -> IdentityError:
    leaf = presented(sock)
    shown = f" (SHA-256 {fingerprint(leaf)})" if leaf else ""
    return IdentityError(
        f"{side.identity.names[peer]}: its certificate{shown} doesn't verify for "
        f"{side.identity.server_name(peer)} with the CA listed for it "
        f"(SHA-256 {side.identity.trusted(peer)}): {error.verify_message}"
    )


def _alert(side: Side, name: str, error: ssl.SSLError) -> IdentityError:
    return IdentityError(
        f"{name}: TLS 1.3 with {ALPN} and both certificates failed (ours has SHA-256 "
        f"{side.identity.fingerprint}): {_reason(error)}"
    )


_REFUSALS = (
    "CERTIFICATE",
    "UNKNOWN_CA",
    "HANDSHAKE_FAILURE",
    "PROTOCOL",
    "ACCESS_DENIED",
    "INSUFFICIENT_SECURITY",
    "WRONG_VERSION",  # it doesn't speak TLS
)


def _is_refusal(error: ssl.SSLError) -> bool:
    """Whether the other side doesn't want us, or can't; everything else a second attempt may cure."""
    return any(word in (error.reason or "") for word in _REFUSALS)


def _reason(error: OSError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate doesn't verify: {error.verify_message}"
    if isinstance(error, ssl.SSLError) and error.reason:
        return error.reason.replace("_", " ").lower()
    return str(error.strerror or error)
