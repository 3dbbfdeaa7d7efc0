"""From how a consortium stands to `.status`: conditions for programs, words for people. Pure; `now` is given.

An end stays: what is Completed or Failed is so until `spec.attempt` rises, whatever is observed later.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Literal

from pcmoe_operator.agreement import digest
from pcmoe_operator.answers import items, printable, text_at, whole
from pcmoe_operator.diagnosis import Trouble
from pcmoe_operator.errors import Fault
from pcmoe_operator.gang import LACKING, Stage
from pcmoe_operator.giving_up import Crashes, crashes_of, given_up
from pcmoe_operator.reasons import Reason
from pcmoe_operator.standing import (
    Intent,
    Observation,
    Standing,
    Truth,
    about,
    failure_of,
    held_up,
    listed,
    refusals,
    sentence,
    standing_of,
    state_of,
    troubles,
)
from pcmoe_operator.times import moment, time_of

Status = dict[str, Any]
"""The object's `.status`."""

MAX_MESSAGE = 1024
FAULTS_SHOWN = 3
ENDS: tuple[Literal["Completed", "Failed"], ...] = ("Completed", "Failed")
PLACED = ("Scheduled", "Ready", "Progressing")
"""Conditions of what a run has."""
PROGRESS = frozenset({"round", "loss", "ready"})
"""What changes while all is well. Where it matters how many are ready a condition changes too."""
ENTRY_PROGRESS = frozenset({"round", "phase", "restarts", "message", "state", "node"})
"""The same in a participant's entry; in a condition it is the message alone."""
LAST_KNOWN = ("round", "phase", "restarts", "crashes", "lastCrash", "node")


@dataclass(frozen=True, kw_only=True, slots=True)
class Condition:
    """A condition before it has a time."""

    type: str
    status: Truth
    reason: str
    message: str


def status_of(previous: Status | None, observation: Observation, now: datetime) -> Status:
    """The whole `.status` of a consortium whose manifest the operator has taken."""
    before = previous or {}
    if whole(before.get("attempt")) < observation.attempt:
        # Rounds are committed for good; all else is of the attempt before.
        before = {key: value for key, value in before.items() if key in ("round", "conditions")}
        end = None
    else:
        end = _written_end(before)
    entries = {entry.get("name"): entry for entry in items(before, "participants")}
    seen = observation.seen.participants
    rows = [_recalled(standing_of(name, observation), entries.get(name, {}), observation) for name in seen]
    committed = max(observation.committed, min(_round(before), observation.rounds))
    progressed = committed > _round(before)
    crashes = {name: crashes_of(seen[name], entries.get(name, {}), progressed) for name in seen}
    end = end or _observed_end(observation)
    if end is None and (over := given_up(rows, crashes, seen, committed, observation.restarts_allowed)):
        rows = [over[0] if row.name == over[0].name else row for row in rows]
        end = _condition("Failed", "True", over[1].reason, over[1].sentence)
    loss = _loss(observation) or text_at(before, "loss")
    conditions = [_accepted(), _suspended(observation), *_placed(observation, rows, end)]
    conditions += _ends(end, f"{committed} of {observation.rounds} rounds are committed")
    made = {
        "observedGeneration": observation.generation,
        "state": end.type if end else state_of(observation, rows),
        "round": f"{committed}/{observation.rounds}",
        "ready": f"{sum(row.ready for row in rows)}/{len(rows)}",
        "loss": loss,
        "attempt": observation.attempt,
        "applied": observation.applied.digest,
        "certificateRenewalTime": observation.applied.renewal,
        "agreement": {"active": digest(observation.consortium), "plan": observation.plan_digest},
        "participants": [_entry(row, crashes[row.name], entries.get(row.name, {}), end) for row in rows],
        "conditions": _dated(before, conditions, observation.generation, now),
        "lastUpdateTime": moment(now, "milliseconds"),
    }
    if observation.release is not None and end is None:
        made["release"] = observation.release.written()
    return {key: value for key, value in made.items() if value != ""}


