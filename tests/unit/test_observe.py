"""What Jobs, pods, events, the coordinator and nodes show, read out of objects as a 1.36 API server gives them."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from pcmoe_operator.answers import MAX_SENTENCE, CoordinatorSeen, NodeSeen, printable
from pcmoe_operator.observe import ParticipantSeen, PodSeen, observe
from pcmoe_operator.reasons import Reason

Raw = dict[str, Any]
NAME = "hospitals"


def labels(participant: str, attempt: int = 1, consortium: str = NAME) -> Raw:
    return {
        "pcmoe.dev/consortium": consortium,
        "pcmoe.dev/role": "node",
        "pcmoe.dev/participant": participant,
        "pcmoe.dev/attempt": str(attempt),
    }


def pod(
    status: Raw, participant: str = "berlin", attempt: int = 1, *, node: str = "", **metadata: Any
) -> Raw:
    """A pod of a participant's Job."""
    job = f"{NAME}.{participant}.{attempt}"
    return {
        "metadata": {
            "name": f"{job}-x7k2p",
            "uid": "pod-uid",
            "creationTimestamp": "2026-08-01T12:00:00Z",
            "labels": labels(participant, attempt),
            "ownerReferences": [{"kind": "Job", "name": job, "controller": True}],
            **metadata,
        },
        "spec": {"nodeName": node} if node else {},
        "status": {"phase": "Pending", **status},
    }


def job(status: Raw, participant: str = "berlin", attempt: int = 1, *, suspend: bool = False) -> Raw:
    name = f"{NAME}.{participant}.{attempt}"
    return {
        "metadata": {"name": name, "uid": "job-uid", "labels": labels(participant, attempt)},
        "spec": {"suspend": suspend},
        "status": status,
    }


def waiting(reason: str, message: str, **more: Any) -> Raw:
    container = {"name": "node", "state": {"waiting": {"reason": reason, "message": message}}, **more}
    return {"phase": "Pending", "containerStatuses": [container]}


def terminated(code: int, message: str = "", reason: str = "Error", phase: str = "Failed") -> Raw:
    end = {"exitCode": code, "reason": reason, "message": message, "finishedAt": "2026-08-01T12:05:00Z"}
    return {
        "phase": phase,
        "containerStatuses": [{"name": "node", "state": {"terminated": end}, "restartCount": 0}],
    }


def condition(kind: str, status: str, reason: str = "", message: str = "") -> Raw:
    return {"type": kind, "status": status, "reason": reason, "message": message}


def event(kind: str, name: str, reason: str, message: str, at: str = "2026-08-01T12:00:01Z") -> Raw:
    about = {"kind": kind, "name": name}
    return {"involvedObject": about, "reason": reason, "message": message, "lastTimestamp": at}


def seen(
    pods: Sequence[Raw] = (), jobs: Sequence[Raw] = (), events: Sequence[Raw] = (), attempt: int = 1
) -> ParticipantSeen:
    return observe(NAME, ["berlin"], attempt, jobs, pods, events).participants["berlin"]


def the_pod(raw: Raw, events: Sequence[Raw] = ()) -> PodSeen:
    found = seen([raw], events=events).pod
    assert found is not None
    return found


SCHEDULER = (
    "0/3 nodes are available: 3 Insufficient nvidia.com/gpu. no new claims to deallocate, preemption: "
    "0/3 nodes are available: 3 No preemption victims found for incoming pod."
)
UNBOUND = "0/3 nodes are available: pod has unbound immediate PersistentVolumeClaims. not found"
PULL = 'Back-off pulling image "registry.example/pcmoe-node:9": ErrImagePull: not found'
ROOT = "container has runAsNonRoot and image will run as root"
RUNC = "failed to create containerd task: exec: python: executable file not found in $PATH"
PREEMPTED = "default-scheduler: preempting to accommodate a higher priority pod"
EVICTED = "The node was low on resource: memory. Threshold quantity: 100Mi, available: 60Mi."
TAINT = "Taint manager: deleting due to NoExecute taint"


def unscheduled(reason: str, message: str) -> Raw:
    return pod({"conditions": [condition("PodScheduled", "False", reason, message)]})


def disrupted(reason: str, message: str, phase: str = "Running", **metadata: Any) -> Raw:
    return pod(
        {"phase": phase, "conditions": [condition("DisruptionTarget", "True", reason, message)]},
        node="gpu-1",
        **metadata,
    )


