"""Events of a consortium on a real API server: what `kubectl describe` shows, and that none is doubled."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from tests.cluster.plane import ControlPlane
from tests.cluster.waiting import eventually
from tests.integration.probing import Probed, running

from pcmoe_operator.cluster import ApiRequests, Cluster
from pcmoe_operator.events import MAX_NOTE_BYTES, QUIET_SECONDS, Events, News


def events(plane: ControlPlane, namespace: str) -> list[dict[str, Any]]:
    """Those about consortia."""
    found = plane.read("events.events.k8s.io", "-n", namespace)["items"]
    return [each for each in found if each["regarding"]["kind"] == "PCMoEConsortium"]


def reasons(plane: ControlPlane, namespace: str) -> list[str]:
    """Their reasons."""
    return sorted(each["reason"] for each in events(plane, namespace))


def test_describe_shows_what_happened_and_a_new_operator_doubles_nothing(
    own_plane: ControlPlane, namespace: str, tmp_path: Path
) -> None:
    with running(Probed(own_plane, namespace, tmp_path / "one")) as one:
        one.apply()
        one.all_pods()
        one.annotate("lyon", outcome="fail:66")
        one.until(lambda status: status.get("state") == "Failed")
        eventually("it is told", lambda: "ResourceMissing" in reasons(own_plane, namespace), within=20)
        shown = own_plane.kubectl("describe", "pcmoe", "pilot", "-n", namespace).partition("Events:")[2]
        line = next(line for line in shown.splitlines() if "ResourceMissing" in line)
        assert line.split()[0] == "Warning" and "pcmoe.dev/operator" in line and "lyon" in line
        before = {each["metadata"]["uid"] for each in events(own_plane, namespace)}
        assert one.stop() == 0
        one.start()
        one.until_leading()
        one.apply("other", local=[{"name": "berlin"}, {"name": "lyon"}])
        eventually("it tells again", lambda: "InvalidSpec" in reasons(own_plane, namespace), within=20)
        after = {each["metadata"]["uid"] for each in events(own_plane, namespace)}
        assert before < after and len(after - before) == 1


def test_an_event_that_comes_again_is_counted_and_one_that_is_gone_made_anew(
    own_plane: ControlPlane, namespace: str
) -> None:
    now = 0.0
    regarding = {"apiVersion": "pcmoe.dev/v1alpha1", "kind": "PCMoEConsortium", "name": "pilot"}
    regarding |= {"namespace": namespace, "uid": "0000"}
    told = News(kind="Warning", reason="PeerLost", condition="Progressing", note="é" * (MAX_NOTE_BYTES // 2))

    def counts() -> list[int]:
        return [(each.get("series") or {}).get("count", 1) for each in events(own_plane, namespace)]

    async def work(cluster: Cluster) -> None:
        nonlocal now
        first = Events(cluster, "one", lambda: now)
        await first.tell(regarding, told)
        await first.tell(regarding, told)
        assert counts() == [1]
        now += QUIET_SECONDS
        await first.tell(regarding, told)
        assert counts() == [3]
        second = Events(cluster, "two", lambda: now)
        await second.tell(regarding, told)
        assert counts() == [3]
        now += QUIET_SECONDS
        await second.tell(regarding, told)
        assert counts() == [5]
        own_plane.kubectl("delete", "events.events.k8s.io", "--all", "-n", namespace)
        now += QUIET_SECONDS
        await second.tell(regarding, told)
        assert counts() == [1]

    run(own_plane, work)


def run(plane: ControlPlane, work: Callable[[Cluster], Awaitable[None]]) -> None:
    """Do some work with a client of all rights."""

    async def inside() -> None:
        async with ApiRequests.to(str(plane.kubeconfig)) as requests:
            await work(Cluster(requests))

    asyncio.run(inside())
