"""A real Prometheus finds pods at a real API server, and gives their series the labels that dashboards rely on."""

import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.cluster.plane import ControlPlane
from tests.integration.operating import Operated, operated
from tests.monitoring.monitored import monitored
from tests.monitoring.prometheus import Prometheus

ROOT = Path(__file__).parents[2]
PODS = {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"]}
"""The rights that docs/metrics.md says are enough."""


@pytest.fixture
def here(own_plane: ControlPlane, tmp_path: Path) -> Iterator[Operated]:
    """A namespace with an operator and a consortium whose pods run."""
    with own_plane.namespace() as namespace, operated(own_plane, namespace, tmp_path, Operated) as found:
        found.apply()
        found.all_pods()
        yield found


def documented() -> list[dict[str, Any]]:
    """The jobs that docs/metrics.md has for a cluster."""
    blocks = re.findall(
        r"^```yaml\n(.*?)^```", (ROOT / "docs" / "metrics.md").read_text(), re.DOTALL | re.MULTILINE
    )
    [jobs] = [block for block in blocks if "kubernetes_sd_configs" in block]
    found: list[dict[str, Any]] = yaml.safe_load(jobs)["scrape_configs"]
    return found


def reader(here: Operated) -> Path:
    """The kubeconfig of somebody who may see pods in the namespace, and nothing else."""
    kinds: Mapping[str, Mapping[str, Any]] = {
        "ServiceAccount": {},
        "Role": {"rules": [PODS]},
        "RoleBinding": _binding(here.namespace),
    }
    for kind, fields in kinds.items():
        version = "v1" if kind == "ServiceAccount" else "rbac.authorization.k8s.io/v1"
        here.plane.apply(
            {"apiVersion": version, "kind": kind, "metadata": {"name": "prometheus"}, **fields},
            namespace=here.namespace,
        )
    return here.plane.kubeconfig_for(f"system:serviceaccount:{here.namespace}:prometheus")


def _binding(namespace: str) -> Mapping[str, Any]:
    return {
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "prometheus"},
        "subjects": [{"kind": "ServiceAccount", "name": "prometheus", "namespace": namespace}],
    }


def test_pods_are_found_with_their_labels_as_documented_and_as_monitored(
    here: Operated, monitoring_programs: dict[str, Path], tmp_path: Path
) -> None:
    jobs = [documented()[0], monitored(here.namespace)]
    kubeconfig = reader(here)
    for job in jobs:
        [discovery] = job["kubernetes_sd_configs"]
        discovery["kubeconfig_file"] = str(kubeconfig)
        discovery["namespaces"] = {"names": [here.namespace]}
    wanted = sorted(
        (pod["metadata"]["name"], here.namespace, "pilot", participant)
        for participant, pod in here.pods().items()
    )
    with Prometheus(monitoring_programs["prometheus"], tmp_path / "prometheus", jobs=jobs) as prometheus:
        for job in jobs:
            # Nobody answers at these pods' addresses; who they are is known all the same.
            query = f'count by (pod, namespace, consortium, participant) (up{{job="{job["job_name"]}"}})'
            samples = prometheus.until(query, lambda found: len(found) >= len(wanted))
            names = ("pod", "namespace", "consortium", "participant")
            assert sorted(tuple(labels.get(name, "") for name in names) for labels, _ in samples) == wanted


def test_the_documented_jobs_are_right_for_prometheus(promtool: Path, tmp_path: Path) -> None:
    path = tmp_path / "prometheus.yaml"
    path.write_text(yaml.safe_dump({"scrape_configs": documented()}))
    done = subprocess.run(
        [promtool, "check", "config", path], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