GOING: Raw = {"deletionTimestamp": "2026-08-01T12:10:00Z"}
TROUBLES: Mapping[str, tuple[Raw, Reason, str]] = {
    "no GPU is free": (unscheduled("Unschedulable", SCHEDULER), Reason.Unschedulable, SCHEDULER),
    "a claim is not bound": (unscheduled("Unschedulable", UNBOUND), Reason.VolumeUnbound, UNBOUND),
    "a queue holds it": (
        unscheduled("SchedulingGated", "Scheduling is blocked due to non-empty scheduling gates"),
        Reason.SchedulingGated,
        "Scheduling is blocked due to non-empty scheduling gates",
    ),
    "no such image": (
        pod(waiting("ImagePullBackOff", PULL), node="gpu-1"),
        Reason.ImageUnavailable,
        PULL,
    ),
    "no such secret": (
        pod(waiting("CreateContainerConfigError", 'secret "token" not found'), node="gpu-1"),
        Reason.ConfigurationMissing,
        'secret "token" not found',
    ),
    "an image that runs as root": (
        pod(waiting("CreateContainerConfigError", ROOT), node="gpu-1"),
        Reason.StartFailed,
        ROOT,
    ),
    "no such program": (
        pod(terminated(128, RUNC, "StartError"), node="gpu-1"),
        Reason.StartFailed,
        RUNC,
    ),
    "out of memory": (
        pod(terminated(137, "", "OOMKilled"), node="gpu-1"),
        Reason.OutOfMemory,
        "exit code 137 (OOMKilled)",
    ),
    "killed by somebody": (pod(terminated(137), node="gpu-1"), Reason.Killed, "exit code 137"),
    "a segmentation fault": (pod(terminated(139), node="gpu-1"), Reason.Killed, "exit code 139"),
    "an unknown exit code": (pod(terminated(3), node="gpu-1"), Reason.NodeError, "exit code 3"),
    "told to stop": (pod(terminated(143), node="gpu-1"), Reason.Stopped, "exit code 143"),
    "preempted": (
        disrupted("PreemptionByScheduler", PREEMPTED, **GOING),
        Reason.Preempted,
        PREEMPTED,
    ),
    "drained": (
        disrupted("EvictionByEvictionAPI", "Eviction API: evicting", **GOING),
        Reason.Evicted,
        "Eviction API: evicting",
    ),
    "evicted by the kubelet": (
        pod({"phase": "Failed", "reason": "Evicted", "message": EVICTED}, node="gpu-1"),
        Reason.Evicted,
        EVICTED,
    ),
    "on a dead machine": (disrupted("DeletionByTaintManager", TAINT, **GOING), Reason.NodeUnreachable, TAINT),
    "gone for a taint": (disrupted("DeletionByTaintManager", TAINT, "Failed"), Reason.Evicted, TAINT),
    "refused by the machine": (
        pod(
            {"phase": "Failed", "reason": "UnexpectedAdmissionError", "message": "Allocate failed"},
            node="gpu-1",
        ),
        Reason.MachineRefused,
        "Allocate failed",
    ),
    "deleted by hand": (pod({"phase": "Running"}, node="gpu-1", **GOING), Reason.Stopped, ""),
}


@pytest.mark.parametrize(("raw", "reason", "message"), TROUBLES.values(), ids=TROUBLES)
def test_a_pods_trouble_has_a_reason_and_the_words_of_whoever_found_it(
    raw: Raw, reason: Reason, message: str
) -> None:
    trouble = the_pod(raw).trouble
    assert trouble is not None
    assert (trouble.reason, trouble.message) == (reason, message)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (64, Reason.ConfigurationRefused),
        (65, Reason.DatasetUnreadable),
        (66, Reason.ResourceMissing),
        (67, Reason.IdentityRefused),
        (68, Reason.ProtocolBroken),
        (69, Reason.Diverged),
        (70, Reason.InternalError),
        (74, Reason.StorageFailed),
        (75, Reason.PeerLost),
    ],
)
def test_an_exit_code_is_a_reason_and_the_nodes_last_error_its_words(code: int, reason: Reason) -> None:
    left = json.dumps({"exitCode": 0, "error": "DataError: train.jsonl: record 12: no text", "committed": 7})
    found = the_pod(pod(terminated(code, left), node="gpu-1"))
    assert found.trouble is not None
    assert (found.trouble.reason, found.exit_code) == (reason, code)
    assert found.trouble.message == f"DataError: train.jsonl: record 12: no text (exit code {code})"
    assert found.last is not None
    assert found.last.committed == 7