def rejected(
    previous: Status | None,
    generation: int,
    faults: Sequence[Fault],
    now: datetime,
    stopping: Sequence[str] | None = None,
    refused: Sequence[str] = (),
) -> Status:
    """The status of a manifest that breaks rules: nothing is applied, so what was said of what runs stays.

    `stopping`: where it is to be suspended nevertheless, who has a pod or may get one.
    """
    before = previous or {}
    told = [printable(str(fault), 300) for fault in faults[:FAULTS_SHOWN]]
    more = [f"and {len(faults) - len(told)} more"] if len(faults) > len(told) else []
    text = f"{'; '.join([*told, *more])}; {Reason.InvalidSpec.remedy}"
    conditions = [_condition("Accepted", "False", Reason.InvalidSpec, text)]
    if stopping is not None:
        conditions.append(_stopped(stopping, refused))
        conditions += [_condition(kind, "False", Reason.SuspendRequested) for kind in PLACED]
        before = {
            **before,
            "participants": _told_stopped(items(before, "participants"), stopping),
            "ready": "",
        }
    made = _dated(before, conditions, generation, now)
    said = {each["type"] for each in made}
    return {
        # It takes nobody's turn.
        **{key: value for key, value in before.items() if key != "release" and value != ""},
        "observedGeneration": generation,
        "state": "Invalid",
        "conditions": [
            *made,
            *(each for each in items(before, "conditions") if each.get("type") not in said),
        ],
        "lastUpdateTime": moment(now, "milliseconds"),
    }


def _told_stopped(entries: Sequence[Mapping[str, Any]], holding: Sequence[str]) -> list[Status]:
    """Entries of participants, where those that hold nothing any more are known to be suspended."""
    lost = frozenset({"phase", "reason", "message", "node"})
    return [
        dict(each)
        if each.get("state") in ENDS or each.get("name") in holding
        else {**_without(each, lost), "state": "Suspended"}
        for each in entries
    ]


def changed(previous: Status | None, new: Status, now: datetime, every_seconds: float) -> bool:
    """Whether to write a status: progress alone every so many seconds at most, anything else at once."""
    if previous is None or _compared(previous, progress=False) != _compared(new, progress=False):
        return True
    if said(previous, new):
        return False
    at = time_of(text_at(previous, "lastUpdateTime"))
    # None where somebody else has written there.
    return at is None or not 0 <= (now - at).total_seconds() < every_seconds


def said(previous: Status | None, new: Status) -> bool:
    """Whether nothing is left to say, but for the time."""
    return previous is not None and _compared(previous, progress=True) == _compared(new, progress=True)


def ended(status: Status | None, attempt: int) -> Literal["Completed", "Failed"] | None:
    """How an attempt has ended, by what was written down; None if it goes on, or another one begins."""
    if status is None or whole(status.get("attempt")) < attempt:
        return None
    end = _written_end(status)
    return next((kind for kind in ENDS if end is not None and end.type == kind), None)


# Conditions


def _condition(kind: str, status: Truth, reason: Reason, message: str = "") -> Condition:
    text = printable(message or sentence("", reason), MAX_MESSAGE)
    return Condition(type=kind, status=status, reason=reason.name, message=text)


def _accepted() -> Condition:
    return _condition("Accepted", "True", Reason.Accepted)


def _suspended(observation: Observation) -> Condition:
    if observation.intent is not Intent.SUSPEND:
        yields = observation.intent is Intent.YIELD
        return _condition("Suspended", "False", observation.yields if yields else Reason.NotSuspended)
    return _stopped(observation.holding, observation.refused)


def _stopped(holding: Sequence[str], refused: Sequence[str]) -> Condition:
    """Whether what was to be suspended is: nobody has a pod, or may get one."""
    if not holding:
        return _condition("Suspended", "True", Reason.SuspendRequested)
    text = sentence(listed(holding), Reason.Suspending) + refusals(refused)
    return _condition("Suspended", "False", Reason.Suspending, text)


def _placed(observation: Observation, rows: Sequence[Standing], end: Condition | None) -> list[Condition]:
    """Scheduled, Ready and Progressing."""
    if end is not None:
        text = sentence("", Reason.RunOver) + refusals(observation.refused)
        return [_condition(kind, "False", Reason.RunOver, text) for kind in PLACED]
    truth, reason, words = held_up(observation, rows)
    ready = bool(rows) and all(row.ready for row in rows)
    return [
        _scheduled(rows, reason, words),
        _condition("Ready", "True", Reason.InView) if ready else _condition("Ready", "False", reason, words),
        _condition("Progressing", truth, reason, words),
    ]


def _scheduled(rows: Sequence[Standing], reason: Reason, words: str) -> Condition:
    homeless = [row for row in rows if not row.machine]
    if rows and not homeless:
        return _condition("Scheduled", "True", Reason.AllScheduled)
    troubled = troubles(homeless)
    waits = reason in (Reason.GpusReleased, Reason.Queued)
    if not waits and troubled and troubled[0].trouble:
        return _condition("Scheduled", "False", troubled[0].trouble.reason, about(troubled))
    if waits or reason in (Reason.SuspendRequested, Reason.NothingHere):
        return _condition("Scheduled", "False", reason, words)
    names = listed([row.name for row in homeless])
    return _condition("Scheduled", "False", Reason.Starting, sentence(names, Reason.Starting))


