"""What the operator keeps of what watches tell: what it looks at, and no more."""

import json
from typing import Any

from pcmoe_operator.constants import KIND
from pcmoe_operator.objects.names import of_attempt
from pcmoe_operator.observe import observe
from pcmoe_operator.world import trimmed

LABELS = {
    "pcmoe.dev/consortium": "hospitals",
    "pcmoe.dev/role": "node",
    "pcmoe.dev/participant": "berlin",
    "pcmoe.dev/attempt": "1",
}
JOB = of_attempt("hospitals", "berlin", 1)
END = {"exitCode": 75, "reason": "Error", "message": "{}", "finishedAt": "2026-08-01T12:05:00Z"}


def pod() -> dict[str, Any]:
    """One as a kubelet tells of it, that was started again and is now evicted."""
    container = {
        "name": "node",
        "restartCount": 2,
        "state": {"running": {}},
        "lastState": {"terminated": END},
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": f"{JOB}-x", "namespace": "training", "uid": "u", "labels": LABELS, "annotations": {"a": "b"},
            "ownerReferences": [{"kind": "Job", "name": JOB}], "managedFields": [{"manager": "kubelet"}],
            "creationTimestamp": "2026-08-01T12:00:00Z",
        },
        "spec": {"nodeName": "gpu-1", "containers": [{"image": "node"}]},
        "status": {
            "phase": "Running",
            "message": "low on memory",
            "podIP": "10.0.0.1",
            "podIPs": [{"ip": "10.0.0.1"}],
            "conditions": [
                {"type": "PodScheduled", "status": "True", "lastTransitionTime": "2026-08-01T12:00:00Z"},
                {"type": "DisruptionTarget", "status": "True", "reason": "TerminationByKubelet"},
            ],
            "containerStatuses": [container | {"image": "node", "imageID": "x" * 100, "volumeMounts": [{}]}],
        },
    }  # fmt: skip


def job() -> dict[str, Any]:
    """One that has failed for good."""
    failed = {"type": "Failed", "status": "True", "reason": "PodFailurePolicy", "message": "exit code 66"}
    return {
        "metadata": {"name": JOB, "namespace": "training", "uid": "j", "labels": LABELS},
        "spec": {"suspend": False, "template": {"spec": {}}},
        "status": {
            "startTime": "2026-08-01T12:00:00Z", "active": 1, "failed": 2, "succeeded": 0,
            "uncountedTerminatedPods": {}, "conditions": [failed],
        },
    }  # fmt: skip


def test_nothing_is_cut_off_that_is_looked_at() -> None:
    whole = observe("hospitals", ["berlin"], 1, [job()], [pod()])
    assert observe("hospitals", ["berlin"], 1, [trimmed(job(), "Job")], [trimmed(pod(), "Pod")]) == whole
    seen = whole.participants["berlin"]
    assert seen.pod is not None and seen.pod.trouble is not None and seen.pod.last is not None
    assert trimmed(pod(), "Pod")["status"]["podIP"] == "10.0.0.1"


def test_what_nobody_looks_at_is_not_kept() -> None:
    kept = json.dumps(trimmed(pod(), "Pod"))
    for word in ("managedFields", "annotations", "imageID", "volumeMounts", "podIPs", 'containers"'):
        assert word not in kept
    manifest = {"metadata": {"name": "a", "annotations": {"x": "y"}, "managedFields": []}, "spec": {"a": 1}}
    assert trimmed(manifest, KIND) == {"metadata": {"name": "a"}, "spec": {"a": 1}}


def test_words_that_many_objects_have_are_in_memory_once() -> None:
    one, other = (trimmed(json.loads(json.dumps(pod())), "Pod") for _ in range(2))
    for key, value in one["metadata"]["labels"].items():
        assert next(each for each in other["metadata"]["labels"] if each == key) is key
        assert other["metadata"]["labels"][key] is value
