"""docs/metrics.md says what the code says: its tables, ports, labels of pods, names of values."""

import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import yaml
from tools import metric_tables
from tools.metric_tables import ABSENT, OPEN, PAGE, RENEW, rendered, shown

from pcmoe_operator.local.folder import TARGETS
from pcmoe_operator.objects.names import CONSORTIUM, PARTICIPANT
from pcmoe_operator.objects.network import STATUS
from pcmoe_operator.settings import Settings

TEXT = PAGE.read_text()
ROOT = PAGE.parents[1]
VALUES = yaml.safe_load((ROOT / "charts" / "pcmoe" / "values.yaml").read_text())


def test_tables_are_those_that_the_code_makes() -> None:
    assert rendered(TEXT) == TEXT, RENEW


def test_every_metric_has_a_row() -> None:
    rows = re.findall(r"^\| `(pcmoe_\w+)` \|", TEXT, re.MULTILINE)
    for page in shown().values():
        for name, family in page.full.items():
            assert name + ("_total" if family.type == "counter" else "") in rows
    assert len(rows) == len(set(rows))


def test_a_full_page_has_a_sample_of_every_metric() -> None:
    for process, page in shown().items():
        assert [name for name, family in page.full.items() if not family.samples] == [], process


def test_what_is_not_there_from_the_start_is_said_to_be_absent_and_nothing_else() -> None:
    assert set(ABSENT) == set().union(*(page.absent for page in shown().values()))


def test_all_values_of_a_closed_label_are_there_from_the_start_once_any_is() -> None:
    """Otherwise the first of a kind could not be told from one that was there before."""
    for page in shown().values():
        for name, family in page.full.items():
            labels = {label for sample in family.samples for label in sample.labels} - set(OPEN)
            fresh = page.fresh[name].samples
            assert not labels or not fresh or len(fresh) == len(family.samples), name


def test_a_page_that_is_out_of_date_is_told(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    old = tmp_path / "metrics.md"
    old.write_text(TEXT.replace("`pcmoe_node_step`", "`pcmoe_node_stride`"))
    monkeypatch.setattr(metric_tables, "PAGE", old)
    monkeypatch.setattr(sys, "argv", ["metric_tables", "--check"])
    with pytest.raises(SystemExit, match="metrics.md is out of date"):
        metric_tables.main()
    monkeypatch.setattr(sys, "argv", ["metric_tables"])
    metric_tables.main()
    assert old.read_text() == TEXT


def test_the_tool_runs_by_itself() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tools.metric_tables", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def blocks() -> list[Any]:
    """Every example in YAML."""
    return [
        yaml.safe_load(block) for block in re.findall(r"^```yaml\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)
    ]


def keys(value: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """Paths of all that a mapping says."""
    for name, inner in value.items():
        yield f"{path}{name}"
        if isinstance(inner, Mapping) and name != "labels":
            yield from keys(inner, f"{path}{name}.")


def test_values_that_are_named_are_the_charts() -> None:
    examples = [block for block in blocks() if "metrics" in block]
    assert len(examples) == 2
    for block in examples:
        assert set(keys(block)) <= set(keys(VALUES))
    named = set(re.findall(r"`((?:metrics|ports)\.\w+)`", TEXT))
    assert named and named <= set(keys(VALUES))


def test_ports_are_those_of_the_settings() -> None:
    ports = {
        "ports.status": Settings.model_fields["status_port"],
        "ports.metrics": Settings.model_fields["metrics_port"],
    }
    for value, port in ports.items():
        assert f"| {port.default} (`{value}`)" in TEXT


def meta(label: str) -> str:
    """What Prometheus calls a label of a pod."""
    return "__meta_kubernetes_pod_label_" + re.sub(r"\W", "_", label)


def jobs() -> Mapping[str, Any]:
    """The examples of scrape configurations, by name and kind of discovery."""
    found = [job for block in blocks() for job in block.get("scrape_configs", [])]
    return {
        f"{job['job_name']}/{next(key for key in job if key.endswith('sd_configs'))}": job for job in found
    }


def test_a_scrape_without_the_prometheus_operator_gives_the_labels_of_the_pod_monitor() -> None:
    job = jobs()["pcmoe/kubernetes_sd_configs"]
    given = {
        rule["target_label"]: rule["source_labels"]
        for rule in job["relabel_configs"]
        if "target_label" in rule
    }
    assert given == {
        "namespace": ["__meta_kubernetes_namespace"],
        "pod": ["__meta_kubernetes_pod_name"],
        "consortium": [meta(CONSORTIUM)],
        "participant": [meta(PARTICIPANT)],
    }
    kept = {
        rule["source_labels"][0]: rule["regex"]
        for rule in job["relabel_configs"]
        if rule.get("action") == "keep"
    }
    assert kept[meta(CONSORTIUM)] == ".+" and kept["__meta_kubernetes_pod_container_port_name"] == STATUS
    monitors = (ROOT / "charts" / "pcmoe" / "templates" / "monitors.yaml").read_text()
    for label in ("consortium", "participant"):
        assert f"sourceLabels: {given[label]}, targetLabel: {label}".replace("'", "") in monitors


def test_the_operator_is_chosen_by_its_own_labels_and_port() -> None:
    job = jobs()["pcmoe-operator/kubernetes_sd_configs"]
    kept = {
        rule["source_labels"][0]: rule["regex"]
        for rule in job["relabel_configs"]
        if rule.get("action") == "keep"
    }
    (label,) = Settings.model_fields["operator_labels"].default.items()
    assert kept == {meta(label[0]): label[1], "__meta_kubernetes_pod_container_port_name": "metrics"}
    assert "name: metrics" in (ROOT / "charts" / "pcmoe" / "templates" / "deployment.yaml").read_text()


def test_a_local_run_is_found_by_the_file_that_it_writes() -> None:
    job = jobs()["pcmoe/file_sd_configs"]
    assert [file.rpartition("/")[2] for each in job["file_sd_configs"] for file in each["files"]] == [TARGETS]


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)", TEXT):
        assert (PAGE.parent / target).exists(), target
    headings = re.findall(r"^#+ (.*)$", TEXT, re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}
    assert set(re.findall(r"\]\(#([^)]*)\)", TEXT)) <= anchors


def test_the_readme_leads_to_it() -> None:
    assert "(docs/metrics.md)" in (ROOT / "README.md").read_text()


def test_it_says_what_the_figures_reveal_and_when_they_stop() -> None:
    text = " ".join(TEXT.split())
    for sentence in (
        "nothing is sent to partners",
        "changes once, at its end: a sum over all steps of the round",
        "padding included",
        "There is no password: whoever reaches the port reads it",
        "A suspended or completed consortium has no pods that run",
    ):
        assert sentence in text, sentence