def _ends(end: Condition | None, left: str) -> list[Condition]:
    """Completed and Failed."""
    made = [
        _condition("Completed", "False", Reason.RoundsLeft, left),
        _condition("Failed", "False", Reason.NoFailure),
    ]
    return [end if end is not None and end.type == each.type else each for each in made]


def _written_end(before: Status) -> Condition | None:
    """The end that was written down, in its words of then."""
    for each in items(before, "conditions"):
        if each.get("type") in ENDS and each.get("status") == "True":
            reason, message = text_at(each, "reason"), text_at(each, "message")
            return Condition(type=text_at(each, "type"), status="True", reason=reason, message=message)
    return None


def _observed_end(observation: Observation) -> Condition | None:
    if observation.complete:
        text = f"all {observation.rounds} rounds are committed: every participant has stored the last one"
        return _condition("Completed", "True", Reason.LastRoundCommitted, text)
    failure = failure_of(observation)
    return _condition("Failed", "True", failure.reason, failure.sentence) if failure else None


def _dated(before: Status, conditions: Sequence[Condition], generation: int, now: datetime) -> list[Status]:
    """Conditions as the API has them; the time is that of the last change of `status`, not of the words."""
    old = {each.get("type"): each for each in items(before, "conditions")}
    made = []
    for each in conditions:
        was = old.get(each.type, {})
        since = text_at(was, "lastTransitionTime") if was.get("status") == each.status else ""
        made.append(
            {
                "type": each.type,
                "status": each.status,
                "observedGeneration": generation,
                "lastTransitionTime": since or moment(now, "seconds"),
                "reason": each.reason,
                "message": each.message,
            }
        )
    return made


# The rest


def _recalled(row: Standing, old: Mapping[str, Any], observation: Observation) -> Standing:
    """One whose pod was given back keeps the words of whoever had no machine for it."""
    gave = observation.release is not None and observation.release.stage is Stage.GIVEN_BACK
    if not gave or not row.gone or row.trouble is not None or old.get("reason") not in LACKING:
        return row
    return replace(row, trouble=Trouble(reason=Reason[old["reason"]], message=text_at(dict(old), "message")))


def _entry(row: Standing, crashes: Crashes, old: Mapping[str, Any], end: Condition | None) -> Status:
    """A participant's entry; of one that is gone after the end, what was known last."""
    known = {
        "name": row.name,
        "state": row.state,
        "round": row.node.round if row.node else None,
        "phase": row.node.phase if row.node else None,
        "reason": row.trouble.reason.name if row.trouble else None,
        "message": row.words,
        "restarts": row.restarts,
        "node": row.machine,
    }
    said = {key: value for key, value in known.items() if value not in (None, "")} | crashes.written()
    if end is None or row.state == end.type == "Failed":
        return said
    if old.get("state") == end.type == "Failed":
        return dict(old)
    if not row.gone:
        return said
    last = {key: old[key] for key in LAST_KNOWN if key in old}
    return {"name": row.name, "state": "Completed" if end.type == "Completed" else "Stopped", **last}


def _round(before: Status) -> int:
    done = text_at(before, "round").partition("/")[0]
    return int(done) if done.isascii() and done.isdigit() and len(done) < 10 else 0


def _loss(observation: Observation) -> str:
    """The mean of all nodes here, on held-out documents if all have one; three significant digits. Else empty."""
    heard = [node for name in observation.seen.participants if (node := observation.heard(name)) is not None]
    if len(heard) < len(observation.seen.participants):
        return ""
    for losses in ([n.held_out_loss for n in heard], [n.train_loss for n in heard]):
        known = [each for each in losses if each is not None]
        if known and len(known) == len(heard):
            return f"{sum(known) / len(known):#.3g}".rstrip(".")
    return ""


def _compared(status: Status, *, progress: bool) -> Status:
    """A status as it is compared: without its time, lists by name, and without progress where that isn't asked for."""
    drop, entry_drop = (frozenset(), frozenset()) if progress else (PROGRESS, ENTRY_PROGRESS)
    if text_at(status, "release", "state") not in ("", Stage.RELEASED.value):
        entry_drop -= {"node"}  # others wait for what it gives back
    condition_drop = frozenset() if progress else frozenset({"message"})
    lists = {
        "participants": {
            each.get("name"): _without(each, entry_drop) for each in items(status, "participants")
        },
        "conditions": {
            each.get("type"): _without(each, condition_drop) for each in items(status, "conditions")
        },
    }
    return {**_without(status, drop | {"lastUpdateTime"}), **lists}


def _without(of: Mapping[str, Any], keys: frozenset[str]) -> Status:
    return {key: value for key, value in of.items() if key not in keys}
