"""Every way a node ends, and the exit code it ends with.

    NodeError
    ├── ConfigError       64  NodeConfig or agreement is not usable here: field, value, rule
    ├── DataError         65  the dataset can't be read: path, record number, reason; never a value
    ├── ResourceError     66  something this machine must have is missing: a file, a GPU, a free port
    ├── IdentityError     67  who is who: certificates, CAs, TLS, a peer that holds another agreement
    ├── ProtocolError     68  a peer sent what the agreement forbids: malformed, out of bounds, non-finite
    ├── DivergedError     69  this participant's own numbers overflowed ten steps in a row
    ├── StorageError      74  a round or a journal can't be written: mostly a disk that is full
    └── PeerLostError     75  a peer went away, fell silent, stood still or did not come back; starting again may help

Exit code 0 means that everybody has stored the last round. A node that is told to stop ends with 143
(SIGTERM) or 130 (SIGINT). `pcmoe run` and the operator tell what to restart by these numbers alone.
"""

import traceback
from pathlib import Path
from typing import ClassVar


class NodeError(Exception):
    """A node that can't go on. The message names the field or peer, the value where it isn't data, and the rule."""

    exit_code: ClassVar[int] = 70

    def __init__(self, message: str, *, origin: int | None = None, reason: str | None = None) -> None:
        """`origin` and `reason`: the participant that ended the run, and its own words, when it wasn't this node."""
        super().__init__(message)
        self.origin = origin
        self.reason = reason or message


class ConfigError(NodeError):
    """The configuration can't be used: a field, its value and the rule it breaks."""

    exit_code = 64


class DataError(NodeError):
    """A record can't be used. Names the path and the record's number, never its content."""

    exit_code = 65


class ResourceError(NodeError):
    """Something this machine must have is missing: a model file, a GPU, a free port."""

    exit_code = 66


class IdentityError(NodeError):
    """A peer is not who it says it is, or holds another agreement, or our own certificate can't be used."""

    exit_code = 67


class ProtocolError(NodeError):
    """A peer sent what the agreement forbids. Ends the run everywhere and is never retried."""

    exit_code = 68


class DivergedError(NodeError):
    """This participant's own losses or gradients were not finite ten steps in a row."""

    exit_code = 69


class StorageError(NodeError):
    """What must be kept can't be written, or made room for. Names the path, and what the system says."""

    exit_code = 74


class PeerLostError(NodeError):
    """A peer closed its connection, or sent no byte, or made no progress, for longer than agreed."""

    exit_code = 75


EXIT_TERMINATED = 143
"""Told to stop by SIGTERM before the last round was stored."""

EXIT_INTERRUPTED = 130
"""Told to stop by SIGINT before the last round was stored."""


def last_words(error: BaseException) -> NodeError:
    """What to tell peers when this node ends, or leaves them, because of `error`."""
    if isinstance(error, NodeError):
        return error
    if isinstance(error, Exception):
        return NodeError(f"a fault: {type(error).__name__}")
    return PeerLostError("was told to stop")


def places_of(error: BaseException) -> str:
    """What went wrong and where, for a log: types, files, lines, innermost last. No message: it may quote data."""
    told: list[str] = []
    cause: BaseException | None = error
    while cause is not None and len(told) < 5:  # causes of causes; more say nothing new
        frames = traceback.extract_tb(cause.__traceback__)
        where = [f"{Path(frame.filename).name}:{frame.lineno} in {frame.name}" for frame in frames]
        told.append(" > ".join([type(cause).__name__, *where]))
        cause = cause.__cause__ or cause.__context__
    return "; because of ".join(told)
