"""Bytes of headers, of the handshake and of control payloads. Whatever is not exactly as expected is refused.

A frame is a header of 64 bytes, little endian, and then `payload_length + pad_length` bytes:

    version u8 | kind u8 | dtype u8 | flags u8 | view u32 | step u64 | micro-batch u32 | layer u32 |
    request u64 | rows u32 | slots u32 | payload length u64 | pad length u64 | reserved u64

Flags and reserved bytes are 0. The handshake's payloads are JSON; the transport's own control payloads are
fixed structures (those of a step are in `layout.py`).
"""

import json
import struct
from dataclasses import asdict, dataclass
from typing import Any

from pcmoe_node.errors import (
    ConfigError,
    DataError,
    DivergedError,
    IdentityError,
    NodeError,
    PeerLostError,
    ProtocolError,
    ResourceError,
)
from pcmoe_node.exchange.base import Header, Kind, WireDtype

VERSION = 1
HEADER = struct.Struct("<BBBBIQIIQIIQQQ")
HEADER_SIZE = HEADER.size
HELLO_LIMIT = 64 * 1024
"""Bytes of a HELLO, WELCOME or REFUSED payload."""
AGREEMENT_LIMIT = 64 * 1024
"""Bytes of an agreement that DIFFERS may carry."""
DIFFERS_LIMIT = 2 * AGREEMENT_LIMIT + 4096
"""Bytes of a DIFFERS payload: quotes and backslashes of the agreement are escaped once more."""
TEXT_LIMIT = 500

BEAT = struct.Struct("<Q32s")
"""Progress counter, phase (ASCII, zero-filled)."""
WAITING = struct.Struct("<I")
"""Participant that is waited for; the header's step says in which step."""
ABORT = struct.Struct("<HHH500s")
"""Exit code, participant where it began, bytes of the reason, reason (UTF-8, zero-filled)."""

_KINDS = {int(kind): kind for kind in Kind}
_DTYPES = {int(dtype): dtype for dtype in WireDtype}
_ERRORS: dict[int, type[NodeError]] = {
    error.exit_code: error
    for error in (
        NodeError,
        ConfigError,
        DataError,
        ResourceError,
        IdentityError,
        ProtocolError,
        DivergedError,
        PeerLostError,
    )
}


def encode_header(header: Header) -> bytes:
    """The 64 bytes of a header."""
    return HEADER.pack(
        VERSION,
        header.kind,
        header.dtype,
        0,
        header.view,
        header.step,
        header.micro_batch,
        header.layer,
        header.request,
        header.rows,
        header.slots,
        header.payload_length,
        header.pad_length,
        0,
    )


def decode_header(data: bytes | bytearray | memoryview) -> Header:
    """The header in 64 bytes, or a `ProtocolError` that names field, value and rule."""
    version, kind, dtype, flags, view, step, micro_batch, layer, request, rows, slots, length, pad, rest = (
        HEADER.unpack(data)
    )
    if version != VERSION:
        raise ProtocolError(f"protocol version is {version}: must be {VERSION}")
    if kind not in _KINDS:
        raise ProtocolError(f"kind is {kind}: unknown")
    if dtype not in _DTYPES:
        raise ProtocolError(f"dtype is {dtype}: unknown")
    if flags or rest:
        raise ProtocolError(f"flags are {flags}, reserved bytes {rest}: must be 0")
    return Header(
        kind=_KINDS[kind],
        view=view,
        step=step,
        micro_batch=micro_batch,
        layer=layer,
        request=request,
        dtype=_DTYPES[dtype],
        rows=rows,
        slots=slots,
        payload_length=length,
        pad_length=pad,
    )


def printable(text: str, limit: int = TEXT_LIMIT) -> str:
    """Text from a peer, fit for a log: control characters escaped, at most `limit` characters."""
    escaped = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
    return escaped if len(escaped) <= limit else escaped[: limit - 1] + "…"


