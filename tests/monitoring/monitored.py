"""The chart's PodMonitor, as the Prometheus operator would write it into a Prometheus' configuration."""

import subprocess
from pathlib import Path
from typing import Any

import yaml
from tests.cluster import build

ROOT = Path(__file__).parents[2]


def monitored(namespace: str) -> dict[str, Any]:
    """The chart's PodMonitor for a namespace as a job, as far as it says what its pods are called."""
    values = ("--set", "metrics.podMonitor.enabled=true", "--set", f"watchNamespaces={{{namespace}}}")
    done = subprocess.run(
        [build.ensure("helm")["helm"], "template", "pcmoe", ROOT / "charts" / "pcmoe", *values],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    [monitor] = [
        each["spec"] for each in yaml.safe_load_all(done.stdout) if each and each["kind"] == "PodMonitor"
    ]
    [endpoint] = monitor["podMetricsEndpoints"]
    # What the Prometheus operator puts before a monitor's own relabellings.
    kept = [
        {"source_labels": ["__meta_kubernetes_pod_phase"], "regex": "(Failed|Succeeded)", "action": "drop"},
        {
            "source_labels": ["__meta_kubernetes_pod_labelpresent_pcmoe_dev_consortium"],
            "regex": "true",
            "action": "keep",
        },
        {
            "source_labels": ["__meta_kubernetes_pod_container_port_name"],
            "regex": endpoint["port"],
            "action": "keep",
        },
        {"source_labels": ["__meta_kubernetes_namespace"], "target_label": "namespace"},
        {"source_labels": ["__meta_kubernetes_pod_name"], "target_label": "pod"},
    ]
    assert monitor["selector"] == {
        "matchExpressions": [{"key": "pcmoe.dev/consortium", "operator": "Exists"}]
    }
    own = [
        {"source_labels": each["sourceLabels"], "target_label": each["targetLabel"]}
        for each in endpoint["relabelings"]
    ]
    discovery = {"role": "pod", "namespaces": {"names": monitor["namespaceSelector"]["matchNames"]}}
    return {"job_name": "monitored", "kubernetes_sd_configs": [discovery], "relabel_configs": [*kept, *own]}
