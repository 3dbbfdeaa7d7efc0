"""A real Prometheus reads real processes, and every panel and alert finds what it asks for."""

import json
import re
import subprocess
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from pathlib import Path

import pytest
import yaml
from tests.cluster.plane import ControlPlane
from tests.faults.consortium import running
from tests.integration.operating import Operated, operated
from tests.monitoring.prometheus import Prometheus, Target, at_once
from tests.monitoring.trained import NAME, NAMESPACE, configs_of, targets
from tools.dashboards.__main__ import BOARDS, FOLDER
from tools.dashboards.look import Source, page

RULES = FOLDER.parent / "files" / "alerts.yaml"
OPERATOR = "pcmoe-system"
pytestmark = pytest.mark.timeout(240)
CHOSEN = {
    "consortium": {"namespace": NAMESPACE, "consortium": NAME, "participant": ".*"},
    "participant": {"namespace": NAMESPACE, "consortium": NAME, "participant": "amsterdam"},
    "operator": {"namespace": OPERATOR},
}
"""What is chosen at the top of each dashboard."""
EMPTY = {
    r"pcmoe_node_(gpu|torch)_": "these nodes have no GPU",
    r"^sum by \(reason\) \(pcmoe_operator_consortia_failed\{.*\}\) > 0$": "no consortium has failed",
    r"^max by .* \(ALERTS\{": "no alert fires",
    r"^sum by \(reason\) \(pcmoe_node_refused_connections_total\{.*\}\) > 0$": "nobody was refused",
}
"""Queries that rightly find nothing here, by what they look like, and why."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """All that runs."""

    prometheus: Prometheus
    targets: list[Target]


@pytest.fixture(scope="module")
def scene(
    own_plane: ControlPlane, monitoring_programs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Scene]:
    """Two nodes and a coordinator that train, and an operator with a consortium to look after."""
    folder = tmp_path_factory.mktemp("scraped")
    rules = folder / "rules.yaml"
    rules.write_text(at_once(RULES.read_text()))
    with (
        own_plane.namespace() as namespace,
        operated(own_plane, namespace, folder, Operated) as operator,
        running(configs_of(folder)) as consortium,
    ):
        operator.until_looked()
        operator.apply()
        listen = f"127.0.0.1:{operator.settings()['metricsPort']}"
        looked_after = Target(listen=listen, labels={"namespace": OPERATOR, "pod": "pcmoe-operator-x"})
        pages = [*targets(consortium), looked_after]
        consortium.round(7)
        with Prometheus(monitoring_programs["prometheus"], folder / "prometheus", pages, rules) as prometheus:
            prometheus.until(f"count(up == 1) == {len(pages)}")
            prometheus.until(f"count(rate(pcmoe_node_replies_total[30s]) > 0) == {len(consortium.configs)}")
            prometheus.until("sum(pcmoe_operator_consortia) > 0")
            prometheus.until("sum(rate(pcmoe_operator_reconciles_total[30s])) > 0")
            yield Scene(prometheus=prometheus, targets=pages)


def queries() -> Iterator[tuple[str, str, str]]:
    """Dashboard, panel and expression of every query."""
    for name in BOARDS:
        board = name.removesuffix(".json")
        for panel in json.loads((FOLDER / name).read_text())["panels"]:
            for target in panel.get("targets", ()):
                expression = target["expr"]
                for variable, value in {**CHOSEN[board], "__rate_interval": "30s"}.items():
                    expression = re.sub(rf"\${variable}\b", value, expression)
                yield board, panel["title"], expression


def expected_empty(expression: str) -> bool:
    """Whether it is on the list."""
    return any(re.search(pattern, expression) for pattern in EMPTY)


def test_every_page_is_read_whole_and_judged_well(scene: Scene, promtool: Path) -> None:
    for target in scene.targets:
        with urllib.request.urlopen(f"http://{target.listen}/metrics", timeout=10) as answer:
            text = answer.read()
        done = subprocess.run(
            [promtool, "check", "metrics"], input=text, capture_output=True, timeout=60, check=False
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b""), target.labels


def test_every_panel_finds_what_it_asks_for(scene: Scene) -> None:
    found = {
        (board, panel, expression): bool(scene.prometheus.query(expression))
        for board, panel, expression in queries()
    }
    assert len(found) > 90
    assert [where for where, there in found.items() if there == expected_empty(where[2])] == []


@pytest.mark.parametrize("pattern", EMPTY)
def test_what_may_find_nothing_is_asked_for(pattern: str) -> None:
    assert any(re.search(pattern, expression) for _, _, expression in queries())


def test_every_series_that_an_alert_looks_at_is_there(scene: Scene) -> None:
    expressions = [
        rule["expr"] for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]
    ]
    asked = {each for expression in expressions for each in scene.prometheus.selectors(expression)}
    assert len(asked) > 20
    missing = [each for each in asked if not scene.prometheus.query(each)]
    assert [each for each in missing if not re.search(r"pcmoe_node_(gpu|torch)_", each)] == []


def test_no_alert_fires_while_all_is_well(scene: Scene) -> None:
    assert scene.prometheus.firing() == set()


def test_variables_of_dashboards_have_values(scene: Scene) -> None:
    for name in BOARDS:
        for variable in json.loads((FOLDER / name).read_text())["templating"]["list"]:
            if variable["type"] == "query":
                selector = re.sub(
                    r"label_values\((.*),(\w+)\)", r"count by (\2) (\1)", variable["query"]["query"]
                )
                for chosen, value in CHOSEN[name.removesuffix(".json")].items():
                    selector = selector.replace(f"${chosen}", value)
                assert all(variable["name"] in labels for labels, _ in scene.prometheus.query(selector))
                assert scene.prometheus.query(selector), selector


@pytest.mark.parametrize("board", CHOSEN)
def test_a_dashboard_can_be_looked_at_without_grafana(scene: Scene, board: str) -> None:
    source = Source(url=scene.prometheus.url, minutes=5, rate="30s")
    html = page(source, board, {})
    expressions = [(panel, expression) for name, panel, expression in queries() if name == board]
    titles = {panel for panel, _ in expressions}
    assert [title for title in titles if f"<h3>{escape(title)}</h3>" not in html] == []
    full = {panel for panel, expression in expressions if not expected_empty(expression)}
    assert html.count("class='soft empty'") == len(titles - full)
