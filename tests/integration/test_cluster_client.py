"""The operator's client and its lease, on a real API server."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import yaml
from tests.builders import manifest
from tests.cluster.plane import ControlPlane
from tests.cluster.waiting import eventually

from pcmoe_operator.access import AGENT, Access
from pcmoe_operator.cluster import ApiRequests, Cluster, ClusterError, Object
from pcmoe_operator.lease import Lease

CRD = yaml.safe_load((Path(__file__).parents[2] / "manifests" / "crd.yaml").read_text())
SECONDS = 1.5
"""Of a lease in these tests."""
LONG_SECONDS = 5.0
"""Of one that is not to be lost by a slow answer."""


@asynccontextmanager
async def client(plane: ControlPlane) -> AsyncIterator[Cluster]:
    """A client with all rights."""
    async with ApiRequests.to(str(plane.kubeconfig)) as requests:
        yield Cluster(requests)


def run(plane: ControlPlane, work: Callable[[Cluster], Awaitable[None]]) -> None:
    """Do some work with a client."""

    async def inside() -> None:
        async with client(plane) as cluster:
            await work(cluster)

    asyncio.run(inside())


def install(plane: ControlPlane) -> None:
    """The CRD, ready for use."""
    plane.define(CRD)


def config_map(namespace: str, **data: str) -> Object:
    """A ConfigMap."""
    metadata = {"name": "notes", "namespace": namespace, "labels": {"a": "b"}}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}


def test_an_object_is_made_changed_read_listed_and_deleted(own_plane: ControlPlane, namespace: str) -> None:
    async def work(cluster: Cluster) -> None:
        assert await cluster.read("v1", "ConfigMap", namespace, "notes") is None
        versions = []
        for _ in range(2):
            await cluster.apply(config_map(namespace, one="1"))
            made = await cluster.read("v1", "ConfigMap", namespace, "notes")
            assert made is not None
            versions.append(made["metadata"]["resourceVersion"])
        assert versions[0] == versions[1], "nothing is written"
        await cluster.apply(config_map(namespace, two="2"))
        found = await cluster.read("v1", "ConfigMap", namespace, "notes")
        assert found is not None and found["data"] == {"two": "2"}
        assert [
            item["metadata"]["name"] for item in await cluster.list("v1", "ConfigMap", namespace, "a=b")
        ] == ["notes"]
        await cluster.delete("v1", "ConfigMap", namespace, "notes")
        await cluster.delete("v1", "ConfigMap", namespace, "notes")
        assert await cluster.list("v1", "ConfigMap", namespace, "a=b") == []

    run(own_plane, work)


def test_what_the_server_refuses_is_told_in_its_own_words(own_plane: ControlPlane, namespace: str) -> None:
    async def work(cluster: Cluster) -> None:
        with pytest.raises(ClusterError, match="rounds") as caught:
            bad = manifest(2, {"agreement.training.rounds": 0, "metadata.namespace": namespace})
            await cluster.apply(bad)
        assert caught.value.status == 422
        with pytest.raises(ClusterError) as caught:
            await cluster.apply(config_map("nowhere"))
        assert caught.value.status == 404

    install(own_plane)
    run(own_plane, work)


def test_a_status_is_written_by_itself(own_plane: ControlPlane, namespace: str) -> None:
    async def work(cluster: Cluster) -> None:
        wanted = manifest(2, {"metadata.namespace": namespace})
        await cluster.apply(wanted)
        where = (wanted["apiVersion"], wanted["kind"], namespace, wanted["metadata"]["name"])
        there = await cluster.read(*where)
        assert there is not None
        for state in ("Pending", "Running"):
            await cluster.write_status(there, {"state": state})
        shown = await cluster.read(*where)
        assert shown is not None and shown["status"] == {"state": "Running"}
        assert shown["metadata"]["generation"] == 1, "the manifest is as it was"

    install(own_plane)
    run(own_plane, work)


def test_a_status_for_another_object_of_that_name_is_refused(own_plane: ControlPlane, namespace: str) -> None:
    async def work(cluster: Cluster) -> None:
        wanted = manifest(2, {"metadata.namespace": namespace})
        await cluster.apply(wanted)
        before = {**wanted, "metadata": {**wanted["metadata"], "uid": "of-the-one-before"}}
        with pytest.raises(ClusterError) as caught:
            await cluster.write_status(before, {"state": "Failed"})
        assert caught.value.status == 422
        there = await cluster.read(
            wanted["apiVersion"], wanted["kind"], namespace, wanted["metadata"]["name"]
        )
        assert there is not None and "state" not in there.get("status", {})

    install(own_plane)
    run(own_plane, work)


def test_a_server_that_is_not_there_is_no_answer(own_plane: ControlPlane) -> None:
    async def work(_cluster: Cluster) -> None:
        access = await Access.found(str(own_plane.kubeconfig))
        access.server = "https://127.0.0.1:1"
        requests = ApiRequests(access)
        with pytest.raises(ClusterError) as caught:
            await Cluster(requests).read("v1", "ConfigMap", "default", "notes")
        assert caught.value.status == 0
        await requests.close()

    run(own_plane, work)


def test_a_server_by_another_name_than_a_kubeconfig_gives_it_is_not_trusted(
    own_plane: ControlPlane, tmp_path: Path
) -> None:
    config = json.loads(own_plane.kubeconfig.read_text())
    config["clusters"][0]["cluster"]["tls-server-name"] = "elsewhere.example"
    other = tmp_path / "kubeconfig"
    other.write_text(json.dumps(config))

    async def work() -> None:
        async with ApiRequests.to(str(other)) as requests:
            with pytest.raises(ClusterError, match="elsewhere.example") as caught:
                await Cluster(requests).read("v1", "ConfigMap", "default", "notes")
            assert caught.value.status == 0

    asyncio.run(work())


def test_the_audit_log_names_the_program(own_plane: ControlPlane, namespace: str) -> None:
    async def work(cluster: Cluster) -> None:
        await cluster.apply(config_map(namespace, one="1"))

    run(own_plane, work)

    def named() -> bool:
        mine = [each for each in own_plane.requests() if each.namespace == namespace and each.verb == "patch"]
        return [each.agent for each in mine] == [AGENT]

    eventually("it is in the log", named, within=10)


def test_one_leads_and_the_next_follows_when_it_lets_go(own_plane: ControlPlane, namespace: str) -> None:
    async def work(cluster: Cluster) -> None:
        first, second = (Lease(cluster, namespace, "operator", name, LONG_SECONDS) for name in ("one", "two"))
        await first.acquire()
        waiting = asyncio.create_task(second.acquire())
        holding = asyncio.create_task(first.hold())
        await asyncio.sleep(2 * LONG_SECONDS)
        assert first.leading and not second.leading and not waiting.done()
        holding.cancel()
        await first.release()
        await asyncio.wait_for(waiting, LONG_SECONDS - 0.5)  # an end of the lease would take longer
        assert second.leading and not first.leading

    run(own_plane, work)


def test_never_two_lead_when_the_first_one_falls_silent(own_plane: ControlPlane, namespace: str) -> None:
    async def work(cluster: Cluster) -> None:
        first, second = (Lease(cluster, namespace, "operator", name, SECONDS) for name in ("one", "two"))
        await first.acquire()
        waiting = asyncio.create_task(second.acquire())  # the first one never renews
        while not waiting.done():
            assert not (first.leading and second.leading)
            await asyncio.sleep(0.02)
        assert second.leading and not first.leading

    run(own_plane, work)


def test_a_leader_that_can_not_reach_the_server_stops_leading_before_the_lease_ends(
    own_plane: ControlPlane, namespace: str
) -> None:
    class Cuttable:
        """Requests that can be cut off."""

        def __init__(self, real: ApiRequests) -> None:
            self._real = real
            self.cut = False

        async def __call__(
            self, method: str, path: str, query: Mapping[str, str], body: Object | None, content_type: str
        ) -> Object:
            if self.cut:
                raise ClusterError(f"{method} {path}", 0, "planted")
            return await self._real(method, path, query, body, content_type)

    async def work(_cluster: Cluster) -> None:
        async with ApiRequests.to(str(own_plane.kubeconfig)) as real:
            requests = Cuttable(real)
            lease = Lease(Cluster(requests), namespace, "operator", "one", SECONDS)
            await lease.acquire()
            requests.cut = True
            await asyncio.wait_for(lease.hold(), SECONDS + 0.7)
            assert not lease.leading

    run(own_plane, work)