@pytest.mark.parametrize(
    "left",
    [
        "",
        "no JSON",
        "[1, 2]",
        '"text"',
        "[" * 4000,
        '{"error": {"a": 1}, "committed": "20", "trainLoss": true}',
        '{"error": null, "committed": -1, "trainLoss": 1e999, "round": 1e3}',
        '{"committed": 99999999999999999999, "trainLoss": NaN, "heldOutLoss": Infinity}',
        '{"trainLoss": 1' + "0" * 400 + "}",
        '{"committed": 1' + "0" * 4000,
    ],
)
def test_a_hostile_termination_message_says_nothing(left: str) -> None:
    found = the_pod(pod(terminated(65, left), node="gpu-1"))
    assert found.trouble is not None
    assert found.trouble.message == "exit code 65"
    if found.last is not None:
        assert (found.last.committed, found.last.train_loss, found.last.held_out_loss) == (0, None, None)


def test_text_from_a_node_is_one_printable_line_of_limited_length() -> None:
    left = json.dumps({"error": "a\n\x1b[31mb\u202ec\ud800\x00" + "d" * 5000})
    trouble = the_pod(pod(terminated(64, left), node="gpu-1")).trouble
    assert trouble is not None
    assert trouble.message.startswith("a [31mb c d")
    assert trouble.message.isprintable()
    assert len(trouble.message) == MAX_SENTENCE


def test_a_container_that_started_again_shows_why_until_it_is_ready() -> None:
    last = {"terminated": {"exitCode": 137, "reason": "OOMKilled", "finishedAt": "2026-08-01T12:05:00Z"}}
    held = {"name": "node", "restartCount": 3, "state": {"running": {}}, "lastState": last}
    status = {"phase": "Running", "containerStatuses": [held]}
    found = the_pod(pod(status, node="gpu-1"))
    assert found.trouble is not None
    assert (found.trouble.reason, found.restarts, found.exit_code) == (Reason.OutOfMemory, 3, 137)
    ready = the_pod(pod({**status, "conditions": [condition("Ready", "True")]}, node="gpu-1"))
    assert (ready.trouble, ready.restarts, ready.ready) == (None, 3, True)


def test_a_container_between_two_starts_shows_why_it_ended() -> None:
    left = json.dumps({"error": "PeerLostError: lyon fell silent for 30 s"})
    last = {"terminated": {"exitCode": 75, "reason": "Error", "message": left}}
    status = waiting("CrashLoopBackOff", "back-off 10s restarting failed container", lastState=last)
    trouble = the_pod(pod({**status, "phase": "Running"}, node="gpu-1")).trouble
    assert trouble is not None
    assert trouble.reason is Reason.PeerLost
    assert trouble.message == "PeerLostError: lyon fell silent for 30 s (exit code 75)"


def test_a_pod_that_starts_or_runs_or_has_succeeded_has_no_trouble() -> None:
    for raw in (
        pod({}),
        pod(waiting("ContainerCreating", ""), node="gpu-1"),
        pod(
            {"phase": "Running", "containerStatuses": [{"name": "node", "state": {"running": {}}}]},
            node="gpu-1",
        ),
        pod(terminated(0, "", "Completed", "Succeeded"), node="gpu-1", **GOING),
    ):
        assert the_pod(raw).trouble is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            'MountVolume.SetUp failed for volume "certificates" : secret "hospitals.berlin.tls" not found',
            Reason.ConfigurationMissing,
        ),
        (
            'Multi-Attach error for volume "pvc-1" Volume is already used by pod(s) x',
            Reason.VolumeUnavailable,
        ),
    ],
)
def test_a_volume_that_can_not_be_mounted_is_told_by_the_pods_events(text: str, reason: Reason) -> None:
    raw = pod(waiting("ContainerCreating", ""), node="gpu-1")
    told = event("Pod", raw["metadata"]["name"], "FailedMount", text)
    trouble = the_pod(raw, [told]).trouble
    assert trouble is not None
    assert (trouble.reason, trouble.message) == (reason, text)


def test_a_pod_whose_sandbox_can_not_be_made_is_told_by_its_events_until_its_image_is_pulled() -> None:
    raw = pod(waiting("ContainerCreating", ""), node="gpu-1")
    name = raw["metadata"]["name"]
    told = event("Pod", name, "FailedCreatePodSandBox", "plugin type=cilium failed: no address left")
    trouble = the_pod(raw, [told]).trouble
    assert (
        trouble is not None and trouble.reason is Reason.StartFailed and "no address left" in trouble.message
    )
    pulling = event("Pod", name, "Pulling", "Pulling image", at="2026-08-01T12:00:02Z")
    assert the_pod(raw, [told, pulling]).trouble is None


