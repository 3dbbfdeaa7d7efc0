"""A change of a consortium that is broken off at any call of the operator ends as one that isn't.

The operator is killed before and after each call in turn, and started again. What there is then, objects, Jobs, pods
and the status, is compared with a run that nobody killed.
"""

import copy
import json
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import pytest
from tests.unit.clustered import here
from tests.unit.one_consortium import JOBS, NAME, NAMES, OURS, PODS, Api, Killed, applied, running

from pcmoe_operator.cluster import Object
from pcmoe_operator.objects.names import of_attempt

BERLIN, LYON = (of_attempt(NAME, name, 1) for name in NAMES)
TIMES = ("lastUpdateTime", "lastTransitionTime", "since", "certificateRenewalTime")
ELSEWHERE = [{"name": "lyon", "endpoint": "lyon.example:8443", "caBundle": "-----BEGIN CERTIFICATE-----"}]


async def answers(_url: str) -> bytes | None:
    """What the coordinator and all nodes say while they train."""
    said = {"state": "RUNNING", "phase": "TRAINING", "view": 1, "round": 1, "rounds": 2, "committed": 1}
    return json.dumps(said).encode()


@cache
def trained() -> Mapping[str, Object]:
    """What there is while one trains."""
    api = applied()
    api.settle(answers)
    assert api.status["state"] == "Running"
    return api.store


@cache
def suspended() -> Mapping[str, Object]:
    """The same, suspended."""
    api = Api(trained())
    api.change(suspend=True)
    api.settle(answers)
    assert api.pods == []
    return api.store


def fail(api: Api) -> None:
    """Berlin's Job fails for good, and its pod has ended."""
    failed = {"type": "Failed", "status": "True", "reason": "PodFailurePolicy", "message": "exit code 66"}
    api.put(f"{JOBS}/{BERLIN}", {**api.store[f"{JOBS}/{BERLIN}"], "status": {"conditions": [failed]}})
    pod = api.store[f"{PODS}/{BERLIN}-x"]
    api.put(f"{PODS}/{BERLIN}-x", {**pod, "status": {**running(""), "phase": "Failed"}})


def complete(api: Api) -> None:
    """All nodes have stored the last round and left."""
    left = json.dumps(
        {"phase": "DONE", "view": 1, "round": 2, "rounds": 2, "committed": 2, "heldOutLoss": 2.0}
    )
    for job in (BERLIN, LYON):
        ended = {"name": "node", "state": {"terminated": {"exitCode": 0, "message": left}}, "restartCount": 0}
        status = {**running(""), "phase": "Succeeded", "containerStatuses": [ended]}
        api.put(f"{PODS}/{job}-x", {**api.store[f"{PODS}/{job}-x"], "status": status})
        done = {"conditions": [{"type": "Complete", "status": "True"}], "succeeded": 1}
        api.put(f"{JOBS}/{job}", {**api.store[f"{JOBS}/{job}"], "status": done})


def again(api: Api) -> None:
    """It is deleted and applied again; what it owned is collected, all but its pods and Jobs."""
    raw = api.store[OURS]
    for path in [path for path in api.store if not path.startswith((JOBS, PODS))]:
        api.take(path)
    api.put(OURS, {**raw, "metadata": {**raw["metadata"], "uid": "2"}, "status": {}})


Change = tuple[Callable[[], Mapping[str, Object]], Callable[[Api], None]]
CHANGES: Mapping[str, Change] = {
    "suspend": (trained, lambda api: api.change(suspend=True)),
    "resume": (suspended, lambda api: api.change(suspend=None)),
    "another attempt": (trained, lambda api: api.change(attempt=2)),
    "another attempt of one that is suspended": (suspended, lambda api: api.change(attempt=2, suspend=None)),
    "a participant taken out": (trained, lambda api: api.change(local=here(NAMES[:1]), roster=ELSEWHERE)),
    "a manifest that breaks rules, suspended": (
        trained,
        lambda api: api.change(local=[{"name": name} for name in NAMES], suspend=True),
    ),
    "a failure": (trained, fail),
    "completion": (trained, complete),
    "a Job deleted": (trained, lambda api: api.take(f"{JOBS}/{LYON}")),
    "another setting of a participant": (
        trained,
        lambda api: api.change(local=here(NAMES, berlin={"cpuThreads": 3})),
    ),
}


@cache
def unbroken(name: str) -> tuple[int, str]:
    """How many calls a change takes, and what it leads to."""
    begin, change = CHANGES[name]
    api = Api(begin())
    change(api)
    api.settle(answers)
    assert any(not each.startswith("GET") for each in api.calls), "it changes nothing"
    return len(api.calls), end(api)


def end(api: Api) -> str:
    """Everything there is, but for times and for what is drawn by chance."""
    return json.dumps({path: settled(body) for path, body in sorted(api.store.items())}, indent=1)


def settled(value: Any) -> Any:
    """The same without times."""
    if isinstance(value, dict):
        return {key: settled(each) for key, each in sorted(value.items()) if key not in TIMES}
    return [settled(each) for each in value] if isinstance(value, list) else value


@pytest.mark.parametrize("sent", [False, True], ids=["before it is sent", "before its answer"])
@pytest.mark.parametrize("name", CHANGES)
def test_a_change_that_is_broken_off_at_any_call_ends_as_one_that_is_not(name: str, sent: bool) -> None:
    begin, change = CHANGES[name]
    calls, wanted = unbroken(name)
    for number in range(1, calls + 1):
        api = Api(copy.deepcopy(dict(begin())), kill_at=number, sent=sent, every=True)
        change(api)
        with pytest.raises(Killed):
            api.settle(answers)
        api.settle(answers)
        assert end(api) == wanted, f"killed at {api.calls[number - 1]}"
        made = [each for each in api.calls if each.startswith("POST")]
        assert len(made) <= 2 * len(NAMES), (
            "each Job is made once, or asked for twice where the answer was lost"
        )


def collected(api: Api) -> None:
    """Until nothing changes; then Kubernetes collects what the first one owned, and until nothing changes again."""
    api.settle(answers)
    for path in [
        path for path in api.store if path.startswith((JOBS, PODS)) and not of_the_second(api, path)
    ]:
        api.take(path)
    api.settle(answers)


def test_one_made_again_under_its_name_ends_as_one_that_was_not_broken_off() -> None:
    unharmed = Api(trained())
    again(unharmed)
    collected(unharmed)
    assert unharmed.status["state"] == "Running" and unharmed.jobs == {BERLIN: False, LYON: False}
    for number in range(1, len(unharmed.calls) + 1):
        api = Api(trained(), kill_at=number, sent=True, every=True)
        again(api)
        with pytest.raises(Killed):
            collected(api)
        collected(api)
        assert (api.jobs, sorted(api.store)) == (unharmed.jobs, sorted(unharmed.store))
        assert api.status["state"] == "Running"


def of_the_second(api: Api, path: str) -> bool:
    """Whether a Job or a pod is the second consortium's."""
    metadata = api.store[path]["metadata"]
    owners = [each["uid"] for each in metadata.get("ownerReferences", ())]
    return "2" in owners or metadata["labels"].get("pcmoe.dev/consortium-uid") == "2"
