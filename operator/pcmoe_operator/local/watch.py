"""How far everybody is: each `/status`, asked for by a thread of its own, and the rounds that nodes wrote down.

An answer is read with a limit and taken apart field by field: what has another type is absent.
"""

import threading
import time
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, TypeVar

from pcmoe_operator.answers import json_object, number, printable
from pcmoe_operator.local.processes import Member

POLL_SECONDS = 0.5
REQUEST_SECONDS = 2.0
MAX_ANSWER = 64 * 1024
MAX_REASON = 200
S = TypeVar("S")
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # loopback never goes through a proxy


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeStatus:
    """One answer of a node's `/status`."""

    phase: str
    view: int
    """Number of the view it is in, or was in last; 0: none in this life."""
    round: int
    rounds: int
    step: int
    steps: int
    train_loss: float | None
    held_out_loss: float | None
    tokens_per_second: float
    bytes_sent: int
    bytes_received: int
    peers_connected: int
    peers: int
    rss_bytes: int

    @staticmethod
    def parse(answer: bytes) -> "NodeStatus | None":
        """The status in a node's answer, or None if it isn't one."""
        given = json_object(answer)
        if given is None:
            return None
        memory = given.get("memory")
        return NodeStatus(
            phase=printable(given.get("phase"), 20) or "STARTING",
            view=_whole(given, "view"),
            round=_whole(given, "round"),
            rounds=_whole(given, "rounds"),
            step=_whole(given, "step"),
            steps=_whole(given, "steps"),
            train_loss=_number(given, "trainLoss"),
            held_out_loss=_number(given, "heldOutLoss"),
            tokens_per_second=_number(given, "tokensPerSecond") or 0.0,
            bytes_sent=_whole(given, "bytesSent"),
            bytes_received=_whole(given, "bytesReceived"),
            peers_connected=_whole(given, "peersConnected"),
            peers=_whole(given, "peers"),
            rss_bytes=_whole(memory, "rssBytes") if isinstance(memory, dict) else 0,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class CoordinatorStatus:
    """One answer of the coordinator's `/status`."""

    state: str
    """FORMING: it waits for everybody to report. RUNNING: a view stands. FAILED."""
    round: int
    """The last that is committed."""
    reason: str
    """Why the last view ended."""
    missing: tuple[str, ...]
    """Members that aren't connected to it."""

    @staticmethod
    def parse(answer: bytes) -> "CoordinatorStatus | None":
        """The status in the coordinator's answer, or None if it isn't one."""
        given = json_object(answer)
        if given is None:
            return None
        listed = given.get("members")
        members = [m for m in listed if isinstance(m, dict)] if isinstance(listed, list) else []
        return CoordinatorStatus(
            state=printable(given.get("state"), 20) or "STARTING",
            round=_whole(given, "round"),
            reason=printable(given.get("reason"), MAX_REASON),
            missing=tuple(printable(m.get("name"), 28) for m in members if m.get("connected") is False),
        )


def _number(given: dict[str, Any], key: str) -> float | None:
    return number(given.get(key))


def _whole(given: dict[str, Any], key: str) -> int:
    value = given.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


class Watch(Generic[S]):
    """Asks every member for its status until closed; `latest` never waits."""

    def __init__(self, members: Sequence[Member], parse: Callable[[bytes], S | None]) -> None:
        self._parse = parse
        self._latest: dict[str, tuple[float, S]] = {}
        self._closed = threading.Event()
        self._threads = [
            threading.Thread(target=self._ask, args=(m,), name=f"status-{m.name}", daemon=True)
            for m in members
        ]

    def __enter__(self) -> "Watch[S]":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed.set()
        for thread in self._threads:
            thread.join(REQUEST_SECONDS + 1)

    def latest(self, name: str, since: float = 0.0) -> S | None:
        """A member's newest status, or None before its first answer after `since` (monotonic seconds)."""
        at, status = self._latest.get(name, (0.0, None))
        return status if at >= since else None

    def _ask(self, member: Member) -> None:
        while not self._closed.wait(POLL_SECONDS):
            asked = time.monotonic()
            try:
                with _OPENER.open(member.status_url + "/status", timeout=REQUEST_SECONDS) as answer:
                    status = self._parse(answer.read(MAX_ANSWER))
            except (OSError, ValueError):  # not there yet, busy, or gone
                continue
            if status is not None:
                self._latest[member.name] = (asked, status)


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundLine:
    """What the plain view tells of one finished round."""

    round: int
    step: int
    seconds: float
    train_loss: float | None
    held_out_loss: float | None
    tokens: int
    bytes_sent: int
    bytes_received: int


class RoundsTail:
    """Reads a growing `rounds.jsonl`, each line once, whoever asks, and over all lives of the node that writes it."""

    def __init__(self, path: Path, *, from_end: bool = False) -> None:
        """`from_end`: leave out what is there already (a resumed run)."""
        self._path = path
        self._offset = path.stat().st_size if from_end and path.exists() else 0
        self._untold: list[RoundLine] = []
        self._highest = 0

    def new(self) -> list[RoundLine]:
        """The rounds finished since the last call; a half-written last line waits for its end."""
        self._read()
        told, self._untold = self._untold, []
        return told

    def highest(self) -> int:
        """The highest round that was finished; 0: none. Takes nothing away from `new`."""
        self._read()
        return self._highest

    def _read(self) -> None:
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                text = file.read()
        except OSError:
            return
        complete = text[: text.rfind(b"\n") + 1]
        self._offset += len(complete)
        lines = [line for line in map(_round_line, complete.splitlines()) if line is not None]
        self._untold += lines
        self._highest = max(self._highest, *(line.round for line in lines), 0)


def _round_line(text: bytes) -> RoundLine | None:
    given = json_object(text)
    if given is None:
        return None
    traffic = given.get("traffic")
    peers = [p for p in traffic.values() if isinstance(p, dict)] if isinstance(traffic, dict) else []
    return RoundLine(
        round=_whole(given, "round"),
        step=_whole(given, "step"),
        seconds=_number(given, "seconds") or 0.0,
        train_loss=_number(given, "trainLoss"),
        held_out_loss=_number(given, "heldOutLoss"),
        tokens=_whole(given, "tokens"),
        bytes_sent=sum(_whole(p, "bytesSent") for p in peers),
        bytes_received=sum(_whole(p, "bytesReceived") for p in peers),
    )
