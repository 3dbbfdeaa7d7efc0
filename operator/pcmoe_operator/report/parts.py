"""A participant's part of a report: what its node wrote down, from a folder or as a pod tells it.

A pod's answer is untrusted: its size is bounded before it is read, and a wrong one is an error that says what is wrong.
"""

import base64
import binascii
import hashlib
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pcmoe_operator.errors import UsageError
from pcmoe_operator.report.exposure import Exposure, exposure_in
from pcmoe_operator.report.read import Round, read_lines, rounds_of
from pcmoe_operator.report.timeline import Happening, happenings_of

MAX_BYTES = 64 * 1024 * 1024
"""Of a part, as JSON."""
PACKED_FORMAT = "pcmoe-journal/1"
"""First line of what `pcmoe_node.journal_print` prints."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """What one participant's node wrote down."""

    rounds: Sequence[Round]
    events: Sequence[Happening] = ()
    exposure: Exposure | None = None
    """Its ledger, added up; only where that lies on this machine: no pod tells it."""
    truncated: bool = False
    """Whether older lines were left out, because there are too many."""


def part_in(folder: Path, participant: str) -> Part:
    """The part in a log folder; `UsageError` names file and line of what can't be read."""
    rounds, events = folder / "rounds.jsonl", folder / "events.jsonl"
    return Part(
        rounds=rounds_of(read_lines(rounds), str(rounds)),
        events=happenings_of(read_lines(events), participant, str(events)),
        exposure=exposure_in(folder, participant),
    )


def part_of(answer: bytes, participant: str) -> Part:
    """The part in a node's answer to `/report`; raises `UsageError`."""
    if len(answer) > MAX_BYTES:
        raise UsageError(f"its answer is larger than {MAX_BYTES // 2**20} MiB")
    try:
        given = json.loads(answer)
    except (ValueError, RecursionError):
        raise UsageError("its answer is not valid JSON") from None
    if not isinstance(given, dict):
        raise UsageError("its answer is not a JSON object")
    return Part(
        rounds=rounds_of(_list(given, "rounds"), "rounds"),
        events=happenings_of(_list(given, "events"), participant, "events"),
        truncated=given.get("truncated") is True,
    )


def _list(given: dict[str, Any], key: str) -> list[Any]:
    found = given.get(key)
    if not isinstance(found, list):
        raise UsageError(f"its answer has no list {key}")
    return found


def unpacked(log: bytes) -> bytes:
    """The JSON in what `pcmoe_node.journal_print` printed; raises `UsageError` for anything else, or a part of it."""
    lines = log.decode("ascii", errors="replace").split("\n")
    if PACKED_FORMAT not in lines:
        raise UsageError("what its pod printed is no journal")
    lines = lines[lines.index(PACKED_FORMAT) :]  # before it, warnings of whatever else is in the image
    ends = [number for number, line in enumerate(lines) if line.startswith("end ")]
    if len(ends) != 1:
        raise UsageError("what its pod printed has no end: a part of it was lost")
    try:
        packed = b"".join(base64.b64decode(line, validate=True) for line in lines[1 : ends[0]])
        unpacker = zlib.decompressobj()
        text = unpacker.decompress(packed, MAX_BYTES + 1)
    except (binascii.Error, ValueError, zlib.error):
        raise UsageError("what its pod printed can't be unpacked") from None
    if len(text) > MAX_BYTES:
        raise UsageError(f"what its pod printed is larger than {MAX_BYTES // 2**20} MiB")
    if lines[ends[0]] != f"end {hashlib.sha256(text).hexdigest()}":
        raise UsageError("what its pod printed is not whole: its digest is another")
    return text
