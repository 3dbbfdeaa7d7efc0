"""`rounds.jsonl` and `events.jsonl`: what a node or the coordinator writes down, one JSON object per line."""

import json
import logging
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from pcmoe_node.errors import StorageError

log = logging.getLogger("pcmoe")

REPORT_LINES = 5000
"""Lines of each file that `/report` shows; of more, the newest."""
REPORT_BYTES = 8 << 20
"""As many bytes of each file at most: whoever asks must not cost a node its memory."""
MESSAGE_LIMIT = 2000
"""Characters of an event's message. What peers say comes in shorter; this is for a fault that doesn't."""


class Journal:
    """Append-only; a line is either whole or, after a crash, taken away at the next start."""

    def __init__(self, directory: Path) -> None:
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"{directory}: can't be used for logs: {error.strerror}") from error
        self._directory = directory
        for name in ("rounds.jsonl", "events.jsonl"):
            mend(directory / name)

    def round(self, record: Mapping[str, object]) -> None:
        """A finished round; its numbers must be finite, because JSON has no others."""
        self._append("rounds.jsonl", record)

    def event(self, kind: str, message: str) -> None:
        """Something people may want to know later. That it can't be written is no reason to end a run."""
        try:
            entry = {"time": time.time(), "kind": kind, "message": message[:MESSAGE_LIMIT]}
            self._append("events.jsonl", entry)
        except StorageError as error:
            log.warning("event %s (%s) is not written down: %s", kind, message, error)

    def report(self, participant: str) -> bytes:
        """What the files hold now, as one JSON object; never more than `REPORT_LINES` of each."""
        parts, truncated = [b'{"participant": ' + json.dumps(participant).encode()], False
        for key in ("rounds", "events"):
            lines, all_of_it = _newest(self._directory / f"{key}.jsonl")
            parts.append(f'"{key}": ['.encode() + b", ".join(lines) + b"]")
            truncated |= not all_of_it
        return b", ".join([*parts, b'"truncated": ' + json.dumps(truncated).encode() + b"}"])

    def _append(self, name: str, record: Mapping[str, object]) -> None:
        append(self._directory / name, record)


def mend(path: Path) -> None:
    """Take away a last line that a killed process left half written: what follows would make it a wrong one."""
    try:
        with open(path, "r+b") as file:
            whole = file.read()
            file.truncate(whole.rfind(b"\n") + 1)
    except FileNotFoundError:
        return
    except OSError as error:
        raise StorageError(f"{path}: can't be used: {error.strerror}") from error


def append(path: Path, record: Mapping[str, object], mode: int = 0o666) -> None:
    """Add a line; `mode`: who may read the file if it is made now. Raises `StorageError`."""
    try:
        with open(path, "a", encoding="utf-8", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            file.write(json.dumps(record) + "\n")
    except OSError as error:
        raise StorageError(f"{path}: can't be written: {error.strerror}") from error


def newest_lines(path: Path, limit: int) -> Iterator[bytes]:
    """The last whole lines of a file that fit in `limit` bytes; none of one that isn't there. Raises `OSError`."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    with file:
        size = file.seek(0, 2)
        file.seek(max(0, size - limit))
        if size > limit:
            file.readline()
        # Whoever writes beside us may be in the middle of the last line.
        yield from (line for line in file if line.endswith(b"\n"))


def _newest(path: Path) -> tuple[list[bytes], bool]:
    """The newest lines of a file, as `/report` shows them, and whether that is all; what is no JSON object is left out.

    The lines are passed on as they are: each is parsed by itself only to see that it is one, so that a long journal
    never keeps the interpreter from a step for long.
    """
    try:
        whole = [line.rstrip(b"\r\n") for line in newest_lines(path, REPORT_BYTES)]
        cut = path.exists() and path.stat().st_size > REPORT_BYTES
    except OSError:
        return [], False
    kept = [line for line in whole[-REPORT_LINES:] if _is_object(line)]
    return kept, not cut and len(kept) == len(whole)


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line, parse_constant=_no_number), dict)
    except (ValueError, RecursionError):
        return False


def _no_number(name: str) -> object:
    raise ValueError(f"{name} is no JSON")
