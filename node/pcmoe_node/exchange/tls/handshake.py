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

from pcmoe_node.errors import ConfigError, IdentityError, NodeError, ProtocolError
from pcmoe_node.exchange import wire
from pcmoe_node.exchange.base import Header, Kind
from pcmoe_node.exchange.tls.difference import difference
from pcmoe_node.identity import ALPN, Identity, fingerprint, presented

DRAIN_SECONDS = 1.0
CONNECT_SECONDS = 3.0
"""One attempt; dialling goes on until the deadline of `open`."""
_LIMITS = {Kind.DIFFERS: wire.DIFFERS_LIMIT}


class Refusal(StrEnum):
    """Codes of REFUSED."""

    MALFORMED = "malformed"
    IDENTITY = "identity"
    AGREEMENT = "agreement"
    CONNECTED = "already-connected"
    RESTARTED = "restarted"
    CLOSING = "closing"


RETRIED = (Refusal.CONNECTED, Refusal.RESTARTED, Refusal.CLOSING)
"""Refusals that time may cure: the listener has yet to notice that an older connection is gone."""


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
    incarnation: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Side:
    """What this node brings to every handshake."""

    identity: Identity
    hello: wire.Hello
    """Ours, with `receiver` and `connection` still to fill in."""
    agreement: str
    timeout: float
    """Seconds for TLS, and as many again for HELLO and its answer."""


def parse_endpoint(text: str) -> tuple[str, int]:
    """Host and port of `host:port` (IPv6 in brackets)."""
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise ConfigError(f"endpoint {text}: must be host:port")
    return host.strip("[]"), int(port)


def dial(
    side: Side, peer: int, number: int, endpoint: str, hold: Callable[[socket.socket], None]
) -> Welcomed:
    """Connect to a peer. Raises `TryAgainError` for what may pass and a `NodeError` for what won't.

    `hold` is given the socket once it is connected: whoever shuts it down ends this call.
    """
    name = side.identity.names[peer]
    try:
        raw = socket.create_connection(parse_endpoint(endpoint), timeout=min(CONNECT_SECONDS, side.timeout))
    except OSError as error:
        raise TryAgainError(f"{endpoint}: {error.strerror or error}") from None
    try:
        sock = _wrapped(raw, side.identity.client_context(peer), side.identity.server_name(peer))
    except OSError as error:
        raise TryAgainError(f"{endpoint}: {error.strerror or error}") from None
    try:
        hold(sock)
        sock.settimeout(side.timeout)
        sock.do_handshake()
        _check_alpn(sock, name)
        side.identity.verify(peer, sock.getpeercert(binary_form=True) or b"")
        return _introduce(sock, side, peer, number)
    except ssl.SSLCertVerificationError as error:
        failure = _explained(side, peer, sock, error)
        hang_up(sock)
        raise failure from None
    except (ssl.SSLEOFError, ssl.SSLZeroReturnError) as error:
        sock.close()
        raise TryAgainError(f"{endpoint}: closed the connection during the handshake") from error
    except ssl.SSLError as error:
        sock.close()
        raise _alert(side, name, error) from None
    except OSError as error:
        sock.close()
        raise TryAgainError(f"{endpoint}: {error.strerror or error}") from None
    except BaseException:
        hang_up(sock)
        raise


def _wrapped(raw: socket.socket, context: ssl.SSLContext, server_name: str | None) -> ssl.SSLSocket:
    """TLS over a connected socket, its handshake still to do; closes the socket when it can't be."""
    try:
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return context.wrap_socket(
            raw,
            server_side=server_name is None,
            server_hostname=server_name,
            do_handshake_on_connect=False,
            suppress_ragged_eofs=False,
        )
    except OSError:
        raw.close()
        raise


def _introduce(sock: ssl.SSLSocket, side: Side, peer: int, number: int) -> Welcomed:
    name = side.identity.names[peer]
    deadline = time.monotonic() + side.timeout
    hello = replace(side.hello, receiver=name, connection=number)
    write_frame(sock, Kind.HELLO, wire.encode_json(hello), deadline)
    kind, payload = read_frame(sock, deadline)
    if kind is Kind.WELCOME:
        welcome = wire.decode_welcome(payload)
        return Welcomed(sock=sock, peer=peer, number=number, incarnation=welcome.incarnation)
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


