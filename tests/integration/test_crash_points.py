"""The operator is killed at each of its requests in turn: whoever comes after it ends in the same state."""

import asyncio
import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.builders import manifest
from tests.cluster.plane import ControlPlane
from tests.integration.operating import CRD, NAMES, VOLUMES

from pcmoe_operator.cluster import ApiRequests, Cluster, ClusterError, Object, Requests
from pcmoe_operator.reconcile import Reconciler
from pcmoe_operator.settings import Settings
from pcmoe_operator.world import World

KINDS = "configmaps,secrets,services,networkpolicies,replicasets,jobs,pvc"


class Killed(BaseException):
    """The process is gone."""


class Faulty:
    """Requests of which the nth, counted from 1, ends otherwise: not sent, or sent and its answer lost."""

    def __init__(self, real: Requests, at: int, fault: BaseException, *, sent: bool) -> None:
        self._real, self._at, self._fault, self._sent = real, at, fault, sent
        self.count = 0

    async def __call__(
        self, method: str, path: str, query: Mapping[str, str], body: Object | None, content_type: str
    ) -> Object:
        self.count += 1
        if self.count == self._at and not self._sent:
            raise self._fault
        hit = self.count == self._at
        try:
            answer = await self._real(method, path, query, body, content_type)
        except ClusterError as error:
            raise self._fault if hit else error from None
        if hit:
            raise self._fault
        return answer


class Bench:
    """Looks at one consortium with a reconciler of its own, as after a start."""

    def __init__(self, plane: ControlPlane, namespace: str, requests: ApiRequests) -> None:
        self.plane, self.namespace, self.requests = plane, namespace, requests
        self.settings = Settings(
            namespaces=(namespace,), node_image="node", operator_image="operator", lease_namespace=namespace
        )

    def make(self, name: str) -> None:
        """Apply a consortium."""
        local = [{"name": each, "volumes": VOLUMES} for each in NAMES]
        self.plane.apply(manifest(NAMES, {"metadata.name": name, "local": local}), namespace=self.namespace)

    async def look(self, name: str, requests: Requests) -> None:
        """One look by an operator that has just started."""
        cluster = Cluster(requests)
        world = World(lambda _key: None)
        real = Cluster(self.requests)
        for api, kind in (("pcmoe.dev/v1alpha1", "PCMoEConsortium"), ("batch/v1", "Job"), ("v1", "Pod")):
            for found in await real.list(api, kind, self.namespace):
                world.saw("ADDED", found)

        async def silent(_url: str) -> bytes | None:
            return None

        await Reconciler(cluster, self.settings, world, silent).reconcile((self.namespace, name))

    def state(self, name: str) -> dict[str, Any]:
        """What there is of a consortium, without what differs from one to the next."""
        found = self.plane.read(KINDS, "-n", self.namespace, "-l", f"pcmoe.dev/consortium={name}")["items"]
        return {
            f"{each['kind']}/{each['metadata']['name'].replace(name, 'X')}": each.get("spec", {}).get(
                "suspend"
            )
            for each in found
        }

    def authority(self, name: str) -> str:
        """The CA certificate of berlin, if there is one."""
        args = ("secret", f"{name}.ca", "-n", self.namespace, "--ignore-not-found", "-o", "json")
        text = self.plane.kubectl("get", *args)
        return base64.b64decode(json.loads(text)["data"]["berlin.crt"]).decode() if text.strip() else ""


@pytest.fixture
def settled(own_plane: ControlPlane) -> None:
    own_plane.define(CRD)


def hit(plane: ControlPlane, namespace: str, fault: BaseException, *, sent: bool, every: int = 1) -> int:
    """Every request, or every so many-th, ends with `fault`; how many requests there are."""

    async def inside() -> int:
        async with ApiRequests.to(str(plane.kubeconfig)) as requests:
            bench = Bench(plane, namespace, requests)
            bench.make("calm")
            counted = Faulty(bench.requests, 0, fault, sent=sent)
            await bench.look("calm", counted)
            expected = bench.state("calm")
            for at in range(1, counted.count + 1, every):
                name = f"hit-{at}"
                bench.make(name)
                with pytest.raises(type(fault)):
                    await bench.look(name, Faulty(bench.requests, at, fault, sent=sent))
                before = bench.authority(name)
                await bench.look(name, bench.requests)
                assert bench.state(name) == expected, f"request {at}"
                assert before in ("", bench.authority(name)), "a CA is never replaced"
            return counted.count

    return asyncio.run(inside())


@pytest.mark.timeout(300)
@pytest.mark.parametrize("sent", [False, True], ids=["before it is sent", "before its answer"])
def test_an_operator_killed_at_any_request_leaves_what_the_next_one_can_finish(
    own_plane: ControlPlane, namespace: str, settled: None, sent: bool
) -> None:
    assert hit(own_plane, namespace, Killed(), sent=sent) >= 15


@pytest.mark.timeout(300)
def test_a_server_that_fails_at_any_request_is_asked_again(
    own_plane: ControlPlane, namespace: str, settled: None
) -> None:
    fault = ClusterError("PATCH /planted", 500, "planted")
    assert hit(own_plane, namespace, fault, sent=False, every=4) >= 15


def test_a_second_look_writes_nothing(
    own_plane: ControlPlane, namespace: str, settled: None, tmp_path: Path
) -> None:
    async def inside() -> None:
        async with ApiRequests.to(str(own_plane.kubeconfig)) as requests:
            bench = Bench(own_plane, namespace, requests)
            bench.make("calm")
            await bench.look("calm", bench.requests)
            before = own_plane.read(KINDS, "-n", namespace)["items"]
            await bench.look("calm", bench.requests)
            after = own_plane.read(KINDS, "-n", namespace)["items"]
            versions = [
                {e["metadata"]["name"]: e["metadata"].get("generation") for e in items}
                for items in (before, after)
            ]
            assert versions[0] == versions[1]

    asyncio.run(inside())
