"""`python -m pcmoe_node.leak --config FILE`: how much of your text a host reads from what you send it.

Measured on your own documents, in this process alone, at the weights of the start and of your newest stored round;
nothing is sent and nothing is written but `--output`. Prints shares, never a token.
"""

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from pcmoe_node.config import NodeConfig
from pcmoe_node.errors import NodeError, StorageError
from pcmoe_node.leak.measure import measure
from pcmoe_node.leak.page import as_json, as_text


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code (errors.py)."""
    parser = argparse.ArgumentParser(
        prog="python -m pcmoe_node.leak", description="Measure how much of your text a host reads."
    )
    parser.add_argument("--config", type=Path, required=True, help="NodeConfig as JSON, of this participant")
    parser.add_argument(
        "--documents", type=_count, default=64, help="at most so many documents (default: 64)"
    )
    parser.add_argument("--sequences", type=_count, default=64, help="of so many sequences (default: 64)")
    parser.add_argument("--host", help="who reads (default: the peer that hosts most experts)")
    parser.add_argument("--summary", action="store_true", help="leave the layers' rows out")
    parser.add_argument("--output", type=Path, help="file for the same figures as JSON")
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")
    try:
        config = NodeConfig.load(given.config)
        found = measure(config, documents=given.documents, sequences=given.sequences, host=given.host)
        if given.output is not None:
            _write(given.output, json.dumps(as_json(config.participant, found), indent=1) + "\n")
        sys.stdout.write(as_text(config.participant, found, tables=not given.summary))
    except NodeError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 0


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a number, at least 1")
    return int(text)


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise StorageError(f"{path}: can't be written: {error.strerror}") from error


if __name__ == "__main__":
    sys.exit(main())
