"""What a look at a consortium with too few machines writes, in which order, and what follows where it dies in it."""

import asyncio
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from tests.builders import manifest
from tests.unit.clustered import NAMESPACE, SETTINGS, here

from pcmoe_operator.cluster import MERGE, Cluster, ClusterError, Object
from pcmoe_operator.objects.names import of_attempt
from pcmoe_operator.reconcile import Ask, Reconciler
from pcmoe_operator.settings import Settings
from pcmoe_operator.world import World

NAME, NAMES = "hospitals", ("berlin", "lyon")
KEY = (NAMESPACE, NAME)
LATE = 121
"""Seconds after which a pod has waited long enough."""


class Killed(BaseException):
    """The process is gone."""


class Api:
    """Takes every write, tells the world of those to the status and to Jobs, and kills who makes the nth of these."""

    def __init__(self, kill_at: int = 0, sent: bool = False) -> None:
        self.world = World(lambda _key: None)
        self.writes: list[str] = []
        self.kill_at, self.sent = kill_at, sent

    async def __call__(
        self, method: str, path: str, query: Mapping[str, str], body: Object | None, content_type: str
    ) -> Object:
        if method == "GET":
            if path.endswith("/events"):
                return {"items": []}
            raise ClusterError(f"GET {path}", 404, "not found")
        assert body is not None
        job = "/jobs" in path
        if not job and not path.endswith("/status"):
            return body
        if content_type == MERGE:
            name = path.rpartition("/")[2]
            [there] = [each for each in self.world.children(KEY, "Job") if each["metadata"]["name"] == name]
            body = {**there, "spec": {**there["spec"], **body["spec"]}}
        self.writes.append(f"{body['metadata']['name']} {body['spec']['suspend']}" if job else "status")
        killed = len(self.writes) == self.kill_at
        if not killed or self.sent:
            self._take(body)
        if killed:
            raise Killed
        return body

    def _take(self, body: Object) -> None:
        if body["kind"] == "Job":
            self.world.saw("MODIFIED", {**body, "status": {}})
        else:
            self.world.saw("MODIFIED", {**self.world.consortia[KEY], "status": body["status"]})

    def pod(self, participant: str, status: Object, machine: str = "") -> None:
        """A participant's pod, as a watch tells of it."""
        job = of_attempt(NAME, participant, 1)
        labels = {"pcmoe.dev/consortium": NAME, "pcmoe.dev/participant": participant}
        labels |= {"pcmoe.dev/role": "node", "pcmoe.dev/attempt": "1"}
        metadata = {"name": f"{job}-x", "namespace": NAMESPACE, "labels": labels, "uid": participant}
        spec = {"nodeName": machine} if machine else {}
        self.world.saw("ADDED", {"kind": "Pod", "metadata": metadata, "spec": spec, "status": status})

    def gone(self, participant: str) -> None:
        """That pod has ended."""
        [pod] = [p for p in self.world.children(KEY, "Pod") if p["metadata"]["uid"] == participant]
        self.world.saw("DELETED", pod)

    def look(self, ask: Ask | None = None) -> None:
        """One look by an operator that has just started."""

        async def silent(_url: str) -> bytes | None:
            return None

        reconciler = Reconciler(Cluster(self), Settings.model_validate(SETTINGS), self.world, ask or silent)
        asyncio.run(reconciler.reconcile(KEY))

    @property
    def state(self) -> tuple[str, int, dict[str, bool]]:
        """What there is: the state of the release, its tries, and which Jobs are suspended."""
        release = self.world.consortia[KEY]["status"]["release"]
        jobs = {each["metadata"]["name"]: each["spec"]["suspend"] for each in self.world.children(KEY, "Job")}
        return release["state"], release["tries"], {name.split(".")[1]: jobs[name] for name in jobs}


def written(when: datetime) -> str:
    return when.strftime("%Y-%m-%dT%H:%M:%SZ")


def begun(**faults: Any) -> Api:
    """A consortium of which berlin has had a machine for a while, and lyon none."""
    api = Api()
    raw: dict[str, Any] = manifest(NAMES, {"metadata.name": NAME, "local": here(NAMES)})
    raw["metadata"] |= {"namespace": NAMESPACE, "uid": "1", "creationTimestamp": "2026-07-01T00:00:00Z"}
    api.world.saw("ADDED", raw)
    api.look()
    assert api.writes[0] == "status", "whoever decides says so before it is done"
    assert api.state == ("Released", 0, {"berlin": False, "lyon": False})
    then = datetime.now(UTC) - timedelta(seconds=LATE)
    status = api.world.consortia[KEY]["status"]
    status["release"]["since"] = written(then)
    api.pod("berlin", {"phase": "Running", "conditions": []}, "gpu-1")
    lacking = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes"}
    api.pod("lyon", {"phase": "Pending", "conditions": [{**lacking, "lastTransitionTime": written(then)}]})
    api.writes.clear()
    api.kill_at, api.sent = faults.get("kill_at", 0), faults.get("sent", False)
    return api


def test_that_machines_are_given_back_is_written_before_it_is_done() -> None:
    api = begun()
    api.look()
    assert api.writes == ["status", "hospitals.berlin.1 True"]
    assert api.state == ("GivenBack", 1, {"berlin": True, "lyon": False})
    api.look()
    assert len(api.writes) == 2, "nothing is written twice"


@pytest.mark.parametrize("sent", [False, True], ids=["before it is sent", "before its answer"])
@pytest.mark.parametrize("at", [1, 2])
def test_an_operator_killed_while_it_gives_back_leaves_what_the_next_one_finishes(
    at: int, sent: bool
) -> None:
    api = begun(kill_at=at, sent=sent)
    with pytest.raises(Killed):
        api.look()
    api.look()
    assert api.state == ("GivenBack", 1, {"berlin": True, "lyon": False})


@pytest.mark.parametrize("sent", [False, True], ids=["before it is sent", "before its answer"])
@pytest.mark.parametrize("at", [1, 2])
def test_an_operator_killed_while_it_tries_leaves_what_the_next_one_finishes(at: int, sent: bool) -> None:
    api = begun()
    api.look()
    status = api.world.consortia[KEY]["status"]
    status["release"]["since"] = written(datetime.now(UTC) - timedelta(seconds=60))
    api.gone("berlin")
    api.pod("lyon", {"phase": "Running", "conditions": []}, "gpu-2")
    api.writes.clear()
    api.kill_at, api.sent = at, sent
    with pytest.raises(Killed):
        api.look()
    api.look()
    assert api.state == ("Released", 1, {"berlin": False, "lyon": False})


def test_one_that_is_being_deleted_is_left_alone() -> None:
    api = begun()
    api.world.consortia[KEY]["metadata"]["deletionTimestamp"] = "2026-07-01T00:00:00Z"
    api.look()
    assert api.writes == []


def test_all_pods_are_asked_at_once_since_each_that_does_not_answer_takes_its_time() -> None:
    api = begun()
    for number, name in enumerate(NAMES, 1):
        api.pod(name, {"phase": "Running", "conditions": [], "podIP": f"10.0.0.{number}"}, "gpu-1")
    asked: set[str] = set()
    everybody = asyncio.Event()

    async def ask(url: str) -> bytes | None:
        asked.add(url)
        if len(asked) == len(NAMES):
            everybody.set()
        await asyncio.wait_for(everybody.wait(), 5.0)
        return None

    api.look(ask)
    assert asked == {f"http://10.0.0.{number}:9400/status" for number in (1, 2)}
