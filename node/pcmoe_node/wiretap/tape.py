"""A recording as frames, both ways, in the order in which they passed."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pcmoe_node.errors import ConfigError, ProtocolError
from pcmoe_node.exchange.base import Header
from pcmoe_node.exchange.tls.tap import FORMAT, OUT, PIECE
from pcmoe_node.exchange.wire import HEADER_SIZE, Stamp, decode_header, decode_stamp

LARGEST = 1 << 40
"""Bytes of a payload; a header that says more is none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Frame:
    """A whole frame, sent or received."""

    out: bool
    header: Header
    stamp: Stamp
    payload: bytes
    """With padding."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Remains:
    """What one direction of a connection ends with, if not with a whole frame."""

    out: bool
    count: int
    """Bytes."""
    why: str
    """"" where it is the beginning of a frame that was cut off; else what is wrong with it."""


@dataclass(frozen=True, slots=True)
class About:
    """What a node said of itself when it began to record."""

    participants: tuple[str, ...]
    hidden_size: int
    experts: dict[int, tuple[int, ...]]
    """By layer: how many of its experts each participant hosts."""
    log: Path


def about_of(folder: Path) -> dict[str, About]:
    """By participant; `ConfigError` where the folder holds no recording, or one of another format."""
    found: dict[str, About] = {}
    for path in sorted(folder.glob("*.json")):
        try:
            given: dict[str, Any] = json.loads(path.read_text("utf-8"))
            if given["format"] != FORMAT:
                raise ValueError("another format")
            experts = {int(layer): tuple(counts) for layer, counts in given["experts"].items()}
            found[given["participant"]] = About(
                tuple(given["participants"]), int(given["hiddenSize"]), experts, Path(given["log"])
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"{path}: is not of a recording: {type(error).__name__}") from None
    if not found:
        raise ConfigError(f"{folder}: holds no recording")
    return found


def frames_of(path: Path) -> Iterator[Frame | Remains]:
    """Every frame of a connection, then what remains of each direction."""
    ways = {True: _Way(True), False: _Way(False)}
    with open(path, "rb") as file:
        while head := file.read(PIECE.size):
            if len(head) < PIECE.size:
                break  # the process was killed while it wrote
            direction, length = PIECE.unpack(head)
            yield from ways[direction == OUT].take(file.read(length))
    for way in ways.values():
        yield from way.end()


class _Way:
    """One direction of a connection."""

    def __init__(self, out: bool) -> None:
        self._out = out
        self._buffer = bytearray()
        self._head: tuple[Header, Stamp] | None = None
        self._wrong = ""

    def take(self, data: bytes) -> Iterator[Frame]:
        """More bytes; the frames that they complete."""
        self._buffer += data
        while not self._wrong:
            if self._head is None and not self._begin():
                return
            assert self._head is not None
            header, stamp = self._head
            end = HEADER_SIZE + header.payload_length + header.pad_length
            if len(self._buffer) < end:
                return
            payload = bytes(self._buffer[HEADER_SIZE:end])
            del self._buffer[:end]
            self._head = None
            yield Frame(out=self._out, header=header, stamp=stamp, payload=payload)

    def _begin(self) -> bool:
        if len(self._buffer) < HEADER_SIZE:
            return False
        try:
            data = self._buffer[:HEADER_SIZE]
            header = decode_header(data)
            if header.payload_length + header.pad_length > LARGEST:
                raise ProtocolError("its length is beyond all bounds")
            self._head = header, decode_stamp(data)
        except ProtocolError as error:
            self._wrong = f"no frame begins here: {error}"
        return self._head is not None

    def end(self) -> Iterator[Remains]:
        """What is left when the recording ends."""
        if self._buffer:
            yield Remains(out=self._out, count=len(self._buffer), why=self._wrong)
