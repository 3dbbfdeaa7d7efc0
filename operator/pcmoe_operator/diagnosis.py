"""Why a pod is pending, starts again, dies or can't be made: a word for it, and the words of whoever found it. Pure.

By whoever knows best: who takes the pod away, the scheduler, the kubelet, events, the node's own last words.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from pcmoe_operator.answers import NodeSeen, items, part, printable, text_at, whole
from pcmoe_operator.objects.jobs import FINAL_CODES
from pcmoe_operator.objects.names import Object
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Trouble:
    """What is wrong with a pod: a word, and a sentence in the words of whoever found it."""

    reason: Reason
    message: str = ""


def refusal(event: Object | None) -> Trouble | None:
    """Why a Job's pod can't be made, by the newest event about that."""
    if event is None or event.get("reason") != "FailedCreate":
        return None
    text = printable(event.get("message") or event.get("note"))
    reason = next((why for pattern, why in REFUSALS if pattern.search(text)), Reason.AdmissionRefused)
    return Trouble(reason=reason, message=text)


def crash(raw: Object, end: Object, last: NodeSeen | None) -> Trouble | None:
    """Why a pod's container ended, if that was its own doing: nobody took it away, and no peer was lost."""
    unknown = end.get("reason") == "ContainerStatusUnknown"
    if not end or unknown or "deletionTimestamp" in part(raw, "metadata"):
        return None
    if _taken_away(raw, part(raw, "status")):
        return None
    found = _ended(end, last)
    return None if found is None or found.reason in (Reason.PeerLost, Reason.Stopped) else found


def trouble(
    raw: Object, held: Object, end: Object, last: NodeSeen | None, told: Sequence[Object]
) -> Trouble | None:
    """What is wrong, by whoever knows best: who takes the pod away, the scheduler, the kubelet, the node itself."""
    status = part(raw, "status")
    phase, ready = status.get("phase"), condition_of(status, "Ready").get("status") == "True"
    if phase == "Succeeded":
        return None
    taken = _taken_away(raw, status)
    if taken is not None:
        return taken
    if phase == "Pending" and not part(raw, "spec").get("nodeName"):
        return _unscheduled(condition_of(status, "PodScheduled"))
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
    disrupted = condition_of(status, "DisruptionTarget")
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
    event = last_event("Pod", raw, (*STUCK_EVENTS, "Pulling", "Pulled"), told)
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


# Events


def last_event(kind: str, raw: Object, reasons: Sequence[str], told: Sequence[Object]) -> Object | None:
    """The newest event about an object, out of those sorted by time."""
    data = part(raw, "metadata")
    for event in reversed(told):
        about = part(event, "involvedObject") or part(event, "regarding")
        same = about.get("kind") == kind and about.get("name") == data.get("name")
        if same and event.get("reason") in reasons and about.get("uid", data.get("uid")) == data.get("uid"):
            return event
    return None


def told_at(event: Object) -> str:
    """When an event was told last, in either API's form; empty where it doesn't say."""
    series = text_at(event, "series", "lastObservedTime")
    times = (series, text_at(event, "lastTimestamp"), text_at(event, "deprecatedLastTimestamp"))
    return (
        next(filter(None, times), "")
        or text_at(event, "eventTime")
        or text_at(event, "metadata", "creationTimestamp")
    )


def first_told_at(event: Object) -> str:
    """When it was told first."""
    first = text_at(event, "firstTimestamp") or text_at(event, "deprecatedFirstTimestamp")
    return first or told_at(event)


def condition_of(status: Object, kind: str) -> Object:
    """A condition in a pod's status; empty if it has none of that kind."""
    return next((each for each in items(status, "conditions") if each.get("type") == kind), {})
