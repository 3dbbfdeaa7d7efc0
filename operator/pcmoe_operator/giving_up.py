"""When the operator gives a run up: a participant ends by its own fault again and again, and no round is committed.

Jobs start a pod again without end, because only here the whole consortium is seen. What is counted is in the
participant's entry of the status: how often it has crashed since a round was last committed, and when the last one
was, so that an operator that starts anew counts none twice. Pure.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pcmoe_operator.answers import MAX_NUMBER, text_at, whole
from pcmoe_operator.diagnosis import Trouble
from pcmoe_operator.observe import ParticipantSeen
from pcmoe_operator.reasons import Reason
from pcmoe_operator.standing import Failure, Standing, sentence


@dataclass(frozen=True, kw_only=True, slots=True)
class Crashes:
    """What a participant has done without progress."""

    count: int
    last: str
    """When its container ended the last time that was counted."""

    def written(self) -> dict[str, Any]:
        """As the API has it."""
        counted = {"crashes": self.count} if self.count else {}
        return {**counted, "lastCrash": self.last} if self.last else counted


def crashes_of(seen: ParticipantSeen, entry: Mapping[str, Any], progressed: bool) -> Crashes:
    """What was written down, and one more if its container has ended by its own fault since.

    `progressed`: whether a round was committed since that was written.
    """
    count, last = 0 if progressed else whole(entry.get("crashes")), text_at(dict(entry), "lastCrash")
    pod = seen.pod
    if pod is not None and pod.crash is not None and pod.ended_at not in ("", last):
        count, last = min(MAX_NUMBER, count + 1), pod.ended_at
    return Crashes(count=count, last=last)


def given_up(
    rows: Iterable[Standing],
    crashes: Mapping[str, Crashes],
    seen: Mapping[str, ParticipantSeen],
    committed: int,
    allowed: int,
) -> tuple[Standing, Failure] | None:
    """Who has crashed too often, and what to say of it; None while there is hope."""
    for row in rows:
        count, pod = crashes[row.name].count, seen[row.name].pod
        if count >= allowed and row.state not in ("Completed", "Failed"):
            crash = (pod.crash if pod is not None else None) or row.trouble
            trouble = crash or Trouble(reason=Reason.CrashLoop)
            return replace(row, state="Failed", trouble=trouble), _failure(row.name, count, committed, crash)
    return None


def _failure(name: str, count: int, committed: int, crash: Trouble | None) -> Failure:
    words = f"{count} times since round {committed} was committed"
    if crash is not None:
        last = sentence("", crash.reason, crash.message)
        words += f"; the last time {last}"
    return Failure(reason=Reason.CrashLoop, sentence=sentence(name, Reason.CrashLoop, words))
