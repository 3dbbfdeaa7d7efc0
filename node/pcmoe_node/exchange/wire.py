"""Bytes of headers, of the handshake and of control payloads. Whatever is not exactly as expected is refused.

A frame is a header of 72 bytes, little endian, and then `payload_length + pad_length` bytes:

    version u8 | kind u8 | dtype u8 | flags u8 | view u32 | step u64 | micro-batch u32 | layer u32 |
    request u64 | rows u32 | slots u32 | payload length u64 | pad length u64 | sequence u64 | acknowledged u64

Flags are 0. View, sequence and acknowledged are the carrier's own (`Stamp`), the rest is the message's. The
handshake's payloads are JSON; the transport's own control payloads are fixed structures (those of a step are in
`layout.py`).
"""

import json
import struct
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from pcmoe_node.errors import (
    ConfigError,
    DataError,
    DivergedError,
    IdentityError,
    NodeError,
    PeerLostError,
    ProtocolError,
    ResourceError,
    StorageError,
)
from pcmoe_node.exchange.base import Header, Kind, WireDtype

VERSION = 1
HEADER = struct.Struct("<BBBBIQIIQIIQQQQ")
HEADER_SIZE = HEADER.size
HELLO_LIMIT = 64 * 1024
"""Bytes of a HELLO, WELCOME or REFUSED payload."""
AGREEMENT_LIMIT = 64 * 1024
"""Bytes of an agreement that DIFFERS may carry."""
DIFFERS_LIMIT = 2 * AGREEMENT_LIMIT + 4096
"""Bytes of a DIFFERS payload: quotes and backslashes of the agreement are escaped once more."""
TEXT_LIMIT = 500

BEAT = struct.Struct("<Q32sQ")
"""Progress counter, phase (ASCII, zero-filled), and who is waited for: bit i is participant i."""
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
        StorageError,
        PeerLostError,
    )
}


class Stamp(NamedTuple):
    """What the carrier adds to a header."""

    view: int = 0
    """Number of the view that the connection belongs to; 0 in a handshake and at the coordinator's."""
    sequence: int = 0
    """Number of the message on its link, from 1; 0: not counted, and not sent again after a cut."""
    acknowledged: int = 0
    """Messages taken in full on this link so far."""


def encode_header(header: Header, stamp: Stamp = Stamp()) -> bytes:  # noqa: B008
    """The bytes of a header."""
    return HEADER.pack(
        VERSION,
        header.kind,
        header.dtype,
        0,
        stamp.view,
        header.step,
        header.micro_batch,
        header.layer,
        header.request,
        header.rows,
        header.slots,
        header.payload_length,
        header.pad_length,
        stamp.sequence,
        stamp.acknowledged,
    )


def decode_header(data: bytes | bytearray | memoryview) -> Header:
    """The header in its bytes, or a `ProtocolError` that names field, value and rule."""
    version, kind, dtype, flags, _, step, micro_batch, layer, request, rows, slots, length, pad, _, _ = (
        HEADER.unpack(data)
    )
    if version != VERSION:
        raise ProtocolError(f"protocol version is {version}: must be {VERSION}")
    if kind not in _KINDS:
        raise ProtocolError(f"kind is {kind}: unknown")
    if dtype not in _DTYPES:
        raise ProtocolError(f"dtype is {dtype}: unknown")
    if flags:
        raise ProtocolError(f"flags are {flags}: must be 0")
    return Header(
        kind=_KINDS[kind],
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


def decode_stamp(data: bytes | bytearray | memoryview) -> Stamp:
    """What the carrier added to the header in these bytes."""
    fields = HEADER.unpack(data)
    return Stamp(view=fields[4], sequence=fields[13], acknowledged=fields[14])


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
    view: int = 0
    """Number of the view it is for."""
    mark: str = ""
    """Digest of that view."""
    received: int = 0
    """Messages taken in full on this one of the pair's connections, over earlier ones that broke."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Welcome:
    """The answer that makes a connection one."""

    incarnation: str
    received: int = 0
    """As in HELLO, on the listener's side."""


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
    strings = ("sender", "receiver", "agreement_id", "agreement_digest", "plan_digest", "incarnation", "mark")
    numbers = ("connection", "connections", "view", "received")
    hello = Hello(**_fields(data, dict.fromkeys(strings, str) | dict.fromkeys(numbers, int)))
    _check_incarnation(hello.incarnation)
    _check_counts(view=hello.view, received=hello.received)
    if not 0 <= hello.connection <= hello.connections:
        raise ProtocolError(f"HELLO: connection is {hello.connection} of {hello.connections}: out of range")
    return hello


def decode_welcome(data: bytes) -> Welcome:
    """A WELCOME's payload, or a `ProtocolError`."""
    welcome = Welcome(**_fields(data, {"incarnation": str, "received": int}))
    _check_incarnation(welcome.incarnation)
    _check_counts(received=welcome.received)
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


def _check_counts(**counts: int) -> None:
    for name, count in counts.items():
        if not 0 <= count < 1 << 63:
            raise ProtocolError(f"handshake payload: {name} is {count}: out of range")


def encode_beat(counter: int, phase: str, waiting: frozenset[int]) -> bytes:
    """A BEAT's payload; `waiting` are the participants (below 64) that are waited for."""
    mask = sum(1 << participant for participant in waiting)
    return BEAT.pack(counter, phase.encode("ascii", "replace")[:32], mask)


def decode_beat(data: bytes | memoryview) -> tuple[int, str, frozenset[int]]:
    """Progress counter, phase, and who is waited for."""
    counter, phase, mask = BEAT.unpack(data)
    waiting = frozenset(bit for bit in range(64) if mask >> bit & 1)
    return counter, printable(phase.rstrip(b"\0").decode("ascii", "replace"), 32), waiting


def encode_abort(error: NodeError, me: int) -> bytes:
    """An ABORT's payload: the run ends with `error`, where it began and for the reason it began with."""
    reason = printable(error.reason).encode()[:TEXT_LIMIT]
    return ABORT.pack(error.exit_code, me if error.origin is None else error.origin, len(reason), reason)


def error_class(code: int) -> type[NodeError]:
    """The class of an exit code; one that is no error's (a node that was told to stop) counts as a lost peer."""
    return _ERRORS.get(code, PeerLostError)


def decode_abort(data: bytes | memoryview) -> tuple[type[NodeError], int, str]:
    """The class of the error, the participant where it began and the reason, printable."""
    code, origin, length, reason = ABORT.unpack(data)
    text = printable(reason[:length].decode("utf-8", "replace"))
    return error_class(code), origin, text
