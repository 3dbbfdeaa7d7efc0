"""What there is of a consortium's participants in a cluster: Jobs, pods and their troubles as frozen rows. Pure.

Objects and events come as the API server gives them, or trimmed: what is missing is unknown. Other people's objects
are passed over.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from pcmoe_operator.answers import NodeSeen, items, part, printable, text_at, whole
from pcmoe_operator.objects.jobs import CONTAINER, FINAL_CODES
from pcmoe_operator.objects.names import ATTEMPT, CONSORTIUM, PARTICIPANT, ROLE, Object, of_attempt
from pcmoe_operator.reasons import Reason

EXIT_REASONS = {
    64: Reason.ConfigurationRefused,
    65: Reason.DatasetUnreadable,
    66: Reason.ResourceMissing,
    67: Reason.IdentityRefused,
    68: Reason.ProtocolBroken,
    69: Reason.Diverged,
    70: Reason.InternalError,
    74: Reason.StorageFailed,
    75: Reason.PeerLost,
    130: Reason.Stopped,
    137: Reason.Killed,
    143: Reason.Stopped,
}
WAITING_REASONS = {
    **dict.fromkeys(("ErrImagePull", "ImagePullBackOff", "InvalidImageName"), Reason.ImageUnavailable),
    **dict.fromkeys(
        ("ErrImageNeverPull", "ImageInspectError", "RegistryUnavailable"), Reason.ImageUnavailable
    ),
    "SignatureValidationFailed": Reason.ImageUnavailable,
    "CreateContainerConfigError": Reason.ConfigurationMissing,
    **dict.fromkeys(("CreateContainerError", "RunContainerError"), Reason.StartFailed),
    **dict.fromkeys(("PreCreateHookError", "PostStartHookError"), Reason.StartFailed),
}
"""By a container's `state.waiting.reason`."""
RUNTIME_REASONS = ("StartError", "ContainerCannotRun", "ContainerStatusUnknown")
"""`state.terminated.reason`s whose message is the kubelet's own, not what a node has left."""
DISRUPTIONS = {
    "PreemptionByScheduler": Reason.Preempted,
    "EvictionByEvictionAPI": Reason.Evicted,
    "TerminationByKubelet": Reason.Evicted,
    "DeletionByTaintManager": Reason.Evicted,
    "DeletionByPodGC": Reason.NodeUnreachable,
}
"""By the reason of a pod's condition DisruptionTarget."""
REFUSALS = (
    (re.compile(r"exceeded quota|failed quota", re.I), Reason.QuotaExceeded),
    (re.compile(r"violates PodSecurity", re.I), Reason.PodSecurityRefused),
)
"""By the text of the event FailedCreate of a Job; every other one is Reason.AdmissionRefused."""
UNBOUND = re.compile(r"persistentvolumeclaim|volume node affinity|persistent volumes? to bind", re.I)
"""In the scheduler's words, where a volume and not a machine is what a pod lacks."""
NOT_FOUND = re.compile(r"\b(secret|configmap)s?\b.* not found", re.I)
STUCK_EVENTS = ("FailedMount", "FailedAttachVolume", "FailedCreatePodSandBox")
"""Of a pod that has a machine and no container; one whose image is pulled is past them."""
EXIT_CODE = re.compile(r" failed with exit code (\d{1,3})\b")
"""In the message of a Job's condition Failed, which outlives the pod."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Trouble:
    """What is wrong with a pod: a word, and a sentence in the words of whoever found it."""

    reason: Reason
    message: str = ""


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
    told = sorted(events, key=_when)
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
    event = _last_event("Job", raw, ("FailedCreate", "SuccessfulCreate"), told)
    refusal = _refusal(event)
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
        refusal=refusal,
        # The event may be an old one that was repeated; the Job is asked for a pod only since it was last released.
        refused_since=max(_first_told(event), text_at(status, "startTime")) if event and refusal else "",
        started=text_at(status, "startTime"),
    )


def _refusal(event: Object | None) -> Trouble | None:
    if event is None or event.get("reason") != "FailedCreate":
        return None
    text = printable(event.get("message") or event.get("note"))
    reason = next((why for pattern, why in REFUSALS if pattern.search(text)), Reason.AdmissionRefused)
    return Trouble(reason=reason, message=text)


def _last_event(kind: str, raw: Object, reasons: Sequence[str], told: Sequence[Object]) -> Object | None:
    """The newest event about an object, out of those sorted by time."""
    data = part(raw, "metadata")
    for event in reversed(told):
        about = part(event, "involvedObject") or part(event, "regarding")
        same = about.get("kind") == kind and about.get("name") == data.get("name")
        if same and event.get("reason") in reasons and about.get("uid", data.get("uid")) == data.get("uid"):
            return event
    return None


def _when(event: Object) -> str:
    series = text_at(event, "series", "lastObservedTime")
    times = (series, text_at(event, "lastTimestamp"), text_at(event, "deprecatedLastTimestamp"))
    return (
        next(filter(None, times), "")
        or text_at(event, "eventTime")
        or text_at(event, "metadata", "creationTimestamp")
    )


def _first_told(event: Object) -> str:
    first = text_at(event, "firstTimestamp") or text_at(event, "deprecatedFirstTimestamp")
    return first or _when(event)


def _pod(name: str, attempt: int, raw: Object, told: Sequence[Object]) -> PodSeen:
    status = part(raw, "status")
    held = next((c for c in items(status, "containerStatuses") if c.get("name") == CONTAINER), {})
    end = part(held, "state", "terminated") or part(held, "lastState", "terminated")
    code, ready = end.get("exitCode"), _condition(status, "Ready").get("status") == "True"
    last = None if end.get("reason") in RUNTIME_REASONS else NodeSeen.parse(text_at(end, "message"))
    going, scheduled = "deletionTimestamp" in part(raw, "metadata"), _condition(status, "PodScheduled")
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
        trouble=_trouble(raw, held, end, last, told),
        exit_code=code if isinstance(code, int) else None,
        ended_at=text_at(end, "finishedAt"),
        last=last,
        crash=_crash(raw, end, last),
    )


def _crash(raw: Object, end: Object, last: NodeSeen | None) -> Trouble | None:
    unknown = end.get("reason") == "ContainerStatusUnknown"
    if not end or unknown or "deletionTimestamp" in part(raw, "metadata"):
        return None
    if _taken_away(raw, part(raw, "status")):
        return None
    found = _ended(end, last)
    return None if found is None or found.reason in (Reason.PeerLost, Reason.Stopped) else found


def _trouble(
    raw: Object, held: Object, end: Object, last: NodeSeen | None, told: Sequence[Object]
) -> Trouble | None:
    """What is wrong, by whoever knows best: who takes the pod away, the scheduler, the kubelet, the node itself."""
    status = part(raw, "status")
    phase, ready = status.get("phase"), _condition(status, "Ready").get("status") == "True"
    if phase == "Succeeded":
        return None
    taken = _taken_away(raw, status)
    if taken is not None:
        return taken
    if phase == "Pending" and not part(raw, "spec").get("nodeName"):
        return _unscheduled(_condition(status, "PodScheduled"))
    waiting = part(held, "state", "waiting")
    text, why = printable(waiting.get("message")), WAITING_REASONS.get(text_at(waiting, "reason"))
    if why is Reason.ConfigurationMissing and not NOT_FOUND.search(text) and "couldn't find key" not in text:
        why = Reason.StartFailed  # the same word for an image that runs as root
    if why is not None:
        return Trouble(reason=why, message=text)
    if end and not ready:
        return _ended(end, last)
    return _not_started(raw, told) if phase == "Pending" else None


def _taken_away(raw: Object, status: Object) -> Trouble | None:
    """Why a pod goes, or went, without the node's doing."""
    over, going = status.get("phase") == "Failed", "deletionTimestamp" in part(raw, "metadata")
    words = printable(status.get("message"))
    disrupted = _condition(status, "DisruptionTarget")
    if disrupted.get("status") == "True":
        why = DISRUPTIONS.get(text_at(disrupted, "reason"), Reason.Evicted)
        text = printable(disrupted.get("message"))
        # A kubelet that lives ends such a pod within seconds; one that is away leaves it so for ever.
        lost = disrupted.get("reason") == "DeletionByTaintManager" and going and not over
        return Trouble(reason=Reason.NodeUnreachable if lost else why, message=words or text)
    if status.get("reason") == "NodeLost" or status.get("phase") == "Unknown":
        return Trouble(reason=Reason.NodeUnreachable, message=words)
    if status.get("reason") in ("Evicted", "Preempting", "NodeShutdown", "Terminated", "Shutdown"):
        return Trouble(reason=Reason.Evicted, message=words)
    if over and not items(status, "containerStatuses"):
        return Trouble(reason=Reason.MachineRefused, message=words)
    return Trouble(reason=Reason.Stopped) if going and not over else None


