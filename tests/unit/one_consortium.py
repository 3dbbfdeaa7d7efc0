"""An API server with one consortium in it, and the controllers behind it, for tests of what the operator does in turn.

It takes every write, tells the operator's world of it, and kills who makes the nth call. Real API servers have the
integration tests; here every change of a consortium can be broken off at every call in a second.
"""

import asyncio
import copy
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from tests.builders import manifest
from tests.unit.clustered import NAMESPACE, SETTINGS, here

from pcmoe_operator.cluster import APPLY, MERGE, Cluster, ClusterError, Object
from pcmoe_operator.constants import KIND
from pcmoe_operator.objects.names import of_attempt
from pcmoe_operator.reconcile import Ask, Reconciler
from pcmoe_operator.settings import Settings
from pcmoe_operator.world import World

NAME, NAMES = "hospitals", ("berlin", "lyon")
KEY = (NAMESPACE, NAME)
OURS = f"/apis/pcmoe.dev/v1alpha1/namespaces/{NAMESPACE}/pcmoeconsortia/{NAME}"
JOBS = f"/apis/batch/v1/namespaces/{NAMESPACE}/jobs"
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"
REPLICASET = f"/apis/apps/v1/namespaces/{NAMESPACE}/replicasets/{NAME}.coordinator"
TOLD = (KIND, "Job", "Pod")


class Killed(BaseException):
    """The process is gone."""


