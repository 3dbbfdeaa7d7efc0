"""Which participant a failed run is about.

When one node fails, the others fail too, because they lost it or because it told them. The cause is the node
that died by a signal nobody here sent, or that ended with an error of its own; messengers come last.
"""

import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pcmoe_operator.local.processes import NodeProcess
from pcmoe_operator.local.watch import printable

TAIL_BYTES = 64 * 1024
MAX_LINE = 600
RELAYED = "ended the run"
"""In the last words of a node that ends only because a peer told it that it ends."""

PEER_LOST = 75
TERMINATED = 143
INTERRUPTED = 130

MEANING = {
    1: "an error inside the node",
    64: "its configuration can't be used here",
    65: "its dataset can't be read",
    66: "something this machine must have is missing",
    67: "a peer, or its own certificate, was not who or what the agreement says",
    68: "a peer sent what the agreement forbids",
    69: "its own numbers overflowed in ten steps in a row",
    70: "an error inside the node",
    75: "it lost a peer",
    130: "it was interrupted",
    137: "it was killed; if nobody did that, this machine ran out of memory",
    143: "it was told to stop",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """The first cause of a failed run."""

    participant: str
    exit_code: int
    last_line: str
    """The node's last words, one line."""
    log_file: Path

    def sentence(self) -> str:
        """What to tell the user, in three lines."""
        return (
            f"{self.participant} failed with exit code {self.exit_code}: {meaning_of(self.exit_code)}.\n"
            f"  Its last words: {self.last_line or 'none'}\n"
            f"  Its log: {self.log_file}"
        )


def meaning_of(exit_code: int) -> str:
    """An exit code in words."""
    if exit_code in MEANING:
        return MEANING[exit_code]
    if exit_code > 128:
        try:
            return f"it died by {signal.Signals(exit_code - 128).name}"
        except ValueError:
            pass
    return "it ended without a reason that this version knows"


def first_cause(nodes: Sequence[NodeProcess]) -> Failure | None:
    """The failure that explains the others, or None if no node failed by itself."""
    failures = [(node, code) for node in nodes if (code := node.poll()) and not _was_stopped(node, code)]
    if not failures:
        return None
    ranked = [(_rank(node, code), node.ended_at or 0.0, i) for i, (node, code) in enumerate(failures)]
    node, code = failures[min(ranked)[2]]
    log_file = node.member.log_file
    return Failure(
        participant=node.member.name, exit_code=code, last_line=last_error_line(log_file), log_file=log_file
    )


def _was_stopped(node: NodeProcess, code: int) -> bool:
    """Whether the node ended because the runner stopped it."""
    return node.told_to_stop and code in (TERMINATED, INTERRUPTED, 128 + signal.SIGKILL)


def _rank(node: NodeProcess, code: int) -> int:
    """0: a cause of its own; 1: a lost peer; 2: only passes on what a peer said."""
    if code < 128 and RELAYED in last_error_line(node.member.log_file):
        return 2
    return 1 if code == PEER_LOST else 0


def last_error_line(log_file: Path) -> str:
    """The last line of a log that tells an error, or else its last line with text."""
    try:
        with log_file.open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - TAIL_BYTES))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if "ERROR" in line or "CRITICAL" in line or "Error: " in line]
    chosen = (errors or lines)[-1:]
    return printable(chosen[0], MAX_LINE) if chosen else ""
