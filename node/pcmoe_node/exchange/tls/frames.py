"""Frames of a handshake: blocking, each with a deadline; and a close that lets the last of them arrive."""

import socket
import ssl
import time

from pcmoe_node.errors import ProtocolError
from pcmoe_node.exchange import wire
from pcmoe_node.exchange.base import Header, Kind

DRAIN_SECONDS = 1.0
_LIMITS = {Kind.DIFFERS: wire.DIFFERS_LIMIT}


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
