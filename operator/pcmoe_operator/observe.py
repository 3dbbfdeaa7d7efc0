"""What there is of a consortium's participants in a cluster: Jobs, pods and their troubles as frozen rows. Pure.

Objects and events come as the API server gives them, or trimmed: what is missing is unknown. Other people's objects
are passed over.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from pcmoe_operator.answers import NodeSeen, items, part, printable, text_at, whole
from pcmoe_operator.diagnosis import (
    RUNTIME_REASONS,
    Trouble,
    condition_of,
    crash,
    first_told_at,
    last_event,
    refusal,
    told_at,
    trouble,
)
from pcmoe_operator.objects.jobs import CONTAINER
from pcmoe_operator.objects.names import ATTEMPT, CONSORTIUM, PARTICIPANT, ROLE, Object, of_attempt

EXIT_CODE = re.compile(r" failed with exit code (\d{1,3})\b")
"""In the message of a Job's condition Failed, which outlives the pod."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PodSeen:
    """A participant's pod."""

    participant: str
    attempt: int
    name: str
    phase: str
    """Pending, Running, Succeeded, Failed; Unknown if it doesn't say."""
    node: str
    """The machine; empty until it has one."""
    going: bool
    """Whether it is being deleted."""
    unplaced_since: str
    """Since when it has been known that no machine takes it; empty if one does, or nobody has looked yet."""
    placed_since: str
    """Since when it has a machine, as far as that is said."""
    ready: bool
    """Whether its node is in a view."""
    restarts: int
    """How often its container was started again."""
    trouble: Trouble | None
    """Why it is pending, starts again or dies."""
    exit_code: int | None
    """Of the container's last end, as the kubelet saw it."""
    ended_at: str
    """When that was; empty if it has not ended yet."""
    last: NodeSeen | None
    """What the node left then."""
    crash: Trouble | None
    """Why it ended then, if that was its own doing: nobody took it away, and no peer was lost."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ConditionSeen:
    """A condition of a Job."""

    type: str
    status: str
    reason: str
    message: str
    since: str


@dataclass(frozen=True, kw_only=True, slots=True)
class JobSeen:
    """A participant's Job for one attempt."""

    participant: str
    suspended: bool
    active: int
    failed: int
    succeeded: int
    conditions: tuple[ConditionSeen, ...]
    refusal: Trouble | None
    """Why its pod can't be made, if that is the last that was heard of it."""
    refused_since: str
    """Since when; empty if it can."""
    started: str
    """Since when the Job controller has known that it is to have a pod; empty if it doesn't know yet."""

    @property
    def failure(self) -> ConditionSeen | None:
        """Why it has failed for good: FailureTarget stands as soon as that is certain, Failed when no pod is left."""
        true = {each.type: each for each in self.conditions if each.status == "True"}
        return true.get("FailureTarget") or true.get("Failed")

    @property
    def exit_code(self) -> int | None:
        """The exit code that made it fail for good, if it says so."""
        found = self.failure and EXIT_CODE.search(self.failure.message)
        return int(found[1]) if found else None


@dataclass(frozen=True, kw_only=True, slots=True)
class ParticipantSeen:
    """What there is of a participant that runs here."""

    job: JobSeen | None
    pod: PodSeen | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Seen:
    """All participants of a consortium that run here, in the order they were asked for."""

    participants: Mapping[str, ParticipantSeen]