def _unscheduled(scheduled: Object) -> Trouble | None:
    text = printable(scheduled.get("message"))
    if scheduled.get("status") != "False":
        return None
    if scheduled.get("reason") == "SchedulingGated":
        return Trouble(reason=Reason.SchedulingGated, message=text)
    return Trouble(
        reason=Reason.VolumeUnbound if UNBOUND.search(text) else Reason.Unschedulable, message=text
    )


def _not_started(raw: Object, told: Sequence[Object]) -> Trouble | None:
    """What a pod with a machine waits for before its container; nothing but its events tells of it."""
    event = _last_event("Pod", raw, (*STUCK_EVENTS, "Pulling", "Pulled"), told)
    if event is None or event.get("reason") not in STUCK_EVENTS:
        return None
    text = printable(event.get("message") or event.get("note"))
    if event.get("reason") == "FailedCreatePodSandBox":
        return Trouble(reason=Reason.StartFailed, message=text)
    why = Reason.ConfigurationMissing if NOT_FOUND.search(text) else Reason.VolumeUnavailable
    return Trouble(reason=why, message=text)


def _ended(end: Object, last: NodeSeen | None) -> Trouble | None:
    """Why a container ended: what the kubelet knows, and the node's last words."""
    code, kubelets = end.get("exitCode"), text_at(end, "reason")
    if code == 0:
        return None
    said = f"exit code {whole(code)}" + (f" ({kubelets})" if kubelets not in ("", "Error") else "")
    if kubelets in RUNTIME_REASONS:
        return Trouble(reason=Reason.StartFailed, message=printable(end.get("message")) or said)
    why = Reason.OutOfMemory if kubelets == "OOMKilled" else EXIT_REASONS.get(whole(code))
    if why is None:
        why = Reason.Killed if whole(code) > 128 else Reason.NodeError
    words = last.error if last else ""
    return Trouble(reason=why, message=printable(f"{words} ({said})" if words else said))


def final(exit_code: int | None) -> bool:
    """Whether a node that ended so is never started again."""
    return exit_code in FINAL_CODES


def _condition(status: Object, kind: str) -> Object:
    return next((each for each in items(status, "conditions") if each.get("type") == kind), {})
