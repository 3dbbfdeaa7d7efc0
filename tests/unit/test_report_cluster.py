"""The report from a cluster, below the API server: what is asked, which pod is made, what is told when that fails."""

import asyncio
import io
import json
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from tests.builders import consortium
from tests.unit.clustered import NAMESPACE, inputs
from tests.unit.fake_node import round_record

from pcmoe_node.journal_print import print_journal
from pcmoe_operator.answers import Object
from pcmoe_operator.errors import UsageError
from pcmoe_operator.objects.jobs import job
from pcmoe_operator.objects.names import Owner
from pcmoe_operator.remote.access import Access
from pcmoe_operator.remote.report import gather
from pcmoe_operator.remote.report_journals import Journals, Listing
from pcmoe_operator.remote.report_pod import DEADLINE_SECONDS, READER, end_of, reading_pod, waits_for
from pcmoe_operator.remote.report_status import held_of, images_of, participants_here, standing_of
from pcmoe_operator.remote.session import AccessError, Asked, RefusedError
from pcmoe_operator.report import page
from pcmoe_operator.report.figures import figures_of
from pcmoe_operator.report.timeline import CONSORTIUM, of_conditions, of_events, of_pods

NAMES = ("berlin", "lyon")
OWNER = Owner(name="hospitals", namespace=NAMESPACE, uid="0-1-2")
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"
NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
Answer = Callable[[Asked], bytes]


def jobs(names: tuple[str, ...] = NAMES, **local: Any) -> list[Object]:
    """The Jobs of a consortium, as the operator makes them."""
    given = inputs(names, **local)
    return [job(given, name, suspend=False) for name in names]


def raw(status: Mapping[str, Any] | None = None, names: tuple[str, ...] = NAMES) -> Object:
    """The consortium's object."""
    made = inputs(names).consortium.model_dump(mode="json", by_alias=True, exclude_none=True)
    metadata = {"name": "hospitals", "namespace": NAMESPACE, "uid": "0-1-2"}
    return {**made, "metadata": metadata, "status": dict(status or {})}


def pod(name: str, phase: str = "Running", **status: Any) -> Object:
    """A participant's pod."""
    return {
        "metadata": {"name": f"hospitals.{name}.1-x", "labels": {"pcmoe.dev/participant": name}},
        "spec": {
            "nodeName": "machine-7",
            "containers": [
                {
                    "name": "node",
                    "ports": [{"name": "status", "containerPort": 9401}],
                    "resources": {"limits": {"nvidia.com/gpu": "1"}},
                }
            ],
        },
        "status": {"phase": phase, **status},
    }


