"""docs/operator.md says what the code says: its tables, the conditions, the names of values, and where links lead."""

import json
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import pytest
import yaml
from tests.builders import consortium
from tools.operator_tables import PAGE, ROOT, rendered

from pcmoe_operator import served_crd
from pcmoe_operator.conditions import status_of
from pcmoe_operator.objects.names import of_participant
from pcmoe_operator.observe import observe
from pcmoe_operator.reasons import Reason
from pcmoe_operator.settings import Settings
from pcmoe_operator.spec import load
from pcmoe_operator.standing import Intent, Observation

TEXT = PAGE.read_text()
VALUES = yaml.safe_load((ROOT / "charts" / "pcmoe" / "values.yaml").read_text())
STATES = {"Invalid", "Suspended", "Pending", "Loading", "Waiting", "Running", "Completed", "Failed"}


def section(title: str) -> str:
    """The text below a heading, to the next one."""
    return TEXT.split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]


def blocks(language: str, text: str = TEXT) -> list[str]:
    """Blocks of code in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def test_tables_are_those_that_the_code_makes() -> None:
    assert rendered(TEXT) == TEXT, "run: python tools/operator_tables.py"


def test_every_reason_has_a_row() -> None:
    rows = re.findall(r"^\| `(\w+)` \|", section("State, conditions, reasons"), re.MULTILINE)
    assert set(Reason.__members__) <= set(rows)
    assert served_crd.REASON in section("State, conditions, reasons")


def test_every_condition_is_told_with_reasons_that_there_are() -> None:
    made = consortium(2)
    observation = Observation(
        generation=1,
        consortium=made,
        plan_digest="",
        seen=observe("hospitals", made.names, 1, [], []),
        coordinator=None,
        nodes={},
        intent=Intent.RUN,
        release=None,
        restarts_allowed=10,
    )
    status = status_of(None, observation, datetime.now(UTC))
    text = section("State, conditions, reasons")
    rows = re.search(r"\| condition \|.*?\n\n", text, re.DOTALL)
    assert rows is not None
    told = re.findall(r"^\| `(\w+)` \|", rows[0], re.MULTILINE)
    assert told == [each["type"] for each in status["conditions"]]
    named = set(re.findall(r"`([A-Z]\w+)`", rows[0])) - set(told)
    assert named - {served_crd.REASON} <= set(Reason.__members__)


def test_every_state_is_told() -> None:
    first = section("State, conditions, reasons").split("Programs read conditions")[0]
    assert {word for word in re.findall(r"`(\w+)`", first) if word != "STATE"} == STATES


def keys(value: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """Paths of all that a mapping says."""
    for name, inner in value.items():
        yield f"{path}{name}"
        if isinstance(inner, Mapping):
            yield from keys(inner, f"{path}{name}.")


def test_values_that_are_named_are_the_charts() -> None:
    (block,) = blocks("yaml", section("Install"))
    assert set(keys(yaml.safe_load(block))) <= set(keys(VALUES))
    top = "|".join(VALUES)
    named = set(re.findall(rf"`((?:{top})\.\w+(?:\.\w+)*)(?::[^`]*)?`", TEXT))
    assert len(named) > 5
    assert named <= set(keys(VALUES))


@pytest.mark.parametrize("field", ["node_port", "status_port", "metrics_port"])
def test_ports_are_those_of_the_settings(field: str) -> None:
    assert f"| {Settings.model_fields[field].default} TCP |" in section("Network")


def test_examples_in_yaml_can_be_read() -> None:
    assert all(all(yaml.safe_load_all(block)) for block in blocks("yaml"))


def test_the_claims_of_the_first_consortium_are_filled_so_that_its_nodes_can_read_them() -> None:
    text = section("The first consortium")
    (block,) = blocks("yaml", text)
    *claims, pod = yaml.safe_load_all(block)
    sample = load(ROOT / "manifests" / "samples" / "suspended.yaml")
    given = [entry.volumes.dataset for entry in sample.local]
    wanted = [
        each.persistent_volume_claim.claim_name for each in given if each and each.persistent_volume_claim
    ]
    assert [claim["metadata"]["name"] for claim in claims] == wanted
    (held,) = pod["spec"]["containers"]
    claimed = {each["name"]: each["persistentVolumeClaim"]["claimName"] for each in pod["spec"]["volumes"]}
    places = {claimed[each["name"]]: each["mountPath"] for each in held["volumeMounts"]}
    for entry, claim in zip(sample.local, wanted, strict=True):
        copied = re.search(rf"kubectl cp .* (\S+) records:{places[claim]}/{entry.dataset.path}\n", text)
        assert copied is not None
        lines = (ROOT / copied[1]).read_text().splitlines()
        assert all(isinstance(json.loads(line)[entry.dataset.text_field], str) for line in lines)
    user = Settings.model_fields["volume_group"].default
    assert f"USER {user}:{user}" in (ROOT / "node" / "Dockerfile").read_text()
    assert pod["spec"]["securityContext"] == {
        "runAsNonRoot": True,
        **dict.fromkeys(("runAsUser", "runAsGroup", "fsGroup"), user),
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    restricted = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    assert held["securityContext"] == restricted


def test_names_of_objects_are_those_of_the_code() -> None:
    assert of_participant("NAME", "PARTICIPANT") == "NAME.PARTICIPANT"
    assert "PersistentVolumeClaim `NAME.PARTICIPANT`" in TEXT


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)?(?:#[^)]*)?\)", TEXT):
        assert not target or (PAGE.parent / target).exists(), target
    headings = re.findall(r"^#+ (.*)$", TEXT, re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}
    assert set(re.findall(r"\]\(#([^)]*)\)", TEXT)) <= anchors


def test_the_readme_leads_to_it() -> None:
    assert "(docs/operator.md)" in (ROOT / "README.md").read_text()


def test_no_more_is_claimed_than_was_tested() -> None:
    for sentence in (
        "**Tested: Kubernetes 1.36.3.**",
        "**Enforcement was not tested**",
        "**Not tested on OpenShift**",
        "text-equivalent to whoever receives them",
    ):
        assert sentence in " ".join(TEXT.replace("> ", "").split()), sentence