@dataclass(frozen=True, kw_only=True, slots=True)
class Hello:
    """Who opens a connection, to whom, under which agreement, and as which of the pair's connections."""

    sender: str
    receiver: str
    agreement_id: str
    agreement_digest: str
    plan_digest: str
    incarnation: str
    """128 random bits in hex, drawn when the process starts."""
    connection: int
    """0 is the control connection, 1 to `connections` carry tensors."""
    connections: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Welcome:
    """The answer that makes a connection one."""

    incarnation: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Refused:
    """The answer that ends it. `code` is one of `handshake.Refusal`."""

    code: str
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Differs:
    """Both are who they say they are, but hold different agreements or plans."""

    agreement_digest: str
    plan_digest: str
    agreement: str
    """The canonical text, or "" where it is too long to send."""


def encode_json(value: Hello | Welcome | Refused | Differs) -> bytes:
    """A handshake payload."""
    return json.dumps(asdict(value), ensure_ascii=False).encode()


def _fields(data: bytes, expected: dict[str, type]) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        raise ProtocolError("handshake payload: must be JSON") from None
    if not isinstance(value, dict) or set(value) != set(expected):
        raise ProtocolError(f"handshake payload: its keys must be {', '.join(sorted(expected))}")
    for key, kind in expected.items():
        if type(value[key]) is not kind:
            raise ProtocolError(f"handshake payload: {key} must be of type {kind.__name__}")
    return value


def decode_hello(data: bytes) -> Hello:
    """A HELLO's payload, or a `ProtocolError`. Its strings are untrusted: print them with `printable`."""
    strings = ("sender", "receiver", "agreement_id", "agreement_digest", "plan_digest", "incarnation")
    hello = Hello(**_fields(data, dict.fromkeys(strings, str) | {"connection": int, "connections": int}))
    _check_incarnation(hello.incarnation)
    if not 0 <= hello.connection <= hello.connections:
        raise ProtocolError(f"HELLO: connection is {hello.connection} of {hello.connections}: out of range")
    return hello


def decode_welcome(data: bytes) -> Welcome:
    """A WELCOME's payload, or a `ProtocolError`."""
    welcome = Welcome(**_fields(data, {"incarnation": str}))
    _check_incarnation(welcome.incarnation)
    return welcome


def decode_refused(data: bytes) -> Refused:
    """A REFUSED's payload, its strings made printable, or a `ProtocolError`."""
    fields = _fields(data, {"code": str, "reason": str})
    return Refused(code=printable(fields["code"], 40), reason=printable(fields["reason"]))


def decode_differs(data: bytes) -> Differs:
    """A DIFFERS's payload, or a `ProtocolError`."""
    return Differs(**_fields(data, dict.fromkeys(("agreement_digest", "plan_digest", "agreement"), str)))


def _check_incarnation(text: str) -> None:
    if len(text) != 32 or not set(text) <= set("0123456789abcdef"):
        raise ProtocolError("incarnation: must be 128 bits in hex")


def encode_beat(counter: int, phase: str) -> bytes:
    """A BEAT's payload."""
    return BEAT.pack(counter, phase.encode("ascii", "replace")[:32])


def decode_beat(data: bytes | memoryview) -> tuple[int, str]:
    """Progress counter and phase."""
    counter, phase = BEAT.unpack(data)
    return counter, printable(phase.rstrip(b"\0").decode("ascii", "replace"), 32)


def encode_abort(error: NodeError, origin: int) -> bytes:
    """An ABORT's payload: the run ends at `origin` with `error`."""
    reason = printable(str(error)).encode()[:TEXT_LIMIT]
    return ABORT.pack(error.exit_code, origin, len(reason), reason)


def decode_abort(data: bytes | memoryview) -> tuple[type[NodeError], int, str]:
    """The class of the error, the participant where it began and the reason, printable.

    A code that is no error's (a node that was told to stop) counts as a lost peer.
    """
    code, origin, length, reason = ABORT.unpack(data)
    text = printable(reason[:length].decode("utf-8", "replace"))
    return _ERRORS.get(code, PeerLostError), origin, text