def observe(
    consortium: str,
    here: Sequence[str],
    attempt: int,
    jobs: Iterable[Object],
    pods: Iterable[Object],
    events: Iterable[Object] = (),
) -> Seen:
    """What there is of the participants `here` in one attempt, out of all objects of a namespace.

    `events` are those of Jobs (FailedCreate: a quota, Pod Security) and of pods (FailedMount): either API's form.
    """
    told = sorted(events, key=told_at)
    by_name = {text_at(job, "metadata", "name"): job for job in jobs if _of(job, consortium)}
    found: dict[str, ParticipantSeen] = {}
    own: dict[str, list[Object]] = {}
    for pod in pods:
        if _of(pod, consortium) and _label(pod, ATTEMPT) == str(attempt):
            own.setdefault(_label(pod, PARTICIPANT), []).append(pod)
    for name in here:
        job_name = of_attempt(consortium, name, attempt)
        raw, mine = by_name.get(job_name), [pod for pod in own.get(name, ()) if _made_by(pod, job_name)]
        newest = max(mine, key=_age, default=None)
        found[name] = ParticipantSeen(
            job=None if raw is None else _job(name, raw, told),
            pod=None if newest is None else _pod(name, attempt, newest, told),
        )
    return Seen(participants=found)


def _of(made: Object, consortium: str) -> bool:
    return _label(made, CONSORTIUM) == consortium and _label(made, ROLE) == "node"


def _label(made: Object, key: str) -> str:
    return str(part(made, "metadata", "labels").get(key, ""))


def _made_by(pod: Object, job_name: str) -> bool:
    """Whether a pod is a Job's. One without owners may be trimmed; another's own copy of our labels is not ours."""
    owners = items(part(pod, "metadata"), "ownerReferences")
    return not owners or any(o.get("kind") == "Job" and o.get("name") == job_name for o in owners)


def _age(pod: Object) -> tuple[str, bool, str]:
    data = part(pod, "metadata")
    return text_at(data, "creationTimestamp"), "deletionTimestamp" not in data, text_at(data, "name")


def _job(name: str, raw: Object, told: Sequence[Object]) -> JobSeen:
    status = part(raw, "status")
    event = last_event("Job", raw, ("FailedCreate", "SuccessfulCreate"), told)
    refused = refusal(event)
    conditions = [
        ConditionSeen(
            type=printable(each.get("type")),
            status=printable(each.get("status")),
            reason=printable(each.get("reason")),
            message=printable(each.get("message")),
            since=printable(each.get("lastTransitionTime")),
        )
        for each in items(status, "conditions")
    ]
    return JobSeen(
        participant=name,
        suspended=part(raw, "spec").get("suspend") is True,
        active=whole(status.get("active")),
        failed=whole(status.get("failed")),
        succeeded=whole(status.get("succeeded")),
        conditions=tuple(conditions),
        refusal=refused,
        # The event may be an old one that was repeated; the Job is asked for a pod only since it was last released.
        refused_since=max(first_told_at(event), text_at(status, "startTime")) if event and refused else "",
        started=text_at(status, "startTime"),
    )


def _pod(name: str, attempt: int, raw: Object, told: Sequence[Object]) -> PodSeen:
    status = part(raw, "status")
    held = next((c for c in items(status, "containerStatuses") if c.get("name") == CONTAINER), {})
    end = part(held, "state", "terminated") or part(held, "lastState", "terminated")
    code, ready = end.get("exitCode"), condition_of(status, "Ready").get("status") == "True"
    last = None if end.get("reason") in RUNTIME_REASONS else NodeSeen.parse(text_at(end, "message"))
    going, scheduled = "deletionTimestamp" in part(raw, "metadata"), condition_of(status, "PodScheduled")
    since, machine = text_at(scheduled, "lastTransitionTime"), text_at(raw, "spec", "nodeName")
    return PodSeen(
        participant=name,
        attempt=attempt,
        name=text_at(raw, "metadata", "name"),
        phase=text_at(status, "phase") or "Unknown",
        node=machine,
        going=going,
        unplaced_since=since if not machine and not going and scheduled.get("status") == "False" else "",
        placed_since=since if machine else "",
        ready=ready and not going,
        restarts=whole(held.get("restartCount")),
        trouble=trouble(raw, held, end, last, told),
        exit_code=code if isinstance(code, int) else None,
        ended_at=text_at(end, "finishedAt"),
        last=last,
        crash=crash(raw, end, last),
    )
