"""What is wrong with a consortium and what to do about it, in one sentence, from its object alone. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from pcmoe_operator.answers import items, part, printable, text_at, whole
from pcmoe_operator.constants import OPERATOR
from pcmoe_operator.reasons import Reason

Object = dict[str, Any]
Level = Literal["fine", "waiting", "wrong"]
"""Fine; or it gets on by itself or was asked to stop; or somebody has to do something."""
End = Literal["Completed", "Failed"]

MAX_SENTENCE = 2000
HINTS: Mapping[str, str] = {Reason.SuspendRequested.name: "pcmoe resume {name}"}
"""The command that does what the remedy says."""
ON_THE_WAY = frozenset({Reason.Starting.name, Reason.Loading.name})


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """How a consortium stands, in words."""

    level: Level
    reason: str
    """A word of `reasons.Reason`, or empty where no operator has given one."""
    sentence: str
    end: End | None = None
    """How this attempt has ended."""
    note: str = ""
    """What may soon make the sentence untrue."""


def verdict_of(consortium: Object) -> Verdict:
    """The one thing to know first."""
    name = text_at(part(consortium, "metadata"), "name")
    spec, status = part(consortium, "spec"), part(consortium, "status")
    other = printable(spec.get("managedBy"), 63)
    if other not in ("", OPERATOR):
        return Verdict(level="fine", reason="", sentence=f"{other} looks after it, as spec.managedBy says")
    conditions = {text_at(each, "type"): each for each in items(status, "conditions")}
    if not conditions:
        return Verdict(
            level="wrong",
            reason="",
            sentence="no operator has looked at it yet; if that lasts, check that one runs and watches this namespace",
        )
    found = _decided(conditions, status, spec)
    hint = HINTS.get(found.reason, "").format(name=name)
    told = found.sentence + (f" ({hint})" if hint else "")
    return replace(found, sentence=told, note=_note(consortium, status))


def sentence_of(condition: Object) -> str:
    """A condition's message; where it lacks what its reason means, or what to do, that too."""
    reason = Reason.__members__.get(text_at(condition, "reason"))
    message = printable(condition.get("message"), MAX_SENTENCE).rstrip(" .")
    if reason is None:
        return message or text_at(condition, "reason")
    if reason.meaning not in message:
        message = f"{reason.meaning}: {message}" if message else reason.meaning
    return message if reason.remedy in message else f"{message}; {reason.remedy}"


def level_of(reason: str) -> Level:
    """Whether a reason for standing still asks somebody to do something."""
    known = Reason.__members__.get(reason)
    if known is not None and known.asks_nobody:
        return "waiting"
    return "waiting" if reason == Reason.SuspendRequested.name else "wrong"


def _decided(conditions: Mapping[str, Object], status: Object, spec: Object) -> Verdict:
    """By the condition that decides: what isn't accepted, then how it ended, then what holds it up."""
    accepted = conditions.get("Accepted", {})
    if accepted.get("status") == "False":
        return _verdict(accepted, level="wrong")
    if (whole(status.get("attempt")) or 1) == (whole(spec.get("attempt")) or 1):
        if conditions.get("Failed", {}).get("status") == "True":
            return _verdict(conditions["Failed"], level="wrong", end="Failed")
        if conditions.get("Completed", {}).get("status") == "True":
            return _verdict(conditions["Completed"], level="fine", end="Completed")
    suspended = conditions.get("Suspended", {})
    if text_at(suspended, "reason") == Reason.Suspending.name:
        return _verdict(suspended, level="waiting")
    progressing = conditions.get("Progressing", {})
    if progressing.get("status") == "True":
        refused = Reason.ApplyRefused.meaning in text_at(progressing, "message")
        on_the_way = text_at(progressing, "reason") in ON_THE_WAY
        return _verdict(progressing, level="wrong" if refused else "waiting" if on_the_way else "fine")
    return _verdict(progressing, level=level_of(text_at(progressing, "reason")))


def _verdict(condition: Object, *, level: Level, end: End | None = None) -> Verdict:
    sentence = sentence_of(condition)
    refused = Reason.ApplyRefused
    if refused.meaning in sentence and refused.remedy not in sentence:
        sentence = f"{sentence}; {refused.remedy}"
    return Verdict(level=level, reason=text_at(condition, "reason"), sentence=sentence, end=end)


def _note(consortium: Object, status: Object) -> str:
    """What may soon make the sentence untrue."""
    metadata = part(consortium, "metadata")
    if metadata.get("deletionTimestamp"):
        return "it is being deleted"
    if whole(status.get("observedGeneration")) < whole(metadata.get("generation")):
        return "the operator has not looked at the newest manifest yet"
    return ""
