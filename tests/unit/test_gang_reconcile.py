"""What a look at a consortium with too few machines writes, in which order, and what follows where it dies in it."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from tests.unit.one_consortium import NAME, NAMES, OURS, PODS, Api, Killed, applied, written

from pcmoe_operator.objects.names import of_attempt

LATE = 121
"""Seconds after which a pod has waited long enough."""


def state(api: Api) -> tuple[str, int, dict[str, bool]]:
    """What there is: the state of the release, its tries, and which Jobs are suspended."""
    release = api.status["release"]
    return release["state"], release["tries"], {name.split(".")[1]: each for name, each in api.jobs.items()}


def since(api: Api, seconds: int) -> datetime:
    """The release is as it is for so long; since when."""
    then = datetime.now(UTC) - timedelta(seconds=seconds)
    status = {**api.status, "release": {**api.status["release"], "since": written(then)}}
    api.put(OURS, {**api.store[OURS], "status": status})
    return then


def begun(**faults: Any) -> Api:
    """A consortium of which berlin has had a machine for a while, and lyon none."""
    api = applied()
    api.look()
    assert api.writes[0] == "status", "whoever decides says so before it is done"
    assert state(api) == ("Released", 0, {"berlin": False, "lyon": False})
    then = since(api, LATE)
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
    assert state(api) == ("GivenBack", 1, {"berlin": True, "lyon": False})
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
    assert state(api) == ("GivenBack", 1, {"berlin": True, "lyon": False})


@pytest.mark.parametrize("sent", [False, True], ids=["before it is sent", "before its answer"])
@pytest.mark.parametrize("at", [1, 2])
def test_an_operator_killed_while_it_tries_leaves_what_the_next_one_finishes(at: int, sent: bool) -> None:
    api = begun()
    api.look()
    since(api, 60)
    api.take(f"{PODS}/{of_attempt(NAME, 'berlin', 1)}-x")
    api.pod("lyon", {"phase": "Running", "conditions": []}, "gpu-2")
    api.writes.clear()
    api.kill_at, api.sent = at, sent
    with pytest.raises(Killed):
        api.look()
    api.look()
    assert state(api) == ("Released", 1, {"berlin": False, "lyon": False})


def test_one_that_is_being_deleted_is_left_alone() -> None:
    api = begun()
    there = api.store[OURS]
    api.put(OURS, {**there, "metadata": {**there["metadata"], "deletionTimestamp": "2026-07-01T00:00:00Z"}})
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
