"""A disk takes no more: from a real node's last write to the alert, and until the next attempt begins.

The node is a process whose files may grow no further; a pod on a real control plane ends as that process did, a real
operator looks after it, and a real Prometheus reads the operator with the chart's rules.
"""

import json
import resource
from pathlib import Path

import pytest
from tests.cluster.plane import ControlPlane
from tests.faults.consortium import Consortium
from tests.faults.nursery import interpreter
from tests.integration.operating import Operated, operated
from tests.monitoring.prometheus import Prometheus, Target, at_once
from tests.monitoring.trained import configs_of
from tools.dashboards.__main__ import FOLDER

SYSTEM = "pcmoe-system"
MOST_BYTES = 8192
"""So large a file may be: enough for a log, and too little for a round."""
NODE_SECONDS = 90.0
pytestmark = pytest.mark.timeout(240)


def fill_the_disk(folder: Path) -> tuple[int, str]:
    """(exit code, last error) of a real node that trains until its round has no room."""
    with Consortium(configs_of(folder, participants=1), spawn=interpreter) as consortium:
        consortium.coordinator.start()
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (MOST_BYTES, before[1]))  # a child inherits it
        try:
            consortium.nodes[0].start()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        code = consortium.nodes[0].wait(NODE_SECONDS)
        left = Path(str(consortium.configs[0].termination_message))
    return code, str(json.loads(left.read_text())["error"])


def test_a_full_disk_is_told_until_the_next_attempt_begins(
    own_plane: ControlPlane, monitoring_programs: dict[str, Path], tmp_path: Path
) -> None:
    code, words = fill_the_disk(tmp_path / "node")
    assert code == 74
    assert words.startswith("StorageError: ") and "round-000001: can't be stored" in words
    rules = tmp_path / "rules.yaml"
    rules.write_text(at_once((FOLDER.parent / "files" / "alerts.yaml").read_text()))
    with own_plane.namespace() as namespace, operated(own_plane, namespace, tmp_path, Operated) as operator:
        listen = f"127.0.0.1:{operator.settings()['metricsPort']}"
        page = Target(listen=listen, labels={"namespace": SYSTEM, "pod": "pcmoe-operator-x"})
        with Prometheus(
            monitoring_programs["prometheus"], tmp_path / "prometheus", [page], rules
        ) as prometheus:
            operator.apply()
            operator.all_pods()
            prometheus.until('pcmoe_operator_consortia_failed{reason="StorageFailed"} == 0')
            operator.annotate("lyon", outcome=f"fail:{code}")
            prometheus.until_fires("PCMoECheckpointFails", namespace=SYSTEM)
            prometheus.until_fires("PCMoEConsortiumFailed", namespace=SYSTEM)
            failed = operator.until(lambda status: status["state"] == "Failed")
            [end] = [each for each in failed["conditions"] if each["type"] == "Failed"]
            assert (end["status"], end["reason"]) == ("True", "StorageFailed")
            assert end["message"].startswith(
                "lyon: what it must keep can't be written: exit code 74; make its"
            )
            operator.change(attempt=2)
            prometheus.until_over("PCMoECheckpointFails")
            operator.all_pods()
            operator.annotate("berlin", outcome="fail:66")
            prometheus.until('pcmoe_operator_consortia_failed{reason="ResourceMissing"} == 1')
            assert "PCMoECheckpointFails" not in prometheus.firing(), "what is missing is no full disk"