def test_a_pod_says_since_when_it_has_a_machine_or_none() -> None:
    at = "2026-08-01T12:00:01Z"
    refused = {**condition("PodScheduled", "False", "Unschedulable", SCHEDULER), "lastTransitionTime": at}
    found = the_pod(pod({"conditions": [refused]}))
    assert (found.unplaced_since, found.placed_since) == (at, "")
    placed = {**condition("PodScheduled", "True"), "lastTransitionTime": at}
    found = the_pod(pod({"conditions": [placed]}, node="gpu-1"))
    assert (found.unplaced_since, found.placed_since, found.going) == ("", at, False)
    gone = the_pod(pod({"conditions": [refused]}, **GOING))
    assert (gone.unplaced_since, gone.going) == ("", True)


@pytest.mark.parametrize(
    ("raw", "crash"),
    [
        (pod(terminated(137, reason="OOMKilled"), node="gpu-1"), Reason.OutOfMemory),
        (pod(terminated(139), node="gpu-1"), Reason.Killed),
        (pod(terminated(1), node="gpu-1"), Reason.NodeError),
        (pod(terminated(128, "no such file", "StartError"), node="gpu-1"), Reason.StartFailed),
        (pod(terminated(0, reason="Completed", phase="Succeeded"), node="gpu-1"), None),
        (pod(terminated(75), node="gpu-1"), None),
        (pod(terminated(143), node="gpu-1"), None),
        (pod(terminated(137), node="gpu-1", **GOING), None),
        (pod(terminated(137, phase="Running"), node="gpu-1", **GOING), None),
        (pod(terminated(137, reason="ContainerStatusUnknown"), node="gpu-1"), None),
        (disrupted("PreemptionByScheduler", PREEMPTED, "Failed"), None),
    ],
    ids=lambda value: value.name if isinstance(value, Reason) else "",
)  # fmt: skip
def test_an_end_by_its_own_fault_is_a_crash_and_no_other_is(raw: Raw, crash: Reason | None) -> None:
    found = the_pod(raw).crash
    assert (found.reason if found else None) is crash


def test_a_crash_is_known_also_when_the_container_runs_again() -> None:
    last = {"terminated": {"exitCode": 137, "reason": "OOMKilled", "finishedAt": "2026-08-01T12:05:00Z"}}
    held = {"name": "node", "restartCount": 3, "state": {"running": {}}, "lastState": last}
    ready = [condition("Ready", "True")]
    found = the_pod(pod({"phase": "Running", "containerStatuses": [held], "conditions": ready}, node="gpu-1"))
    assert found.trouble is None and found.crash is not None
    assert found.ended_at == "2026-08-01T12:05:00Z"


def test_a_job_says_since_when_it_gets_no_pod() -> None:
    first = {"firstTimestamp": "2026-08-01T11:30:00Z"}
    told = [{**event("Job", f"{NAME}.berlin.1", "FailedCreate", QUOTA), **first}]
    for begun, since in (("2026-08-01T11:00:00Z", "2026-08-01T11:30:00Z"), ("2026-08-01T11:59:00Z",) * 2):
        found = seen(jobs=[job({"startTime": begun})], events=told).job
        assert found is not None and found.refused_since == since
    calm = seen(jobs=[job({"startTime": "2026-08-01T11:00:00Z"})]).job
    assert calm is not None and calm.refused_since == ""


QUOTA = (
    'Error creating: pods "hospitals.berlin.1-x7k2p" is forbidden: exceeded quota: gpus, requested: '
    "requests.nvidia.com/gpu=1, used: requests.nvidia.com/gpu=4, limited: requests.nvidia.com/gpu=4"
)
SECURITY = (
    'Error creating: pods "hospitals.berlin.1-x7k2p" is forbidden: violates PodSecurity "restricted:latest": '
    "seccompProfile"
)
WEBHOOK = 'Error creating: admission webhook "policy.example" denied the request: no'


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (QUOTA, Reason.QuotaExceeded),
        (SECURITY, Reason.PodSecurityRefused),
        (WEBHOOK, Reason.AdmissionRefused),
    ],
)
def test_a_pod_that_can_not_be_made_is_told_by_its_jobs_events(text: str, reason: Reason) -> None:
    old = event("Job", f"{NAME}.berlin.1", "FailedCreate", "Error creating: old", at="2026-08-01T11:00:00Z")
    new = {"regarding": {"kind": "Job", "name": f"{NAME}.berlin.1"}, "reason": "FailedCreate", "note": text}
    new["eventTime"] = "2026-08-01T12:00:00.000000Z"
    found = seen(
        jobs=[job({"active": 0})], events=[new, old, event("Job", "other", "FailedCreate", "no")]
    ).job
    assert found is not None
    assert found.refusal is not None
    assert (found.refusal.reason, found.refusal.message) == (reason, text)


