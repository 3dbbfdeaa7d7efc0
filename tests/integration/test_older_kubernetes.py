"""Where Kubernetes can't yet start a container again by its exit code, an API server that behaves as an older one."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.cluster.plane import ControlPlane
from tests.integration.operating import NAMES, Operated, operated

OLDEST = "1.33"
"""As far back as the API server of these tests can go."""


class Older(Operated):
    """Its operator may be told what its cluster can do."""

    def settings(self) -> dict[str, Any]:
        """As the chart would render them for such a cluster."""
        return {**super().settings(), "restartInPlace": False}


@pytest.fixture(scope="module")
def older_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    with ControlPlane(tmp_path_factory.mktemp("older"), fake_nodes=2, version=OLDEST) as plane:
        yield plane


def test_an_older_kubernetes_runs_a_consortium_and_replaces_pods_that_lost_a_peer(
    older_plane: ControlPlane, tmp_path: Path
) -> None:
    version = json.loads(older_plane.kubectl("get", "--raw", "/version"))
    assert f"{version['emulationMajor']}.{version['emulationMinor']}" == OLDEST
    with older_plane.namespace() as namespace, operated(older_plane, namespace, tmp_path, Older) as here:
        here.apply()
        before = here.all_pods()
        for name in NAMES:
            [held] = before[name]["spec"]["containers"]
            assert "restartPolicyRules" not in held and "restartPolicy" not in held
        here.annotate("berlin", outcome="fail:75")
        here.until(lambda status: status["ready"] == "1/2")
        after = here.all_pods()
        uids = {
            name: pods["berlin"]["metadata"]["uid"] for name, pods in (("before", before), ("after", after))
        }
        assert uids["before"] != uids["after"] and here.status()["state"] != "Failed"
