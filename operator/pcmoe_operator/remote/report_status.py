"""What a consortium's object, Jobs and pods say for its report. Pure; `now` is given."""

from collections.abc import Mapping, Sequence
from datetime import datetime

from pcmoe_operator.answers import Object, items, part, printable, text_at
from pcmoe_operator.objects.jobs import CONTAINER
from pcmoe_operator.objects.names import ATTEMPT, PARTICIPANT
from pcmoe_operator.report.timeline import moment, unix
from pcmoe_operator.scalars import quantity
from pcmoe_operator.schema import Consortium

ENDS = ("Completed", "Failed")


def participants_here(consortium: Consortium, raw: Object) -> tuple[str, ...]:
    """Participants that run in this cluster, by name: as the operator says, or the manifest before it has."""
    told = {entry.get("name") for entry in items(part(raw, "status"), "participants")}
    named = tuple(entry.name for entry in consortium.local)
    return tuple(name for name in consortium.names if name in told) or named


def standing_of(raw: Object) -> Mapping[str, str]:
    """How a consortium stands, in the operator's words."""
    status = part(raw, "status")
    end = next(
        (
            each
            for each in items(status, "conditions")
            if each.get("type") in ENDS and each.get("status") == "True"
        ),
        {},
    )
    begun, ended = (text_at(part(raw, "metadata"), "creationTimestamp"), text_at(end, "lastTransitionTime"))
    words = {
        "state": printable(status.get("state")),
        "because": printable(end.get("message")) if end.get("type") == "Failed" else "",
        "committed rounds": printable(status.get("round")),
        "made": moment(begun),
        "ended": moment(ended),
    }
    return {key: value for key, value in words.items() if value}


def attempt_of(found: Object) -> int:
    """Which attempt a Job or pod is of; 0 if it doesn't say."""
    text = text_at(found, "metadata", "labels", ATTEMPT)
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0


def newest_job(jobs: Sequence[Object], participant: str) -> Object | None:
    """A participant's Job of the last attempt."""
    own = [job for job in jobs if text_at(job, "metadata", "labels", PARTICIPANT) == participant]
    return max(own, key=attempt_of, default=None)


def images_of(jobs: Sequence[Object], here: Sequence[str]) -> Mapping[str, str]:
    """Images of the nodes: one line where all have the same."""
    found = {}
    for name in here:
        spec = part(newest_job(jobs, name) or {}, "spec", "template", "spec")
        images = [
            text_at(each, "image") for each in items(spec, "containers") if each.get("name") == CONTAINER
        ]
        found[name] = printable(next(iter(images), ""))
    known = {name: image for name, image in found.items() if image}
    if len(set(known.values())) == 1:
        return {"node image": next(iter(known.values()))}
    return {f"image of {name}": image for name, image in known.items()}


def held_of(consortium: Consortium, pods: Sequence[Object], now: datetime) -> Mapping[str, float]:
    """Seconds times GPUs of the listed pods, by participant with GPUs: from a pod's start to its end or to `now`."""
    held: dict[str, float] = {}
    for pod in pods:
        name = text_at(pod, "metadata", "labels", PARTICIPANT)
        entry = next((each for each in consortium.local if each.name == name), None)
        if entry is None:
            continue
        gpus, began = _gpus(pod, entry.resource_name), unix(text_at(pod, "status", "startTime"))
        if gpus and began is not None:
            held[name] = held.get(name, 0.0) + gpus * max(0.0, _end(pod, now) - began)
    return held


def _gpus(pod: Object, resource: str) -> float:
    containers = items(part(pod, "spec"), "containers")
    given = [part(each, "resources", "limits").get(resource) for each in containers]
    try:
        return float(sum(quantity(str(each)) for each in given if each is not None))
    except ValueError:
        return 0.0


def _end(pod: Object, now: datetime) -> float:
    if text_at(pod, "status", "phase") not in ("Succeeded", "Failed"):
        return now.timestamp()
    ends = [
        unix(text_at(each, "state", "terminated", "finishedAt"))
        for each in items(part(pod, "status"), "containerStatuses")
    ]
    return max((end for end in ends if end is not None), default=now.timestamp())
