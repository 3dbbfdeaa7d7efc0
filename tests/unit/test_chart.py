"""What the chart says twice is equal: the definition, the README's table, versions, what dashboards show."""

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.metrics_core import Metric
from tools.chart_check import CHART, CRD, CRD_COPY, README, rows, with_table

from pcmoe_node.coordination.page import CoordinatorPage
from pcmoe_node.status import State
from pcmoe_operator.health import Health
from pcmoe_operator.metrics import Metrics
from pcmoe_operator.objects.names import CONSORTIUM
from pcmoe_operator.settings import Settings

RENEW = "bring it up to date: .venv/bin/python -m tools.chart_check --write"


def test_the_chart_has_the_definition_as_it_is() -> None:
    assert CRD_COPY.read_bytes() == CRD.read_bytes(), RENEW


def test_the_readme_has_every_value_with_its_default_and_meaning() -> None:
    assert with_table(README.read_text()) == README.read_text(), RENEW


def test_every_value_of_the_schema_has_a_default_and_no_other_is_there() -> None:
    def leaves(values: dict[str, Any], known: set[str], path: str = "") -> set[str]:
        found = set()
        for name, value in values.items():
            where = f"{path}{name}"
            found |= {where} if where in known else leaves(value, known, f"{where}.")
        return found

    known = {path for path, _default, _meaning in rows()}
    assert leaves(yaml.safe_load((CHART / "values.yaml").read_text()), known) == known


def test_the_defaults_are_the_operators_own() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    defaults = {field.alias: field.default for field in Settings.model_fields.values()}
    assert values["settings"].pop("restartInPlace") is None, "the version decides, and the newest can"
    assert defaults["restartInPlace"] is True
    assert values["settings"] == {name: defaults[name] for name in values["settings"]}
    ports = {"metrics": "metricsPort", "exchange": "nodePort", "status": "statusPort"}
    assert values["ports"] == {name: defaults[alias] for name, alias in ports.items()}
    assert values["clusterDomain"] == defaults["clusterDomain"]


def test_the_chart_installs_the_version_it_is_of() -> None:
    version = tomllib.loads((CHART.parents[1] / "pyproject.toml").read_text())["project"]["version"]
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert str(chart["appVersion"]) == version


def shown(metric: Metric) -> set[str]:
    """The names under which Prometheus knows a metric."""
    return {sample.name for sample in metric.samples} or {metric.name, f"{metric.name}_total"}


def names() -> set[str]:
    """Every metric of nodes, coordinators and the operator."""
    node = State(participant="a", rounds=1, steps=1, peers=1, train_loss=1.0, held_out_loss=1.0)
    page = Metrics(Health(30.0)).page().decode()
    found = set(re.findall(r"^(?:# TYPE )?(pcmoe_\w+)", page, re.MULTILINE))
    for metric in (*node.metrics(), *CoordinatorPage().metrics()):
        found |= shown(metric)
    return found


@pytest.mark.parametrize("board", sorted((CHART / "dashboards").glob("*.json")), ids=lambda path: path.stem)
def test_a_dashboard_shows_only_metrics_that_there_are(board: Path) -> None:
    used = set(re.findall(r"\bpcmoe_(?!dev)\w+", board.read_text()))
    assert used
    assert used - names() == set()
    for panel in json.loads(board.read_text())["panels"]:
        assert panel["type"] == "row" or panel["targets"], panel["title"]


def test_monitors_choose_pods_by_the_operators_label() -> None:
    text = (CHART / "templates" / "monitors.yaml").read_text()
    assert f"{{key: {CONSORTIUM}, operator: Exists}}" in text
    assert f"__meta_kubernetes_pod_label_{re.sub('[./]', '_', CONSORTIUM)}]" in text
