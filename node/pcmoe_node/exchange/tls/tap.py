"""The wiretap: every byte that this process hands to TLS or takes from it, written to a folder. For tests and audits.

Off unless `PCMOE_WIRETAP` names a folder or a test calls `begin`. What it writes is hidden states and gradients, which
is as good as the text: only the owner may read it. `python -m pcmoe_node.wiretap` accounts for it, byte by byte.

A file per connection, of pieces in the order in which they passed: direction u8 (0 out, 1 in), length u32, bytes.
"""

import json
import logging
import os
import ssl
import struct
from itertools import count
from pathlib import Path
from typing import Any

from pcmoe_node.config import NodeConfig
from pcmoe_node.errors import ResourceError, StorageError
from pcmoe_node.exchange.limits import Limits

log = logging.getLogger("pcmoe")

VARIABLE = "PCMOE_WIRETAP"
FORMAT = "pcmoe-wiretap/1"
PIECE = struct.Struct("<BI")
OUT, IN = 0, 1
_numbers = count(1)
_folder: Path | None = None


def begin(folder: Path) -> None:
    """Record all connections made from now on into a folder."""
    global _folder
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ResourceError(f"{VARIABLE}: {folder} can't be used: {error.strerror}") from error
    _folder = folder


def end() -> None:
    """Record no new connections."""
    global _folder
    _folder = None


def begin_if_asked(config: NodeConfig) -> None:
    """Begin if the environment asks for it, say so loudly, and note what the parser must know of this node."""
    named = os.environ.get(VARIABLE)
    if named:
        begin(Path(named))
    if _folder is None:
        return
    log.warning(
        "THE WIRETAP IS ON: all that is sent and received is written to %s, readable by whoever may read that folder; "
        "it is worth as much as the data themselves, so delete it when the audit is over (%s)",
        _folder,
        VARIABLE,
    )
    limits = Limits.from_config(config)
    about = {
        "format": FORMAT,
        "participant": config.participant,
        "participants": limits.names,
        "hiddenSize": limits.hidden_size,
        "dtype": limits.dtype.name,
        "experts": {
            str(place.layer): [place.hosts.count(host) for host in range(len(limits.names))]
            for place in config.placement
            if place.hosts is not None
        },
        "log": config.log_directory,
    }
    _write(_folder / f"{config.participant}-{os.getpid()}-{next(_numbers)}.json", json.dumps(about).encode())


def socket_class() -> type[ssl.SSLSocket]:
    """What connections are made of."""
    return ssl.SSLSocket if _folder is None else TappedSocket


class TappedSocket(ssl.SSLSocket):
    """Records what passes: the plain text, as it goes into TLS and as it comes out of it."""

    _tape: Path | None = None

    def send(self, data: Any, flags: int = 0) -> int:
        """Send, and record what was taken."""
        taken = super().send(data, flags)
        self._record(OUT, memoryview(data).cast("B")[:taken])
        return taken

    def recv_into(self, buffer: Any, nbytes: int | None = None, flags: int = 0) -> int:
        """Receive, and record what came."""
        came = super().recv_into(buffer, nbytes, flags)
        self._record(IN, memoryview(buffer).cast("B")[:came])
        return came

    def _record(self, direction: int, data: memoryview) -> None:
        if self._tape is None and _folder is not None:
            self._tape = _folder / f"{os.getpid()}-{next(_numbers)}.tape"
        if self._tape is not None and data:
            _write(self._tape, PIECE.pack(direction, len(data)) + data)


def _write(path: Path, data: bytes) -> None:
    """Add to a file that only its owner may read; what can't be recorded must not be sent unnoticed."""
    try:
        with open(path, "ab", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            file.write(data)
    except OSError as error:
        raise StorageError(f"{path}: the wiretap can't be written: {error.strerror}") from error
