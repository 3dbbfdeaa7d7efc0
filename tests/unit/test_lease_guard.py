"""What a process was about to write when its leadership ended is not written."""

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from pcmoe_operator.cluster import Cluster, ClusterError, Object
from pcmoe_operator.lease import Lease, WhileLeading

SECONDS = 0.6
"""Of a lease: a holder leads for 0.4 s without a renewal."""
LONG_SECONDS = 2.0
"""Of one that is renewed in time, or ends in time, also where a busy machine stops everything for half a second."""


class Server:
    """Keeps a lease and counts writes; `gate` holds them up as a connection does that is being made."""

    def __init__(self) -> None:
        self.record: Object | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self.written: list[str] = []
        self.away = False
        self.answering = asyncio.Event()
        self.answering.set()
        """Whether who wrote the lease hears of it."""

    async def __call__(
        self, method: str, path: str, query: Mapping[str, str], body: Object | None, content_type: str
    ) -> Object:
        if "/leases" in path:
            if self.away:
                await asyncio.sleep(60)
            if method == "GET":
                if self.record is None:
                    raise ClusterError(path, 404, "not there")
                return self.record
            assert body is not None
            version = (self.record or {}).get("metadata", {}).get("resourceVersion", "0")
            if body["metadata"].get("resourceVersion", "0") != version:
                raise ClusterError(path, 409, "the object has been modified")
            made = {**body["metadata"], "resourceVersion": str(int(version) + 1)}
            written = self.record = {**body, "metadata": made}
            await self.answering.wait()
            return written
        await self.gate.wait()
        if method != "GET":
            self.written.append(path)
        return {}


