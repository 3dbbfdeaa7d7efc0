"""`python -m pcmoe_node.journal_print DIR`: print what a node wrote down, for whoever reads the log of this pod.

A kubelet keeps only the last megabytes of a log, so the journal is packed, and an end line says whether all of it came:

    pcmoe-journal/1
    <base64 of zlib of one JSON object: {"rounds": [line, ...], "events": [line, ...], "truncated": bool}>
    end <SHA-256 of that object>

It reads, and writes nothing; it takes the same little memory whatever the journal's size.
"""

import argparse
import base64
import hashlib
import json
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from pcmoe_node.errors import ResourceError
from pcmoe_node.journal import newest_lines

FORMAT = "pcmoe-journal/1"
LIMITS = {"rounds": 48 * 1024 * 1024, "events": 8 * 1024 * 1024}
"""Bytes of each file that are printed; of a longer one the newest."""
PACKED_BYTES = 3 * 1024
"""A line of the log; base64 makes 4 KiB of it, which no container runtime splits."""


def journal_json(folder: Path) -> Iterator[str]:
    """The journal of a folder as JSON, piece by piece. Raises `OSError`."""
    separator = "{"
    for kind, limit in LIMITS.items():
        yield f'{separator}"{kind}": ['
        for number, line in enumerate(newest_lines(folder / f"{kind}.jsonl", limit)):
            text = line.decode("utf-8", errors="replace").rstrip("\n")
            yield (", " if number else "") + json.dumps(text)
        separator = "], "
    yield f'], "truncated": {json.dumps(_is_truncated(folder))}}}'


def print_journal(folder: Path, to: TextIO) -> None:
    """Print a folder's journal in the form above. Raises `OSError`."""
    print(FORMAT, file=to)
    packer, digest, held = zlib.compressobj(9), hashlib.sha256(), b""
    for piece in journal_json(folder):
        digest.update(piece.encode())
        held += packer.compress(piece.encode())
        held = _print_whole(held, to)
    held = _print_whole(held + packer.flush(), to)
    print(base64.b64encode(held).decode(), file=to)
    print(f"end {digest.hexdigest()}", file=to)


def _print_whole(held: bytes, to: TextIO) -> bytes:
    """Print all whole lines of what is packed; the rest comes back."""
    while len(held) >= PACKED_BYTES:
        print(base64.b64encode(held[:PACKED_BYTES]).decode(), file=to)
        held = held[PACKED_BYTES:]
    return held


def _is_truncated(folder: Path) -> bool:
    files = {folder / f"{kind}.jsonl": limit for kind, limit in LIMITS.items()}
    return any(path.exists() and path.stat().st_size > limit for path, limit in files.items())


def main() -> int:
    """Print the journal; the exit code is 66 where it can't be read (errors.py)."""
    parser = argparse.ArgumentParser(
        prog="python -m pcmoe_node.journal_print", description="Print a node's journal, packed."
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="Folder with rounds.jsonl and events.jsonl.")
    folder: Path = parser.parse_args().folder
    try:
        print_journal(folder, sys.stdout)
    except OSError as error:
        print(f"{folder}: can't be read: {error.strerror}", file=sys.stderr)  # noqa: T201
        return ResourceError.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
