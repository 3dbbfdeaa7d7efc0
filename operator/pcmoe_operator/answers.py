"""What nodes and the coordinator say of themselves. Pure.

All of it is untrusted: it is read field by field, text becomes one printable line, and what has another type, or is out
of bounds, is absent.
"""

import json
from dataclasses import dataclass
from typing import Any

from pcmoe_operator.constants import MAX_PARTICIPANT_NAME, MAX_PARTICIPANTS

MAX_SENTENCE = 500
MAX_WORD = 20
MAX_NUMBER = 2**31 - 1
Object = dict[str, Any]
"""A JSON object."""


def printable(text: object, limit: int = MAX_SENTENCE) -> str:
    """Text from elsewhere as one printable line of at most `limit` characters; empty if it isn't text."""
    if not isinstance(text, str):
        return ""
    line = " ".join("".join(c if c.isprintable() else " " for c in text[: 4 * limit]).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeSeen:
    """A node's `/status`, or what it left of it when it ended."""

    phase: str
    round: int
    rounds: int
    step: int
    train_loss: float | None
    held_out_loss: float | None
    waiting_for: str
    """Who keeps its view from forming; empty while it is in one."""
    view: int
    """Number of the view it is in, or was in last; 0: none in this life."""
    committed: int
    error: str

    @staticmethod
    def parse(answer: bytes | str) -> "NodeSeen | None":
        """The status in an answer, or None if it is no JSON object."""
        given = json_object(answer)
        if given is None:
            return None
        return NodeSeen(
            phase=printable(given.get("phase"), MAX_WORD),
            round=whole(given.get("round")),
            rounds=whole(given.get("rounds")),
            step=whole(given.get("step")),
            train_loss=number(given.get("trainLoss")),
            held_out_loss=number(given.get("heldOutLoss")),
            waiting_for=printable(given.get("waitingFor")),
            view=whole(given.get("view")),
            committed=whole(given.get("committed")),
            error=printable(given.get("error")),
        )

    def finished(self, rounds: int) -> bool:
        """Whether it knows that the last round is committed; one that finds all stored says DONE, and no more."""
        return self.committed >= rounds or (self.phase == "DONE" and self.round >= rounds)


@dataclass(frozen=True, kw_only=True, slots=True)
class MemberSeen:
    """A participant as the coordinator sees it."""

    name: str
    connected: bool
    phase: str


@dataclass(frozen=True, kw_only=True, slots=True)
class CoordinatorSeen:
    """The coordinator's `/status`."""

    state: str
    """FORMING: it waits for everybody to report. RUNNING: a view stands. FAILED."""
    view: int
    round: int
    """The last that is committed."""
    reason: str
    """Why the last view ended."""
    members: tuple[MemberSeen, ...]
    error: str

    @staticmethod
    def parse(answer: bytes | str) -> "CoordinatorSeen | None":
        """The status in an answer, or None if it is no JSON object."""
        given = json_object(answer)
        if given is None:
            return None
        members = [
            MemberSeen(
                name=printable(member.get("name"), MAX_PARTICIPANT_NAME),
                connected=member.get("connected") is True,
                phase=printable(member.get("phase"), MAX_WORD),
            )
            for member in items(given, "members")[:MAX_PARTICIPANTS]
        ]
        return CoordinatorSeen(
            state=printable(given.get("state"), MAX_WORD),
            view=whole(given.get("view")),
            round=whole(given.get("round")),
            reason=printable(given.get("reason")),
            members=tuple(members),
            error=printable(given.get("error")),
        )


def part(of: Object, *path: str) -> Object:
    """A nested object, empty where there is none."""
    at: Any = of
    for key in path:
        at = at.get(key) if isinstance(at, dict) else None
    return at if isinstance(at, dict) else {}


def items(of: Object, key: str) -> list[Object]:
    """The objects in a list; others are left out."""
    listed = of.get(key)
    return [each for each in listed if isinstance(each, dict)] if isinstance(listed, list) else []


def text_at(of: Object, *path: str) -> str:
    """Text at a path, empty where there is none."""
    value = part(of, *path[:-1]).get(path[-1])
    return value if isinstance(value, str) else ""


def json_object(answer: bytes | str) -> Object | None:
    """The object that a text is, or None; a nest that is too deep for Python is none either."""
    try:
        given = json.loads(answer)
    except (ValueError, RecursionError):
        return None
    return given if isinstance(given, dict) else None


def number(value: object) -> float | None:
    """A finite number, or None. An integer may be too large for a float, and JSON here has Infinity and NaN."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if abs(value) <= MAX_NUMBER else None


def whole(value: object) -> int:
    """A count, or 0."""
    return value if type(value) is int and 0 <= value <= MAX_NUMBER else 0