class Clock:
    """A clock that can jump, as after a pause of the process."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return asyncio.get_running_loop().time() + self.ahead


def body(name: str) -> dict[str, Any]:
    """An object."""
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": "here"}}


def led(server: Server, clock: Clock, seconds: float = SECONDS) -> tuple[Lease, Cluster]:
    """A lease, and a cluster that writes only while it is held."""
    lease = Lease(Cluster(server), "here", "operator", "one", seconds, clock)
    return lease, Cluster(WhileLeading(server, lease))


def test_nothing_is_written_before_the_lease_is_held_but_everything_read() -> None:
    async def work() -> None:
        server = Server()
        lease, cluster = led(server, Clock())
        with pytest.raises(ClusterError, match="leads no more"):
            await cluster.apply(body("early"))
        await cluster.read("v1", "Secret", "here", "any")
        await lease.acquire()
        await cluster.apply(body("due"))
        assert [path.rpartition("/")[2] for path in server.written] == ["due"]

    asyncio.run(work())


def test_a_write_that_waits_for_its_connection_when_leadership_ends_is_given_up() -> None:
    async def work() -> None:
        server = Server()
        lease, cluster = led(server, Clock())
        await lease.acquire()
        server.gate.clear()
        with pytest.raises(ClusterError, match="leads no more"):
            await asyncio.wait_for(cluster.apply(body("late")), 5.0)
        server.gate.set()
        assert server.written == [] and not lease.leading

    asyncio.run(work())


def test_a_process_that_was_asleep_writes_nothing_when_it_wakes() -> None:
    async def work() -> None:
        server, clock = Server(), Clock()
        lease, cluster = led(server, clock)
        await lease.acquire()
        clock.ahead += SECONDS
        with pytest.raises(ClusterError, match="leads no more"):
            await cluster.apply(body("late"))
        assert server.written == []
        before = server.record
        await lease.release()
        assert server.record is before, "it is another one's by now, perhaps"

    asyncio.run(work())


def test_a_lease_is_given_back_also_when_the_answer_to_its_last_renewal_never_came() -> None:
    async def work() -> None:
        server = Server()
        lease, _ = led(server, Clock(), LONG_SECONDS)
        await lease.acquire()
        first = server.record
        server.answering.clear()
        holding = asyncio.create_task(lease.hold())
        while server.record is first:
            await asyncio.sleep(0.01)
        holding.cancel()
        await asyncio.wait([holding])
        server.answering.set()
        await lease.release()
        assert server.record is not None and server.record["spec"]["holderIdentity"] == ""

    asyncio.run(work())


@pytest.mark.parametrize("left", ["deleted", "emptied"])
def test_a_lease_that_somebody_deletes_or_empties_makes_no_second_leader(left: str) -> None:
    async def work() -> None:
        server, clock = Server(), Clock()
        first, second = (
            Lease(Cluster(server), "here", "operator", name, LONG_SECONDS, clock) for name in ("one", "two")
        )
        await first.acquire()
        waiting = asyncio.create_task(second.acquire())
        await asyncio.sleep(0.1)  # now it has seen a holder
        assert server.record is not None
        server.record = None if left == "deleted" else {**server.record, "spec": {}}
        began = clock()
        while not waiting.done():
            assert not (first.leading and second.leading)
            await asyncio.sleep(0.02)
        assert clock() - began >= LONG_SECONDS * 2 / 3 and second.leading

    asyncio.run(work())


def test_a_leader_whose_lease_was_deleted_makes_it_anew_and_leads_on() -> None:
    async def work() -> None:
        server = Server()
        first = Lease(Cluster(server), "here", "operator", "one", LONG_SECONDS)
        server.record = {
            "metadata": {"resourceVersion": "1"},
            "spec": {"holderIdentity": "zero", "leaseDurationSeconds": 1},  # it has seen another holder
        }
        await first.acquire()
        holding = asyncio.create_task(first.hold())
        server.record = None
        await asyncio.sleep(LONG_SECONDS)
        assert first.leading and not holding.done() and server.record is not None
        holding.cancel()

    asyncio.run(work())


def test_a_lease_that_is_another_s_by_now_is_not_given_back() -> None:
    async def work() -> None:
        server = Server()
        lease, _ = led(server, Clock(), LONG_SECONDS)
        await lease.acquire()
        assert server.record is not None
        theirs = {**server.record["spec"], "holderIdentity": "two"}
        server.record = {
            **server.record,
            "metadata": {**server.record["metadata"], "resourceVersion": "7"},
            "spec": theirs,
        }
        await lease.release()
        assert server.record["spec"] == theirs

    asyncio.run(work())


def test_a_slow_write_goes_on_while_the_lease_is_renewed() -> None:
    async def work() -> None:
        server = Server()
        lease, cluster = led(server, Clock(), LONG_SECONDS)
        await lease.acquire()
        holding = asyncio.create_task(lease.hold())
        server.gate.clear()
        slow = asyncio.create_task(cluster.apply(body("slow")))
        await asyncio.sleep(2 * LONG_SECONDS)
        server.gate.set()
        await asyncio.wait_for(slow, 5.0)
        assert len(server.written) == 1
        holding.cancel()

    asyncio.run(work())


def test_a_renewal_that_hangs_ends_the_leadership_in_time() -> None:
    async def work() -> None:
        server = Server()
        lease, _ = led(server, Clock(), LONG_SECONDS)
        await lease.acquire()
        server.away = True
        began = asyncio.get_running_loop().time()
        await asyncio.wait_for(lease.hold(), 5.0)
        assert asyncio.get_running_loop().time() - began < LONG_SECONDS
        assert not lease.leading

    asyncio.run(work())


def test_since_when_it_is_held_does_not_change_with_a_renewal() -> None:
    async def work() -> None:
        server = Server()
        lease, _ = led(server, Clock())
        await lease.acquire()
        assert server.record is not None
        first = server.record["spec"]
        await lease.acquire()
        second = server.record["spec"]
        assert first["acquireTime"] == second["acquireTime"] and first["renewTime"] < second["renewTime"]
        assert first["leaseTransitions"] == second["leaseTransitions"] == 0

    asyncio.run(work())