def journal(folder: Path) -> bytes:
    """The log of a reading pod."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rounds.jsonl").write_text(json.dumps(round_record(0, ["lyon"])) + "\n")
    to = io.StringIO()
    print_journal(folder, to)
    return to.getvalue().encode()


class Played(Access):
    """Whatever is asked of the cluster is answered by a function; all requests are kept."""

    def __init__(self, answer: Answer) -> None:
        self.namespace = NAMESPACE
        self.asked: list[Asked] = []
        self._answer_of = answer

    async def fetch(self, asked: Asked, seconds: float = 10.0, most: int | None = None) -> bytes:
        self.asked.append(asked)
        await asyncio.sleep(0)
        return self._answer_of(asked)

    def made(self) -> list[Object]:
        """Pods that were made."""
        return [each.body for each in self.asked if each.method == "POST" and each.body is not None]

    def deleted(self) -> list[str]:
        """Names of pods that were deleted."""
        return [each.path.rpartition("/")[2] for each in self.asked if each.method == "DELETE"]


def answering(log: bytes, *, phase: str = "Succeeded", code: int = 0, proxy: str = "refused") -> Answer:
    """A cluster whose reading pods end so and print that."""
    terminated = {"state": {"terminated": {"exitCode": code}}}
    ended = {"status": {"phase": phase, "containerStatuses": [terminated]}}

    def answer(asked: Asked) -> bytes:
        if "/proxy/" in asked.path:
            raise RefusedError(f"proxy {proxy}", 403)
        if asked.path.endswith("/log"):
            return log
        return json.dumps(ended).encode()

    return answer


def journals(played: Played, pods: list[Object] | None = None, **changes: Any) -> Journals:
    """The journals of two participants without pods that run."""
    told: list[str] = []
    return Journals(
        **{
            "access": played,
            "consortium": raw(),
            "jobs": Listing(found=jobs()),
            "pods": Listing(found=pods or []),
            "make_pods": True,
            "tell": told.append,
            "read_seconds": 0.2,
            **changes,
        }
    )


# The pod


def test_the_reading_pod_mounts_the_volume_read_only_and_has_no_rights() -> None:
    [made] = jobs(("lyon",))
    body = reading_pod(OWNER, "lyon", made, "a-name")
    spec, [held] = body["spec"], body["spec"]["containers"]
    assert spec["volumes"] == [{"name": "state", "persistentVolumeClaim": {"claimName": "hospitals.lyon"}}]
    assert held["volumeMounts"] == [{"name": "state", "mountPath": "/var/lib/pcmoe", "readOnly": True}]
    assert held["command"] == ["python", "-m", "pcmoe_node.journal_print", "/var/lib/pcmoe/log"]
    assert held["image"] == made["spec"]["template"]["spec"]["containers"][0]["image"]
    assert spec["automountServiceAccountToken"] is False
    assert spec["activeDeadlineSeconds"] == DEADLINE_SECONDS
    assert spec["securityContext"]["fsGroup"] == 65532
    assert held["resources"]["requests"] == held["resources"]["limits"]
    assert "nvidia.com/gpu" not in held["resources"]["limits"]
    assert "affinity" not in spec


def test_the_reading_pod_goes_with_its_consortium_and_is_nobody_elses() -> None:
    body = reading_pod(OWNER, "lyon", jobs()[1], "a-name")
    assert body["metadata"]["ownerReferences"] == [
        {
            "apiVersion": "pcmoe.dev/v1alpha1",
            "kind": "PCMoEConsortium",
            "name": "hospitals",
            "uid": "0-1-2",
            "blockOwnerDeletion": False,
        }
    ]
    chosen_by_others = {"pcmoe.dev/consortium", "pcmoe.dev/role", "pcmoe.dev/participant"}
    assert not chosen_by_others & set(body["metadata"]["labels"])
    assert body["metadata"]["labels"][READER] == "hospitals"


def test_the_reading_pod_takes_the_claim_image_and_place_that_the_manifest_says() -> None:
    claim = {"persistentVolumeClaim": {"claimName": "by-hand"}}
    changes = {
        "volumes": {"dataset": {"persistentVolumeClaim": {"claimName": "records"}}, "checkpoint": claim},
        "template": {
            "image": "registry.example/mine:1",
            "imagePullSecrets": [{"name": "registry"}],
            "nodeSelector": {"kind": "gpu"},
            "tolerations": [{"key": "gpu", "operator": "Exists"}],
        },
    }
    spec = reading_pod(OWNER, "lyon", jobs(lyon=changes)[1], "a-name", "machine-7")["spec"]
    assert spec["volumes"][0]["persistentVolumeClaim"]["claimName"] == "by-hand"
    assert spec["containers"][0]["image"] == "registry.example/mine:1"
    assert spec["imagePullSecrets"] == [{"name": "registry"}]
    assert (spec["nodeSelector"], spec["tolerations"][0]["key"]) == ({"kind": "gpu"}, "gpu")
    [term] = spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"][
        "nodeSelectorTerms"
    ]
    assert term["matchFields"] == [{"key": "metadata.name", "operator": "In", "values": ["machine-7"]}]


@pytest.mark.parametrize("missing", ["containers", "volumes"])
def test_a_job_that_names_no_image_or_claim_is_told(missing: str) -> None:
    made = jobs()[1]
    del made["spec"]["template"]["spec"][missing]
    with pytest.raises(UsageError, match="its Job names no"):
        reading_pod(OWNER, "lyon", made, "a-name")


def test_how_a_reading_pod_ended_and_what_it_waits_for() -> None:
    assert end_of(pod("lyon", "Pending")) is None
    assert end_of(pod("lyon", "Failed")) == -1
    pulled = [{"state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such\nimage"}}}]
    assert waits_for(pod("lyon", "Pending", containerStatuses=pulled)) == "ImagePullBackOff: no such image"
    unplaced = [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/4"}]
    assert waits_for(pod("lyon", "Pending", conditions=unplaced)) == "Unschedulable: 0/4"
    assert waits_for(pod("lyon", "Failed", reason="DeadlineExceeded")) == "DeadlineExceeded"


# Journals


def test_a_running_pod_is_asked_at_its_own_port() -> None:
    answer = {"rounds": [round_record(0, [])], "events": []}
    played = Played(lambda _asked: json.dumps(answer).encode())
    parts, missing = asyncio.run(journals(played, [pod("berlin")]).all_of(("berlin",)))
    assert (list(parts), missing) == (["berlin"], {})
    assert [each.path for each in played.asked] == [f"{PODS}/hospitals.berlin.1-x:9401/proxy/report"]


def test_a_volume_is_read_by_a_pod_that_is_deleted_after(tmp_path: Path) -> None:
    played = Played(answering(journal(tmp_path)))
    parts, missing = asyncio.run(journals(played, [pod("lyon", "Succeeded")]).all_of(NAMES))
    assert (sorted(parts), missing) == (["berlin", "lyon"], {})
    names = [each["metadata"]["name"] for each in played.made()]
    assert sorted(played.deleted()) == sorted(names) and len(names) == 2


def test_a_pod_that_doesnt_tell_is_passed_by_where_its_volume_is(tmp_path: Path) -> None:
    played = Played(answering(journal(tmp_path)))
    parts, _ = asyncio.run(journals(played, [pod("lyon")]).all_of(("lyon",)))
    assert len(parts["lyon"].rounds) == 1
    assert "machine-7" in json.dumps(played.made()[0]["spec"]["affinity"])


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (
            answering(b"/venv/bin/python: No module named x", phase="Failed", code=1),
            "ended with 1: .*No module",
        ),
        (answering(b"", phase="Failed", code=1), "ended with 1: it said nothing"),
        (answering(b"", phase="Pending"), "didn't end within 0.2 s: nobody says why"),
        (answering(b"hello"), "what its pod printed is no journal"),
    ],
)
def test_a_reading_pod_that_fails_is_told_and_deleted(answer: Answer, told: str) -> None:
    played = Played(answer)
    parts, missing = asyncio.run(journals(played).all_of(("lyon",)))
    assert parts == {}
    assert played.deleted() == [each["metadata"]["name"] for each in played.made()]
    assert re.search(told, missing["lyon"])


def test_a_refused_pod_is_told_with_both_reasons() -> None:
    def answer(asked: Asked) -> bytes:
        if asked.method == "POST":
            raise RefusedError("exceeded quota: count/pods", 403)
        if asked.method == "DELETE":
            return b"{}"
        raise AccessError("pods/proxy: address not allowed", 403)

    _, missing = asyncio.run(journals(Played(answer), [pod("lyon")]).all_of(("lyon",)))
    assert "address not allowed" in missing["lyon"] and "exceeded quota" in missing["lyon"]


def test_no_pod_is_made_where_none_may_be() -> None:
    played = Played(answering(b""))
    _, missing = asyncio.run(journals(played, make_pods=False).all_of(NAMES))
    assert set(missing) == set(NAMES) and "no pod may be made" in missing["lyon"]
    assert played.asked == []


def test_a_participant_without_a_job_is_told_with_the_refusal_if_there_was_one() -> None:
    played = Played(answering(b""))
    nothing = journals(played, jobs=Listing(found=[]))
    assert "it has no Job" in asyncio.run(nothing.all_of(("lyon",)))[1]["lyon"]
    refused = journals(played, jobs=Listing(found=[], refused="RBAC refuses jobs"))
    assert asyncio.run(refused.all_of(("lyon",)))[1] == {"lyon": "RBAC refuses jobs"}


def test_a_wrong_answer_of_one_leaves_the_others_in_the_report() -> None:
    def answer(asked: Asked) -> bytes:
        wrong = {"rounds": [{"round": -1}], "events": []}
        good = {"rounds": [round_record(0, [])], "events": []}
        return json.dumps(wrong if "lyon" in asked.path else good).encode()

    found, missing = asyncio.run(journals(Played(answer), [pod("berlin"), pod("lyon")]).all_of(NAMES))
    assert list(found) == ["berlin"]
    assert missing["lyon"] == "rounds: line 1 is no round: round must be a whole number from 0 on"


def test_whoever_is_interrupted_leaves_no_pod() -> None:
    played = Played(answering(b"", phase="Pending"))

    async def interrupted() -> None:
        task = asyncio.create_task(journals(played, read_seconds=60.0).all_of(NAMES))
        while len(played.made()) < 2:
            await asyncio.sleep(0)  # until both are made; the test's own timeout is the deadline
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(interrupted())
    assert sorted(played.deleted()) == sorted(each["metadata"]["name"] for each in played.made())


# The whole


def test_a_report_is_made_of_what_is_there_and_says_what_isnt() -> None:
    events = [
        {
            "metadata": {"name": "e"},
            "reason": "Accepted",
            "message": "<b>all rules</b>",
            "type": "Normal",
            "lastTimestamp": "2026-11-24T10:00:00Z",
        }
    ]
    status = {
        "state": "Failed",
        "participants": [{"name": "berlin"}, {"name": "lyon"}],
        "conditions": [
            {
                "type": "Failed",
                "status": "True",
                "reason": "OutOfMemory",
                "message": "lyon: <i>no memory</i>",
                "lastTransitionTime": "2026-11-24T11:00:00Z",
            }
        ],
    }
    names = ("berlin", "lyon", "oslo")

    def answer(asked: Asked) -> bytes:
        if asked.path.endswith("/pcmoeconsortia/hospitals"):
            return json.dumps(raw(status, names)).encode()
        if "/proxy/" in asked.path:
            return json.dumps({"rounds": [round_record(0, ["lyon", "oslo"])], "events": []}).encode()
        if asked.path.endswith("/events"):
            return json.dumps({"items": events}).encode()
        if asked.path.endswith("/pods") and asked.method == "GET":
            return json.dumps({"items": [pod("berlin", startTime="2026-11-24T11:00:00Z")]}).encode()
        if asked.path.endswith("/jobs"):
            raise RefusedError("RBAC refuses jobs", 403)
        raise AccessError("unexpected", 500)

    facts = asyncio.run(gather(Played(answer), "hospitals", make_pods=True, tell=lambda _: None))
    found = figures_of(facts)
    assert found["participants"] == list(names)
    assert (found["leftOut"], found["elsewhere"]) == ({"lyon": "RBAC refuses jobs"}, ["oslo"])
    assert list(found["loss"]) == ["berlin"]
    assert found["traffic"]["bytesSent"]["lyon"] == {"berlin": 4096 * 90, "oslo": None}
    assert found["traffic"]["replyMilliseconds"]["lyon"] == {"berlin": None, "oslo": None}
    assert found["traffic"]["bytesPerTrainedToken"] is None
    assert found["standing"]["because"] == "lyon: <i>no memory</i>"
    assert [(e["who"], e["kind"]) for e in found["events"]] == [
        (CONSORTIUM, "Accepted"),
        (CONSORTIUM, "OutOfMemory"),
    ]
    text = page.page_of(found)
    assert "<b>lyon</b>: RBAC refuses jobs" in text and "<b>oslo</b>: runs in another cluster" in text
    assert "<i>no memory" not in text and "<b>all rules" not in text


def test_who_runs_here_is_what_the_operator_says_or_else_the_manifest() -> None:
    given = consortium(3)
    assert participants_here(given, {"status": {"participants": [{"name": "oslo"}, {"name": "x"}]}}) == (
        "oslo",
    )
    assert participants_here(given, {}) == given.names


def test_gpus_are_held_from_a_pods_start_to_its_end_or_until_now() -> None:
    given = inputs(2, lyon={"gpus": 1}).consortium
    ended = [{"state": {"terminated": {"finishedAt": "2026-11-24T10:30:00Z"}}}]
    pods = [
        pod("lyon", "Failed", startTime="2026-11-24T10:00:00Z", containerStatuses=ended),
        pod("lyon", startTime="2026-11-24T11:00:00Z"),
        pod("lyon", "Pending"),
        pod("stranger", startTime="2026-11-24T11:00:00Z"),
    ]
    assert held_of(given, pods, NOW) == {"lyon": 1.5 * 3600}


def test_images_are_one_line_where_all_have_the_same() -> None:
    same = images_of(jobs(), NAMES)
    assert same == {"node image": "registry.example/pcmoe-node@sha256:1"}
    changed = jobs(lyon={"template": {"image": "mine:1"}})
    assert images_of(changed, NAMES)["image of lyon"] == "mine:1"
    assert images_of([], NAMES) == {}


def test_how_a_run_stands_is_told_in_the_operators_words() -> None:
    status = {"state": "Completed", "round": "4/4", "conditions": [
        {"type": "Completed", "status": "True", "message": "m", "lastTransitionTime": "2026-11-24T10:00:00Z"},
    ]}  # fmt: skip
    told = standing_of({"metadata": {"creationTimestamp": "2026-11-24T09:00:00Z"}, "status": status})
    assert told == {
        "state": "Completed",
        "committed rounds": "4/4",
        "made": "2026-11-24 09:00:00 UTC",
        "ended": "2026-11-24 10:00:00 UTC",
    }


# What happened


def test_events_of_both_apis_have_a_time_a_count_and_a_weight() -> None:
    new = {
        "eventTime": "2026-11-24T10:00:00.123456Z",
        "series": {"count": 3, "lastObservedTime": "2026-11-24T11:00:00Z"},
        "reason": "PeerLost",
        "note": "a\x1b[31m note",
        "type": "Warning",
    }
    old = {"lastTimestamp": "2026-11-24T09:00:00Z", "count": 2, "reason": "Accepted", "message": "fine"}
    first, second = of_events([new, old, {"reason": "Timeless"}])
    assert (first.kind, first.message, first.count, first.warning) == ("PeerLost", "a [31m note", 3, True)
    assert first.time == datetime(2026, 11, 24, 11, tzinfo=UTC).timestamp()
    assert (second.message, second.count, second.warning) == ("fine", 2, False)


def test_conditions_tell_what_events_have_forgotten() -> None:
    def condition(kind: str, reason: str, status: str = "True") -> Object:
        at = "2026-11-24T10:00:00Z"
        return {"type": kind, "status": status, "reason": reason, "message": reason, "lastTransitionTime": at}

    conditions = [
        condition("Accepted", "Accepted"),
        condition("Completed", "LastRoundCommitted"),
        condition("Ready", "InView"),
        condition("Failed", "NoFailure", "False"),
    ]
    told = of_events([{"reason": "Accepted", "lastTimestamp": "2026-11-24T10:00:00Z"}])
    assert [each.kind for each in of_conditions({"conditions": conditions}, told)] == ["LastRoundCommitted"]


def test_containers_that_ended_badly_are_told_of_their_participant() -> None:
    ended = {"terminated": {"exitCode": 137, "finishedAt": "2026-11-24T10:00:00Z"}}
    well = {"terminated": {"exitCode": 0, "finishedAt": "2026-11-24T10:00:00Z"}}
    again = pod("lyon", containerStatuses=[{"restartCount": 2, "lastState": ended, "state": {"running": {}}}])
    done = pod("berlin", "Succeeded", containerStatuses=[{"state": well}])
    [found] = of_pods([again, done, {"metadata": {}}])
    assert (found.who, found.kind, found.warning) == ("lyon", "Restarted", True)
    assert found.message == "exit code 137; restarts of this pod so far: 2"
