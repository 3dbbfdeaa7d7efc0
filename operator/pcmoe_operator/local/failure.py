"""Which process a failed run is about: a participant's node, or the coordinator.

When one fails, the others fail too, because they lost it or because it told them. The cause is the one that died by
a signal nobody here sent, or that ended with an error of its own; messengers come last.
"""

import signal
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pcmoe_operator.answers import printable
from pcmoe_operator.local.restarts import PEER_LOST, by_signal

TAIL_BYTES = 64 * 1024
MAX_LINE = 600
RELAYED = "ended the run"
"""In the last words of a node that ends only because a peer told it that it ends."""

UNKNOWN = "it ended without a reason that this version knows"

TERMINATED = 143
INTERRUPTED = 130

MEANING = {
    1: "an error inside the program",
    64: "its configuration can't be used here",
    65: "its dataset can't be read",
    66: "something this machine must have is missing",
    67: "a peer, or its own certificate, was not who or what the agreement says",
    68: "a peer sent what the agreement forbids",
    69: "its own numbers overflowed in ten steps in a row",
    70: "an error inside the program",
    74: "what it must keep can't be written; mostly its disk is full",
    75: "it lost a peer",
    130: "it was interrupted",
    137: "it was killed; if nobody did that, this machine ran out of memory",
    143: "it was told to stop",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class End:
    """How one life of a process ended."""

    name: str
    """A participant, or the coordinator."""
    code: int
    """Exit code; `128 + n` for signal n."""
    at: float
    """Monotonic time at which the end was seen."""
    words: str
    """Its last words, one line."""
    log_file: Path
    told_to_stop: bool
    """Whether the runner had asked it to end."""
    final: bool
    """Whether it is not started again."""
    tries: int
    """How often it had been started again without getting further."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """The first cause of a failed run."""

    participant: str
    """Or the coordinator."""
    exit_code: int
    last_line: str
    """The process's last words, one line."""
    log_file: Path
    tries: int = 0
    """How often it had been started again without getting further."""

    def sentence(self) -> str:
        """What to tell the user, in three lines, or four."""
        again = (
            f"  It had been started again {_times(self.tries)} without getting further.\n"
            if self.tries
            else ""
        )
        return (
            f"{self.participant} failed with exit code {self.exit_code}: {meaning_of(self.exit_code)}.\n"
            f"{again}"
            f"  Its last words: {self.last_line or 'none'}\n"
            f"  Its log: {self.log_file}"
        )


def _times(count: int) -> str:
    return {1: "once", 2: "twice"}.get(count, f"{count} times")


def meaning_of(exit_code: int) -> str:
    """An exit code in words."""
    if exit_code in MEANING:
        return MEANING[exit_code]
    return f"it {how_it_ended(exit_code)}" if by_signal(exit_code) else UNKNOWN


def how_it_ended(exit_code: int) -> str:
    """The end of a process in a few words that follow its name."""
    if exit_code == PEER_LOST:
        return f"lost a peer (exit code {PEER_LOST})"
    if by_signal(exit_code):
        with suppress(ValueError):
            return f"died by {signal.Signals(exit_code - 128).name}"
    return f"ended with exit code {exit_code}"


def first_cause(ends: Sequence[End]) -> Failure | None:
    """The failure that explains the others, or None if nobody failed by itself. `ends`: the last of each process."""
    failures = [end for end in ends if end.code and not _was_stopped(end)]
    if not failures:
        return None
    cause = min(failures, key=lambda end: (_rank(end), end.at))
    return Failure(
        participant=cause.name,
        exit_code=cause.code,
        last_line=cause.words,
        log_file=cause.log_file,
        tries=cause.tries,
    )


def _was_stopped(end: End) -> bool:
    """Whether it ended because the runner stopped it."""
    return end.told_to_stop and end.code in (TERMINATED, INTERRUPTED, 128 + signal.SIGKILL)


def _rank(end: End) -> int:
    """0: a cause of its own; 1: one that was to be mended; 2: a lost peer; 3: only passes on what a peer said."""
    if not by_signal(end.code) and RELAYED in end.words:
        return 3
    if end.code == PEER_LOST:
        return 2
    return 0 if end.final else 1


def last_error_line(log_file: Path, start: int = 0) -> str:
    """The last line of a log, from byte `start` on, that tells an error, or else its last line with text."""
    try:
        with log_file.open("rb") as file:
            file.seek(max(start, file.seek(0, 2) - TAIL_BYTES))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if "ERROR" in line or "CRITICAL" in line or "Error: " in line]
    chosen = (errors or lines)[-1:]
    return printable(chosen[0], MAX_LINE) if chosen else ""
