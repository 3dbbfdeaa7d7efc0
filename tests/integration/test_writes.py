"""How often the operator writes, by the API server's audit log: each thing once, and nothing while all is well."""

import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.builders import manifest
from tests.cluster.audit import Request
from tests.cluster.plane import ControlPlane
from tests.integration.operating import DEADLINE, VOLUMES, Operated, operated, volume

NAMES = ("berlin", "lyon", "oslo", "turin")
OBJECTS = {
    "networkpolicies": 2,
    "services": 1,
    "secrets": 6,
    "configmaps": 1,
    "persistentvolumeclaims": 4,
    "replicasets": 1,
    "jobs": 4,
}
"""What there is for a consortium of four, all of them here."""
MOST = 26
QUIET = 7.0
"""An Event is told once what it tells has stood for 5 s."""
VERBS = ("create", "update", "patch", "delete", "deletecollection")


class Counted(Operated):
    """Its operator is known by a name of its own."""

    def __init__(self, plane: ControlPlane, namespace: str, folder: Path) -> None:
        super().__init__(plane, namespace, folder)
        self.user = f"operator-of-{namespace}"
        self.kubeconfig = plane.kubeconfig_for(self.user, ["system:masters"])

    def settings(self) -> dict[str, Any]:
        """Progress is written as seldom as by default."""
        return {**super().settings(), "statusSeconds": 5}

    def requests(self) -> list[Request]:
        """All that the operator asked for and was given, but for the lease."""
        asked = self.plane.requests(self.user)
        return [each for each in asked if each.resource != "leases" and each.code < 400]

    def writes(self) -> Counter[str]:
        """How often it wrote, by resource."""
        return Counter(each.resource for each in self.requests() if each.verb in VERBS)


@pytest.fixture
def here(own_plane: ControlPlane, namespace: str, tmp_path: Path) -> Iterator[Counted]:
    with operated(own_plane, namespace, tmp_path, Counted) as found:
        yield found


def all_running(here: Counted) -> None:
    for name in NAMES:
        here.plane.apply(volume(here.namespace, "pilot", name))
    local = [{"name": each, "gpus": 1, "volumes": VOLUMES} for each in NAMES]
    here.plane.apply(manifest(NAMES, {"metadata.name": "pilot", "local": local}), namespace=here.namespace)
    here.until(lambda status: status.get("ready") == "4/4" and status.get("state") == "Running")


def quiet(here: Counted, seconds: float) -> list[Request]:
    """What the operator asks for from now on, once it has asked for nothing for so long."""
    before, end = len(here.requests()), time.monotonic() + DEADLINE
    seen, since = before, time.monotonic()
    while time.monotonic() - since < seconds:
        assert time.monotonic() < end, [f"{each.verb} {each.path}" for each in here.requests()[before:]]
        time.sleep(0.5)  # between two looks at the log; the deadline is above
        asked = [each for each in here.requests() if each.verb not in ("watch", "list")]
        if len(asked) != seen:
            seen, since = len(asked), time.monotonic()
    return here.requests()[before:]


def test_each_object_is_written_once_until_a_consortium_runs(here: Counted) -> None:
    all_running(here)
    quiet(here, QUIET)
    writes = here.writes()
    status, events = writes.pop("pcmoeconsortia/status"), writes.pop("events", 0)
    assert writes == OBJECTS
    assert sum(writes.values()) + status + events <= MOST, (writes, status, events)


def test_a_consortium_that_runs_takes_no_write_and_neither_does_a_restart_of_the_operator(
    here: Counted,
) -> None:
    all_running(here)
    quiet(here, QUIET)
    before = here.writes()
    time.sleep(8)  # longer than the time between two looks
    assert here.writes() == before
    asked = len(here.requests())
    here.stop()
    here.start()
    here.until_looked()
    quiet(here, QUIET)
    assert here.writes() == before
    assert {each.verb for each in here.requests()[asked:]} <= {"get", "list", "watch"}
    secrets = [each for each in here.requests()[asked:] if each.resource == "secrets"]
    assert not secrets, "a restart reads no keys"
