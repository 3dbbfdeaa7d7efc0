"""The pod that reads a participant's journal from its checkpoint volume once nobody else can. Pure.

It is made of what the participant's Job says: the same image, volume and group. It has no rights in the cluster, keeps
to the restricted level of Pod Security, writes nothing, has a deadline, and goes with its consortium at the latest.
"""

from collections.abc import Mapping
from typing import Any

from pcmoe_operator.answers import Object, items, part, printable, text_at
from pcmoe_operator.constants import GROUP
from pcmoe_operator.errors import UsageError
from pcmoe_operator.objects.configs import STATE
from pcmoe_operator.objects.jobs import CONTAINER
from pcmoe_operator.objects.names import Owner

READER = f"{GROUP}/report"
"""Label of such pods. They have none by which the operator, Services or policies choose pods."""
VOLUME = "state"
COMMAND = ("python", "-m", "pcmoe_node.journal_print", str(STATE / "log"))
DEADLINE_SECONDS = 300
"""After so long the kubelet ends it, whatever became of whoever made it."""
RESOURCES = {"cpu": "250m", "memory": "256Mi"}
"""Requests and limits: a quota may ask for both."""
PLACED = ("nodeSelector", "tolerations")
"""Of the Job's pods, so that the reader may go where its volume and image are."""


def reading_pod(owner: Owner, participant: str, job: Object, name: str, node: str = "") -> Object:
    """A pod that prints a participant's journal; on `node`, where another pod has the volume.

    Raises `UsageError` if the Job names no image or no claim.
    """
    spec = part(job, "spec", "template", "spec")
    container = _container(spec)
    claim = _claim(spec)
    reference = {key: value for key, value in owner.reference.items() if key != "controller"}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": owner.namespace,
            "labels": {
                "app.kubernetes.io/name": "pcmoe",
                "app.kubernetes.io/managed-by": "pcmoe-report",
                READER: owner.name,
            },
            "ownerReferences": [reference],
        },
        "spec": {
            **{key: spec[key] for key in (*PLACED, "imagePullSecrets") if key in spec},
            **(_on(node) if node else {}),
            "restartPolicy": "Never",
            "activeDeadlineSeconds": DEADLINE_SECONDS,
            "terminationGracePeriodSeconds": 1,
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "securityContext": _security(spec),
            "containers": [
                {
                    "name": CONTAINER,
                    "image": container["image"],
                    "imagePullPolicy": container.get("imagePullPolicy", "IfNotPresent"),
                    "command": list(COMMAND),
                    "resources": {"requests": dict(RESOURCES), "limits": dict(RESOURCES)},
                    "securityContext": {
                        "allowPrivilegeEscalation": False,
                        "readOnlyRootFilesystem": True,
                        "capabilities": {"drop": ["ALL"]},
                    },
                    "volumeMounts": [{"name": VOLUME, "mountPath": str(STATE), "readOnly": True}],
                }
            ],
            # Read-only in the mount alone: a volume attached read-only can't be where a node has it to write, and some
            # can't be mounted after a crash.
            "volumes": [{"name": VOLUME, "persistentVolumeClaim": {"claimName": claim}}],
        },
    }


def _container(spec: Object) -> Object:
    found = next((each for each in items(spec, "containers") if each.get("name") == CONTAINER), {})
    if not text_at(found, "image"):
        raise UsageError("its Job names no image")
    return found


def _claim(spec: Object) -> str:
    found = next((each for each in items(spec, "volumes") if each.get("name") == VOLUME), {})
    claim = text_at(found, "persistentVolumeClaim", "claimName")
    if not claim:
        raise UsageError("its Job names no claim of a checkpoint volume")
    return claim


def _security(spec: Object) -> Object:
    """As the Job's pods have it: who may read the volume."""
    group = {key: value for key, value in part(spec, "securityContext").items() if key.startswith("fsGroup")}
    return {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}, **group}


def _on(node: str) -> Object:
    """A volume that is attached to one machine can be read there only."""
    here = {"matchFields": [{"key": "metadata.name", "operator": "In", "values": [node]}]}
    wanted = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [here]}}
    return {"affinity": {"nodeAffinity": wanted}}


def end_of(pod: Object) -> int | None:
    """Its container's exit code once the pod has ended; -1 if it ended without one."""
    if text_at(pod, "status", "phase") not in ("Succeeded", "Failed"):
        return None
    for status in items(part(pod, "status"), "containerStatuses"):
        code = part(status, "state", "terminated").get("exitCode")
        if isinstance(code, int):
            return code
    return -1


def waits_for(pod: Object) -> str:
    """Why a pod has not ended yet, in the words of the kubelet or the scheduler; empty if nobody says."""
    status = part(pod, "status")
    for container in items(status, "containerStatuses"):
        waiting = part(container, "state", "waiting")
        if waiting:
            return _words(waiting)
    for condition in items(status, "conditions"):
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            return _words(condition)
    return _words(status)


def _words(said: Mapping[str, Any]) -> str:
    return ": ".join(word for key in ("reason", "message") if (word := printable(said.get(key), 300)))
