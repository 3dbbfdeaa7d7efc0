"""Alerts fire when they should and not otherwise; each has its section in the runbook."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.cluster import build
from tests.monitoring.prometheus import at_once

ROOT = Path(__file__).parents[2]
RULES = ROOT / "charts" / "pcmoe" / "files" / "alerts.yaml"
TESTS = Path(__file__).with_name("alerts_test.yaml")
RUNBOOK = ROOT / "docs" / "runbook.md"
PARTS = ("Means", "Look at", "Do", "Harmless")


def rules() -> dict[str, dict[str, Any]]:
    """Every rule by the name of its alert."""
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return {rule["alert"]: rule for group in groups for rule in group["rules"]}


def sections() -> dict[str, str]:
    """The runbook's sections by their headings."""
    _, *parts = re.split(r"^## (.+)\n", RUNBOOK.read_text(), flags=re.MULTILINE)
    return dict(zip(parts[::2], parts[1::2], strict=True))


def judged(promtool: Path, *arguments: str | Path) -> None:
    """promtool finds nothing."""
    done = subprocess.run(
        [promtool, *arguments], capture_output=True, text=True, timeout=60, check=False, cwd=TESTS.parent
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_programs_say_the_version_that_was_built(monitoring_programs: dict[str, Path]) -> None:
    asked = build.required(build.PROMETHEUS)  # v0.315.1 is the module of the release 3.15.1
    found = re.fullmatch(r"v0\.(\d)(\d\d)\.(\d+)", asked)
    assert found is not None
    version = f"version {found[1]}.{int(found[2])}.{found[3]} "
    for program in monitoring_programs.values():
        done = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=60, check=True)
        assert version in done.stdout


def test_prometheus_can_read_every_rule(promtool: Path) -> None:
    judged(promtool, "check", "rules", "--lint=all", "--lint-fatal", RULES)


def test_alerts_fire_when_they_should_and_say_what_they_should(promtool: Path) -> None:
    judged(promtool, "test", "rules", TESTS)


def test_every_alert_was_seen_to_fire_and_not_to_fire() -> None:
    asked: dict[str, set[bool]] = {name: set() for name in rules()}
    for test in yaml.safe_load(TESTS.read_text())["tests"]:
        for each in test["alert_rule_test"]:
            asked[each["alertname"]].add(bool(each["exp_alerts"]))
    assert {name for name, seen in asked.items() if seen != {True, False}} == set()


def test_every_alert_is_provoked_in_real_processes_too() -> None:
    tests = "".join(path.read_text() for path in TESTS.parent.glob("test_provoked*.py"))
    assert set(re.findall(r'until_fires\("(\w+)"', tests)) == set(rules())


def test_every_alert_has_its_section_in_the_runbook_and_every_section_its_alert() -> None:
    assert list(sections()) == list(rules())


def test_the_runbook_leads_to_every_section_from_its_top() -> None:
    top = RUNBOOK.read_text().split("\n## ", 1)[0]
    assert re.findall(r"\[(PCMoE\w+)\]\(#(\w+)\)", top) == [(name, name.lower()) for name in rules()]


@pytest.mark.parametrize("alert", rules())
def test_a_section_says_what_it_means_what_to_look_at_what_to_do_and_when_it_is_harmless(alert: str) -> None:
    assert tuple(re.findall(r"^\*\*([\w ]+)(?:\.\*\*|\*\*)", sections()[alert], re.MULTILINE)) == PARTS


def test_links_of_the_runbook_lead_somewhere() -> None:
    text = RUNBOOK.read_text()
    anchors = {heading.lower() for heading in sections()}
    for path, anchor in re.findall(r"\]\(([^)#]*)(?:#([^)]*))?\)", text):
        target = RUNBOOK.parent / path
        assert target.exists(), path
        if not path:
            assert anchor in anchors
        elif anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w\- ]", "", each).lower().replace(" ", "-") for each in headings}


@pytest.mark.parametrize("alert", rules())
def test_an_alert_has_a_severity_and_names_whom_it_is_about(alert: str) -> None:
    rule = rules()[alert]
    assert rule["labels"].keys() == {"severity"} and rule["labels"]["severity"] in ("critical", "warning")
    assert rule["annotations"].keys() == {"summary", "description"}
    words = " ".join(rule["annotations"].values())
    named = "namespace" if "pcmoe_operator_" in rule["expr"] else "consortium"
    assert f"$labels.{named}" in words


def test_what_has_to_last_for_minutes_can_be_made_to_last_for_seconds() -> None:
    text = at_once(RULES.read_text(), 2)
    assert {rule.get("for") for rule in _of(text)} == {None, "2s"}
    changed = [rule["alert"] for rule in _of(text) if rule["expr"] != rules()[rule["alert"]]["expr"]]
    assert changed == ["PCMoEQueueStuck"]


def _of(text: str) -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(text)["groups"] for rule in group["rules"]]