class Api:
    """What there is, by its path. `kill_at`: the call that kills who makes it, of all calls or, unless `every`, of
    writes to the status and to Jobs; `sent`: only when it has been done.
    """

    def __init__(
        self,
        store: Mapping[str, Object] | None = None,
        kill_at: int = 0,
        sent: bool = False,
        every: bool = False,
    ) -> None:
        self.world = World(lambda _key: None)
        self.store: dict[str, Object] = {}
        self.calls: list[str] = []
        self.writes: list[str] = []
        self.refuses: set[str] = set()
        """Paths that nobody may change."""
        self.deaf = False
        """Whether Events can't be listed."""
        self.kill_at, self.sent, self.every = kill_at, sent, every
        for path, body in copy.deepcopy(dict(store or {})).items():
            self.put(path, body)

    async def __call__(
        self, method: str, path: str, query: Mapping[str, str], body: Any, content_type: str
    ) -> Object:
        self.calls.append(f"{method} {path}")
        if method != "GET" and ("/jobs" in path or path.endswith("/status")):
            self.writes.append("status" if path.endswith("/status") else _told_of_job(path, body))
            counted = len(self.writes)
        else:
            counted = 0
        killed = self.kill_at == (len(self.calls) if self.every else counted) and self.kill_at > 0
        if killed and not self.sent:
            raise Killed
        try:
            return copy.deepcopy(self._answer(method, path, body, content_type))
        finally:
            if killed:
                raise Killed

    def _answer(self, method: str, path: str, body: Any, content_type: str) -> Object:
        if method == "GET":
            if path.endswith("/events"):
                if self.deaf:
                    raise ClusterError(f"GET {path}", 504, "too many Events")
                return {"items": []}
            return self._found(method, path)
        if path in self.refuses:
            raise ClusterError(f"{method} {path}", 403, "a policy denies it")
        if path.endswith("/status"):
            return self._told(body)
        if method == "POST":
            path = f"{path}/{body['metadata']['name']}"
            if path in self.store:
                raise ClusterError(f"POST {path}", 409, "it already exists")
        elif content_type == MERGE:
            there = self._found(method, path)
            body = {**there, "spec": {**there["spec"], **body["spec"]}}
        else:
            assert content_type == APPLY
        return self.put(path, body)

    def _found(self, method: str, path: str) -> Object:
        if path not in self.store:
            raise ClusterError(f"{method} {path}", 404, "not found")
        return self.store[path]

    def _told(self, steps: list[Object]) -> Object:
        """The status of the consortium."""
        there = self._found("PATCH", OURS)
        if steps[0] != {"op": "test", "path": "/metadata/uid", "value": there["metadata"]["uid"]}:
            raise ClusterError(f"PATCH {OURS}", 422, "another uid")
        return self.put(OURS, {**there, "status": steps[1]["value"]})

    # What is there

    def put(self, path: str, body: Object) -> Object:
        """Something as it is from now on."""
        body = {"status": {}, **body}
        body["metadata"] = {"uid": path, **body["metadata"]}
        self.store[path] = body
        if body["kind"] in TOLD:
            self.world.saw("MODIFIED", copy.deepcopy(body))
        return body

    def take(self, path: str) -> None:
        """Something that goes."""
        body = self.store.pop(path)
        if body["kind"] in TOLD:
            self.world.saw("DELETED", body)

    def change(self, **spec: Any) -> None:
        """The manifest, by somebody."""
        there = self.store[OURS]
        changed = {key: value for key, value in {**there["spec"], **spec}.items() if value is not None}
        generation = there["metadata"].get("generation", 0) + 1
        self.put(
            OURS, {**there, "spec": changed, "metadata": {**there["metadata"], "generation": generation}}
        )

    @property
    def status(self) -> Object:
        """Of the consortium."""
        found: Object = self.store[OURS]["status"]
        return found

    def condition(self, kind: str) -> tuple[str, str]:
        """(status, reason) of a condition."""
        [found] = [each for each in self.status["conditions"] if each["type"] == kind]
        return found["status"], found["reason"]

    @property
    def jobs(self) -> dict[str, bool]:
        """Which Jobs are suspended."""
        found = [each for path, each in self.store.items() if path.startswith(JOBS)]
        return {each["metadata"]["name"]: each["spec"]["suspend"] for each in found}

    @property
    def pods(self) -> list[str]:
        """Names of pods."""
        return sorted(each["metadata"]["name"] for path, each in self.store.items() if path.startswith(PODS))

    def pod(self, participant: str, status: Object, machine: str = "", attempt: int = 1) -> None:
        """A participant's pod, of its Job."""
        job = of_attempt(NAME, participant, attempt)
        labels = {"pcmoe.dev/consortium": NAME, "pcmoe.dev/participant": participant}
        labels |= {"pcmoe.dev/role": "node", "pcmoe.dev/attempt": str(attempt)}
        owners = [{"kind": "Job", "name": job, "uid": self.store[f"{JOBS}/{job}"]["metadata"]["uid"]}]
        metadata = {"name": f"{job}-x", "namespace": NAMESPACE, "labels": labels, "ownerReferences": owners}
        spec = {"nodeName": machine} if machine else {}
        made = {"kind": "Pod", "metadata": metadata, "spec": spec, "status": status}
        self.put(f"{PODS}/{job}-x", made)

    # Who works on it

    def reconciler(self, ask: Ask | None = None) -> Reconciler:
        """An operator that has just started."""

        async def silent(_url: str) -> bytes | None:
            return None

        return Reconciler(Cluster(self), Settings.model_validate(SETTINGS), self.world, ask or silent)

    def look(self, ask: Ask | None = None) -> None:
        """One look by an operator that has just started."""
        asyncio.run(self.reconciler(ask).reconcile(KEY))

    def settle(self, ask: Ask | None = None) -> None:
        """Looks by one operator, and Kubernetes' controllers, until nothing changes any more."""
        reconciler = self.reconciler(ask)
        for _ in range(20):
            before = copy.deepcopy(self.store)
            asyncio.run(reconciler.reconcile(KEY))
            self.control()
            if self.store == before:
                return
        raise AssertionError(f"no end of changes: {self.writes[-10:]}")

    def control(self) -> None:
        """A pod for each Job that runs, and for the coordinator; none for others."""
        for path in [path for path in self.store if path.startswith(JOBS)]:
            job = self.store[path]
            labels, over = job["metadata"]["labels"], bool(job["status"].get("conditions"))
            pod = f"{PODS}/{job['metadata']['name']}-x"
            if job["spec"]["suspend"] and pod in self.store:
                self.take(pod)
            elif not job["spec"]["suspend"] and pod not in self.store and not over:
                participant, attempt = labels["pcmoe.dev/participant"], int(labels["pcmoe.dev/attempt"])
                self.pod(
                    participant, running(f"10.0.{attempt}.{NAMES.index(participant) + 1}"), "gpu", attempt
                )
        wanted = self.store.get(REPLICASET)
        pod = f"{PODS}/{NAME}.coordinator-x"
        if wanted and wanted["spec"]["replicas"] == 1 and pod not in self.store:
            labels = wanted["spec"]["template"]["metadata"]["labels"]
            metadata = {"name": f"{NAME}.coordinator-x", "namespace": NAMESPACE, "labels": labels}
            self.put(pod, {"kind": "Pod", "metadata": metadata, "spec": {}, "status": running("10.0.0.1")})
        elif wanted and wanted["spec"]["replicas"] == 0 and pod in self.store:
            self.take(pod)


def _told_of_job(path: str, body: Object) -> str:
    name = path.removeprefix(JOBS).lstrip("/") or body["metadata"]["name"]
    return f"{name} {body['spec']['suspend']}"


def running(address: str) -> Object:
    """The status of a pod that is in a view."""
    conditions = [{"type": kind, "status": "True"} for kind in ("PodScheduled", "Ready")]
    return {"phase": "Running", "podIP": address, "conditions": conditions}


def applied(**changes: Any) -> Api:
    """A consortium that has just been applied, with `changes` of its spec."""
    raw: dict[str, Any] = manifest(NAMES, {"metadata.name": NAME, "local": here(NAMES), **changes})
    raw["metadata"] |= {"namespace": NAMESPACE, "uid": "1", "creationTimestamp": "2026-07-01T00:00:00Z"}
    api = Api()
    api.put(OURS, raw)
    return api


def written(when: datetime) -> str:
    """A time as objects have it."""
    return when.strftime("%Y-%m-%dT%H:%M:%SZ")
