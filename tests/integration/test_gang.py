"""All pods of a consortium have a machine or none, on a real scheduler and Job controller."""

import functools
import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from tests.cluster.plane import ControlPlane
from tests.cluster.waiting import eventually
from tests.integration.operating import CRD
from tests.integration.scarce import Scarce, condition, release, row

FOUR = ("berlin", "lyon", "oslo", "turin")
TWO = ("berlin", "lyon")
LEADING = "leading, as"
Make = Callable[..., Scarce]


@pytest.fixture
def make(own_plane: ControlPlane, namespace: str, tmp_path: Path) -> Iterator[Make]:
    """Makes the namespace with its operator, by settings."""
    own_plane.define(CRD)
    with ExitStack() as stack:

        def make(**limits: int) -> Scarce:
            found = Scarce(own_plane, namespace, tmp_path, **limits)
            found.start()
            stack.callback(found.clean)
            stack.callback(found.answers.close)
            stack.callback(found.kill)
            return found

        yield make


def gave_back(status: dict[str, Any]) -> bool:
    return release(status)[0] == "GivenBack"


def nobody_holds(here: Scarce, name: str = "pilot", within: float = 10) -> None:
    """Wait until no participant has a machine, which may be so for a moment only."""
    eventually("nobody has a machine", lambda: not here.holders(name), within=within, every=0.05)


def test_where_one_of_four_finds_no_machine_none_is_held_until_there_is_room_for_all(make: Make) -> None:
    here = make(retrySeconds=8)
    here.machines(3)
    here.want("pilot", FOUR)
    eventually("three have a machine", lambda: len(here.holders("pilot")) == 3, within=20)
    here.eventually("pilot", "its machines are given back", gave_back)
    nobody_holds(here)
    status = here.eventually(
        "pilot",
        "it says who lacks what",
        lambda s: gave_back(s) and any(p.get("reason") == "Unschedulable" for p in s["participants"]),
    )
    lacking = [each["name"] for each in status["participants"] if each.get("reason") == "Unschedulable"]
    for kind in ("Scheduled", "Ready", "Progressing"):
        said = condition(status, kind)
        assert (said["status"], said["reason"]) == ("False", "GpusReleased")
        assert f"{lacking[0]}: 0/" in said["message"] and "nvidia.com/gpu" in said["message"]
    assert (status["state"], status["round"]) == ("Pending", "0/4")
    here.machines(1)
    began = time.monotonic()
    eventually("all have a machine", lambda: len(here.holders("pilot")) == 4, within=60)
    here.eventually("pilot", "it runs", lambda s: s.get("ready") == "4/4" and release(s) == ("Released", 0))
    assert time.monotonic() - began < 60


def test_a_pod_that_waits_for_a_machine_of_its_own_kind_waits_on_while_the_others_hold_none(
    make: Make,
) -> None:
    here = make(retrySeconds=1, unschedulableSeconds=5)
    here.machines(3)
    here.want("pilot", FOUR, {"oslo": "special"})
    here.eventually("pilot", "its machines are given back", gave_back)
    nobody_holds(here)
    waiting = here.pods()["oslo"]["metadata"]["uid"]
    end = time.monotonic() + 6
    while time.monotonic() < end:
        assert here.holders("pilot") == set()
        assert {name: pod["metadata"]["uid"] for name, pod in here.pods().items() if name} == {
            "oslo": waiting
        }
        time.sleep(0.2)  # between two looks; the end is above
    assert row(here.status("pilot"), "oslo")["reason"] == "Unschedulable"
    here.machines(1, pool="special")
    here.eventually("pilot", "it runs", lambda s: s.get("ready") == "4/4")
    assert here.pods()["oslo"]["metadata"]["uid"] == waiting


def test_one_that_trains_and_loses_a_machine_for_good_gives_the_others_back_and_goes_on_later(
    make: Make,
) -> None:
    here = make(retrySeconds=1)
    names = here.machines(2)
    here.want("pilot", TWO)
    here.eventually("pilot", "it runs", lambda s: s.get("ready") == "2/2")
    machine = here.pods()["berlin"]["spec"]["nodeName"]
    assert machine in names
    here.plane.kubectl("cordon", machine)
    here.plane.kubectl("delete", "pod", here.pods()["berlin"]["metadata"]["name"], "-n", here.namespace)
    here.eventually("pilot", "its machines are given back", gave_back, within=40)
    nobody_holds(here)
    here.plane.kubectl("uncordon", machine)
    here.eventually("pilot", "it runs", lambda s: s.get("ready") == "2/2" and release(s)[1] == 0)


def test_a_quota_that_has_no_room_for_all_is_like_a_machine_too_few(make: Make) -> None:
    here = make(retrySeconds=2, unschedulableSeconds=8)  # a quota's words are asked for after five
    here.machines(2)

    def quota(gpus: int) -> None:
        made = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "gpus"}}
        here.plane.apply(
            {**made, "spec": {"hard": {"requests.nvidia.com/gpu": str(gpus)}}}, namespace=here.namespace
        )

    quota(1)
    here.want("pilot", TWO)
    eventually("one has a machine", lambda: len(here.holders("pilot")) == 1, within=20)
    status = here.eventually("pilot", "its machine is given back", gave_back)
    assert "exceeded quota" in condition(status, "Progressing")["message"]
    nobody_holds(here)
    quota(2)
    here.eventually("pilot", "it runs", lambda s: s.get("ready") == "2/2", within=60)