def answer(raw: socket.socket, side: Side, admit: Callable[[int, str, int], Refusal | None]) -> Welcomed:
    """Take an accepted connection to WELCOME. Raises `NotAdmittedError`; the socket is then closed.

    `admit(peer, incarnation, number)` says whether a verified peer may have this connection.
    """
    try:
        sock = _wrapped(raw, side.identity.server_context(), None)
    except OSError as error:
        failure = IdentityError(f"handshake: {_reason(error)}")
        raise NotAdmittedError(failure, code=None, claimed=None, verified=False) from None
    try:
        sock.settimeout(side.timeout)
        return _receive(sock, side, admit)
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


def _receive(sock: ssl.SSLSocket, side: Side, admit: Callable[[int, str, int], Refusal | None]) -> Welcomed:
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
    refusal = admit(claimed, hello.incarnation, hello.connection)
    if refusal is not None:
        conflict = IdentityError(f"connection {hello.connection} of {hello.sender}: {refusal}")
        raise NotAdmittedError(conflict, code=refusal, claimed=claimed, verified=False)
    write_frame(sock, Kind.WELCOME, wire.encode_json(wire.Welcome(incarnation=ours.incarnation)), deadline)
    return Welcomed(sock=sock, peer=claimed, number=hello.connection, incarnation=hello.incarnation)


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
    if hello.sender not in names or hello.sender == ours.sender:
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


def write_frame(sock: ssl.SSLSocket, kind: Kind, payload: bytes, deadline: float) -> None:
    """Write a handshake frame before `deadline` (monotonic seconds) or raise `OSError`."""
    sock.settimeout(_remaining(deadline))
    sock.sendall(wire.encode_header(Header(kind=kind, payload_length=len(payload))) + payload)


def read_frame(sock: ssl.SSLSocket, deadline: float) -> tuple[Kind, bytes]:
    """Read a handshake frame before `deadline`, or raise `OSError`; a malformed one is a `ProtocolError`."""
    header = wire.decode_header(_read(sock, wire.HEADER_SIZE, deadline))
    limit = _LIMITS.get(header.kind, wire.HELLO_LIMIT)
    if header.kind > Kind.DIFFERS:
        raise ProtocolError(f"{header.kind.name} before WELCOME: must be a handshake frame")
    if header.payload_length > limit or header.pad_length:
        length = header.payload_length + header.pad_length
        raise ProtocolError(f"{header.kind.name} of {length} bytes: must be at most {limit}")
    return header.kind, bytes(_read(sock, header.payload_length, deadline))


def _read(sock: ssl.SSLSocket, length: int, deadline: float) -> bytearray:
    data = bytearray(length)
    view = memoryview(data)
    while view:
        sock.settimeout(_remaining(deadline))
        count = sock.recv_into(view)
        if count == 0:
            raise ssl.SSLEOFError(ssl.SSL_ERROR_EOF, "closed before the frame was complete")
        view = view[count:]
    return data


def _remaining(deadline: float) -> float:
    remaining = deadline - time.monotonic()
    if remaining <= 0:
        raise TimeoutError("no answer within the deadline")
    return remaining


def hang_up(sock: ssl.SSLSocket) -> None:
    """Close so that the last frame or alert arrives: stop writing, read on for a second at most.

    Closing with unread bytes would reset the connection and take our last words with it.
    """
    deadline = time.monotonic() + DRAIN_SECONDS
    try:
        sock.settimeout(DRAIN_SECONDS / 4)
        sock.unwrap()
    except (OSError, ValueError):
        pass
    try:
        # The plain socket's methods: what comes now is thrown away, decrypted or not.
        socket.socket.shutdown(sock, socket.SHUT_WR)
        while (left := deadline - time.monotonic()) > 0:
            sock.settimeout(left)
            if not socket.socket.recv(sock, 65536):
                break
    except OSError:
        pass
    finally:
        sock.close()


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


def _reason(error: OSError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate doesn't verify: {error.verify_message}"
    if isinstance(error, ssl.SSLError) and error.reason:
        return error.reason.replace("_", " ").lower()
    return str(error.strerror or error)
