"""What happened and when: from nodes' journals and from the cluster, as one list. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pcmoe_operator.answers import items, part, printable, text_at, whole
from pcmoe_operator.objects.names import PARTICIPANT
from pcmoe_operator.report.read import Line, read_each, seconds

MAX_KIND = 60
CONSORTIUM = "consortium"
"""Who stands beside what concerns all of them."""
EVERY_ROUND = frozenset({"Committed"})
"""Kinds of events that come with every round: those are in the charts."""
QUIET = frozenset({"Ready", "Progressing"})
"""Conditions that change with every moment; the others tell of the run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Happening:
    """Something that happened, as one line."""

    time: float
    """Unix seconds; of what came again, the last time."""
    who: str
    """A participant, the coordinator, or the consortium."""
    kind: str
    """A word, such as ViewLeft."""
    message: str
    count: int = 1
    warning: bool = False


def merged(lists: Iterable[Sequence[Happening]]) -> list[Happening]:
    """All of them, ascending; what is told twice in the same words at the same time counts once."""
    everything = {(h.time, h.who, h.kind, h.message): h for each in lists for h in each}
    return [everything[key] for key in sorted(everything)]


def happenings_of(lines: Iterable[Line], who: str, where: str) -> list[Happening]:
    """The lines of an `events.jsonl`; raises `UsageError` that names `where` and the line."""

    def read(given: dict[str, Any]) -> Happening:
        kind, message = given["kind"], given["message"]
        if not isinstance(kind, str) or not isinstance(message, str):
            raise ValueError("kind and message must be text")
        return Happening(
            time=seconds(given, "time"),
            who=who,
            kind=printable(kind, MAX_KIND),
            message=printable(message),
            warning=kind in ("ViewLeft", "Failed"),
        )

    return [each for each in read_each(lines, read, where, "event") if each.kind not in EVERY_ROUND]


def of_events(events: Iterable[Mapping[str, Any]]) -> list[Happening]:
    """Kubernetes Events of a consortium, of either API; one without a time is left out."""
    found = []
    for event in events:
        given = dict(event)
        series = part(given, "series")
        times = (
            text_at(series, "lastObservedTime"),
            *(text_at(given, key) for key in ("lastTimestamp", "deprecatedLastTimestamp", "eventTime")),
            text_at(given, "metadata", "creationTimestamp"),
        )
        at = next((time for text in times if (time := unix(text)) is not None), None)
        if at is None:
            continue
        counts = (series.get("count"), given.get("count"), given.get("deprecatedCount"))
        found.append(
            Happening(
                time=at,
                who=CONSORTIUM,
                kind=printable(given.get("reason"), MAX_KIND),
                message=printable(given.get("note") or given.get("message")),
                count=max(1, *(whole(each) for each in counts)),
                warning=given.get("type") == "Warning",
            )
        )
    return found


def of_conditions(status: Mapping[str, Any], told: Iterable[Happening]) -> list[Happening]:
    """How a consortium's conditions changed last, but for reasons that Events have told: those live for an hour."""
    known = {each.kind for each in told}
    found = []
    for each in items(dict(status), "conditions"):
        at, reason = unix(text_at(each, "lastTransitionTime")), printable(each.get("reason"), MAX_KIND)
        kind = text_at(each, "type")
        if at is None or reason in known or kind in QUIET or each.get("status") != "True":
            continue
        message = printable(each.get("message")) or printable(kind)
        found.append(
            Happening(time=at, who=CONSORTIUM, kind=reason, message=message, warning=kind == "Failed")
        )
    return found


def of_pods(pods: Iterable[Mapping[str, Any]]) -> list[Happening]:
    """Ends of containers that were started again, and of pods that failed; only the last end of each is known."""
    found = []
    for pod in pods:
        given = dict(pod)
        who = part(given, "metadata", "labels").get(PARTICIPANT)
        if not isinstance(who, str):
            continue
        for status in items(part(given, "status"), "containerStatuses"):
            for state, kind in (("lastState", "Restarted"), ("state", "PodEnded")):
                ended = part(status, state, "terminated")
                at, code = unix(text_at(ended, "finishedAt")), ended.get("exitCode")
                if at is None or not isinstance(code, int) or code == 0:
                    continue
                again = f"; restarts of this pod so far: {whole(status.get('restartCount'))}"
                message = f"exit code {code}{again if state == 'lastState' else ''}"
                found.append(
                    Happening(time=at, who=printable(who, MAX_KIND), kind=kind, message=message, warning=True)
                )
    return found


def unix(text: str) -> float | None:
    """Unix seconds of a time as Kubernetes writes it, or None."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return None
    return found.replace(tzinfo=found.tzinfo or UTC).timestamp() if found.year > 1 else None


def moment(text: str) -> str:
    """A time as Kubernetes writes it, for people; empty if it is none."""
    at = unix(text)
    return "" if at is None else shown(at)


def shown(seconds: float) -> str:
    """Unix seconds as `2026-11-24 12:00:00 UTC`."""
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (ValueError, OverflowError, OSError):
        return "an unknown moment"