def test_a_refusal_is_over_when_a_pod_was_made_after_it() -> None:
    name = f"{NAME}.berlin.1"
    told = [
        event("Job", name, "SuccessfulCreate", "Created pod", at="2026-08-01T12:00:09Z"),
        event("Job", name, "FailedCreate", QUOTA),
    ]
    found = seen(jobs=[job({})], events=told).job
    assert found is not None
    assert found.refusal is None


def test_a_job_that_failed_by_its_policy_says_with_which_exit_code() -> None:
    text = (
        "Container node for pod training/hospitals.berlin.1-x7k2p failed with exit code 65 matching FailJob rule "
        "at index 1"
    )
    status = {"failed": 1, "conditions": [condition("Failed", "True", "PodFailurePolicy", text)]}
    found = seen(jobs=[job(status, suspend=True)]).job
    assert found is not None
    assert found.failure is not None
    assert (found.exit_code, found.failed, found.suspended) == (65, 1, True)


def test_of_two_pods_of_a_job_the_newest_counts() -> None:
    old = pod({"phase": "Running"}, node="gpu-1", name="a", creationTimestamp="2026-08-01T11:00:00Z")
    new = pod({}, name="b", creationTimestamp="2026-08-01T12:00:00Z")
    same = pod({}, name="c", creationTimestamp="2026-08-01T12:00:00Z", **GOING)
    for order in ([old, new, same], [same, new, old]):
        found = seen(order).pod
        assert found is not None
        assert found.name == "b"


def test_older_attempts_and_other_peoples_objects_are_passed_over() -> None:
    copied = pod({"phase": "Running"}, ownerReferences=[{"kind": "ReplicaSet", "name": "web"}])
    other = pod({"phase": "Running"}, labels=labels("berlin", consortium="banks"))
    coordinator = pod({"phase": "Running"}, labels={**labels("berlin"), "pcmoe.dev/role": "coordinator"})
    nobody: Raw = {"metadata": {"name": "x", "labels": None}}
    pods = [copied, other, coordinator, nobody, {}, pod({"phase": "Running"}, attempt=1)]
    found = seen(pods, [job({}), {"metadata": None}, {}], [{}, {"involvedObject": None}], attempt=2)
    assert (found.pod, found.job) == (None, None)


def test_a_trimmed_pod_is_read_as_far_as_it_goes() -> None:
    found = the_pod({"metadata": {"name": "p", "labels": labels("berlin")}})
    assert (found.phase, found.node, found.ready, found.restarts, found.last) == (
        "Unknown",
        "",
        False,
        0,
        None,
    )
    odd = pod(
        {"conditions": "x", "containerStatuses": [None, {"name": "node", "state": "y", "restartCount": "z"}]}
    )
    assert the_pod(odd).restarts == 0


def test_the_coordinators_status_is_read_field_by_field() -> None:
    members = [
        {"name": "berlin", "connected": True, "phase": "TRAINING"},
        {"name": "x" * 99, "connected": "yes"},
        7,
    ]
    page = {
        "state": "FORMING",
        "view": 0,
        "round": 7,
        "reason": "lost\nlyon",
        "error": None,
        "members": members * 99,
    }
    found = CoordinatorSeen.parse(json.dumps(page).encode())
    assert found is not None
    assert (found.state, found.round, found.reason, found.error) == ("FORMING", 7, "lost lyon", "")
    assert len(found.members) == 64
    assert len(found.members[1].name) == 28
    assert [member.connected for member in found.members[:2]] == [True, False]


@pytest.mark.parametrize("answer", [b"", b"\xff\xfe", b"null", b"[]", b"{", b'{"a":' * 20_000])
def test_an_answer_that_is_no_status_is_none(answer: bytes) -> None:
    assert NodeSeen.parse(answer) is None
    assert CoordinatorSeen.parse(answer) is None


def test_printable_shortens_with_an_ellipsis() -> None:
    assert printable("abcdef", 4) == "abc…"
    assert printable(7) == ""


def test_every_reason_says_what_it_means() -> None:
    for reason in Reason:
        assert reason.name[0].isupper()
        assert reason.__doc__ is not None
        assert reason.__doc__.endswith(".")
        assert not reason.meaning.endswith(".")
