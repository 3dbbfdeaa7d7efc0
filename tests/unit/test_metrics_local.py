"""Where a local run's metrics are, as a Prometheus on the same machine is told."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.builders import manifest

from pcmoe_node.config import CoordinatorConfig, NodeConfig
from pcmoe_operator.local.prepare import prepare, resume

NAMES = ("berlin", "lyon")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a run that was made and not started."""
    path = tmp_path / "manifest.yaml"
    path.write_text(yaml.safe_dump(manifest(NAMES)))
    for name in NAMES:
        folder = tmp_path / "volumes" / name / "dataset"
        folder.mkdir(parents=True)
        (folder / "train.jsonl").write_text('{"text": "a"}\n')
    return prepare(path, tmp_path / "run").folder.path


def targets(run: Path) -> list[dict[str, Any]]:
    """What `file_sd_configs` would read."""
    found: list[dict[str, Any]] = json.loads((run / "prometheus-targets.json").read_text())
    return found


def listening(run: Path) -> dict[str, str]:
    """Where each process is told to show its metrics."""
    nodes = {name: NodeConfig.load(run / name / "config.json").status_listen for name in NAMES}
    return {"": CoordinatorConfig.load(run / "coordinator" / "config.json").status_listen, **nodes}


def test_targets_are_where_every_process_listens_with_the_labels_of_its_pod(run: Path) -> None:
    found = {each["labels"].get("participant", ""): each for each in targets(run)}
    assert {name: each["targets"] for name, each in found.items()} == {
        name: [address] for name, address in listening(run).items()
    }
    assert found[""]["labels"] == {"consortium": "hospitals"}
    assert found["lyon"]["labels"] == {"consortium": "hospitals", "participant": "lyon"}


def test_a_resumed_run_has_new_ports_and_its_targets_name_them(run: Path) -> None:
    before = targets(run)
    resume(run)
    after = {each["labels"].get("participant", ""): each["targets"] for each in targets(run)}
    assert after == {name: [address] for name, address in listening(run).items()}
    assert targets(run) != before


def test_targets_are_in_the_form_that_prometheus_reads(run: Path) -> None:
    for each in targets(run):
        assert set(each) == {"targets", "labels"}
        assert all(isinstance(value, str) for value in each["labels"].values())
        assert not [target for target in each["targets"] if "/" in target], "host:port, no URL"
    assert (run / "prometheus-targets.json").stat().st_mode & 0o077 == 0