def older_first(here: Scarce, rounds: int) -> None:
    """Two that need all machines, again and again: the older has them all, then the other."""
    here.machines(2)
    for number in range(rounds):
        names = ("first", "second") if number % 2 else ("second", "first")
        for name in names:
            here.want(name, TWO)
        older, younger = sorted(names, key=here.age)
        here.eventually(older, "the older runs", lambda s: s.get("ready") == "2/2", within=30)
        here.eventually(older, "it stays so", lambda s: release(s) == ("Released", 0))
        nobody_holds(here, younger)
        here.remove(older)
        here.eventually(younger, "the younger runs", lambda s: s.get("ready") == "2/2", within=30)
        here.remove(younger)


def test_of_two_consortia_that_each_fit_alone_the_older_goes_first(make: Make) -> None:
    older_first(make(retrySeconds=1, unschedulableSeconds=10), rounds=3)


@pytest.mark.soak
def test_of_two_consortia_that_each_fit_alone_the_older_goes_first_twenty_times(make: Make) -> None:
    older_first(make(retrySeconds=1, unschedulableSeconds=10), rounds=20)


@pytest.mark.timeout(180)
def test_an_operator_killed_in_each_state_goes_on_where_the_last_one_was(make: Make) -> None:
    here = make(retrySeconds=15, leaseSeconds=3)
    here.machines(1)

    def again(_when: str) -> None:
        here.kill()
        here.start()

    here.want("pilot", TWO)
    eventually("one has a machine", lambda: len(here.holders("pilot")) == 1, within=20)
    again("while it waits for the other")
    first = here.eventually("pilot", "gives back", gave_back)
    again("while it gives back")
    nobody_holds(here, within=14)
    again("while it rests")
    tried = here.eventually(
        "pilot", "tries again", lambda s: release(s)[0] == "Released" and release(s)[1] > 0
    )
    again("while it tries")
    tries = release(tried)[1] + 1
    second = here.eventually(
        "pilot", "gives back", lambda s: release(s)[0] == "GivenBack" and release(s)[1] >= tries
    )
    assert first["release"]["since"] < second["release"]["since"]
    here.machines(1)
    here.eventually("pilot", "runs", lambda s: s.get("ready") == "2/2" and release(s) == ("Released", 0))
    before = {name: pod["metadata"]["uid"] for name, pod in here.pods().items()}
    written = here.status("pilot")["lastUpdateTime"]
    led = here.log.read_text().count(LEADING)
    again("while it runs")
    eventually("leads again", lambda: here.log.read_text().count(LEADING) > led, within=20)
    here.eventually("pilot", "runs on", lambda s: s.get("ready") == "2/2")
    assert {name: pod["metadata"]["uid"] for name, pod in here.pods().items()} == before
    assert here.status("pilot")["lastUpdateTime"] == written


def crash(here: Scarce, participant: str, number: int) -> None:
    """Have a pod's container end by want of memory and be started again, as a kubelet tells it."""
    pod = here.pods()[participant]
    end = {"exitCode": 137, "reason": "OOMKilled", "finishedAt": f"2026-08-01T12:00:{number:02}Z"}
    held = {**pod["status"]["containerStatuses"][0], "restartCount": number, "lastState": {"terminated": end}}
    patch = json.dumps({"status": {"containerStatuses": [held]}})
    name = pod["metadata"]["name"]
    args = ("--subresource=status", "--type=merge", "-p", patch)
    here.plane.kubectl("patch", "pod", name, "-n", here.namespace, *args)


def test_a_participant_that_crashes_again_and_again_ends_the_attempt_whoever_counts(make: Make) -> None:
    here = make(restartsWithoutProgress=3, leaseSeconds=3)
    here.machines(2)
    here.want("pilot", TWO)
    here.eventually("pilot", "it runs", lambda s: s.get("ready") == "2/2")
    for number in (1, 2):
        crash(here, "lyon", number)
        count = functools.partial(lambda wanted, s: row(s, "lyon").get("crashes") == wanted, number)
        here.eventually("pilot", f"{number} crashes are counted", count)
    here.kill()
    here.start()
    crash(here, "lyon", 3)
    status = here.eventually("pilot", "it has failed", lambda s: s.get("state") == "Failed")
    said = condition(status, "Failed")
    assert said["reason"] == "CrashLoop"
    assert "lyon" in said["message"] and "3 times since round 0 was committed" in said["message"]
    assert "ran out of memory" in said["message"] and "raise spec.attempt" in said["message"]
    nobody_holds(here)
    assert row(here.status("pilot"), "lyon")["state"] == "Failed"
    here.plane.kubectl(
        "patch", "pcmoe", "pilot", "-n", here.namespace, "--type=merge", "-p", '{"spec":{"attempt":2}}'
    )
    here.eventually("pilot", "it runs", lambda s: s.get("ready") == "2/2" and s.get("attempt") == 2)
