"""What the chart has for the Prometheus operator, as that would write it into a Prometheus' configuration."""

import subprocess
from pathlib import Path
from typing import Any

import yaml
from tests.cluster import build

ROOT = Path(__file__).parents[2]


def monitored(namespace: str) -> dict[str, Any]:
    """The chart's PodMonitor for a namespace as a job, as far as it says what its pods are called."""
    [monitor] = _rendered("PodMonitor", "metrics.podMonitor.enabled=true", f"watchNamespaces={{{namespace}}}")
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


def ruled(watch_seconds: int) -> str:
    """The chart's PrometheusRule as a file of rules, for an operator whose watches last so long."""
    [rule] = _rendered(
        "PrometheusRule",
        "metrics.podMonitor.enabled=true",
        "metrics.serviceMonitor.enabled=true",
        "metrics.alerts.enabled=true",
        f"settings.watchSeconds={watch_seconds}",
    )
    return yaml.safe_dump({"groups": rule["groups"]}, width=1_000)


def _rendered(kind: str, *values: str) -> list[dict[str, Any]]:
    """`spec` of every object of a kind that the chart makes with these values."""
    command: list[str | Path] = [build.ensure("helm")["helm"], "template", "pcmoe", ROOT / "charts" / "pcmoe"]
    options = [each for value in values for each in ("--set", value)]
    done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=60, check=True)
    return [each["spec"] for each in yaml.safe_load_all(done.stdout) if each and each["kind"] == kind]
