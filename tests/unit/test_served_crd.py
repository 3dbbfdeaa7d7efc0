"""Which fields the operator needs, which a served CRD lacks, and what is said then."""

import asyncio
import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from pcmoe_operator.cluster import Cluster, ClusterError, Object
from pcmoe_operator.constants import KIND
from pcmoe_operator.served_crd import ServedCRD, _served, missing, needed, refused, sentence

CRD = yaml.safe_load((Path(__file__).parents[2] / "manifests" / "crd.yaml").read_text())
SCHEMA = CRD["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
NOW = "2026-01-01T00:00:00Z"


def document(*without: str) -> dict[str, Any]:
    """The OpenAPI document of the CRD without some properties, such as `spec.suspend`."""
    schema = copy.deepcopy(SCHEMA)
    for path in without:
        *outer, last = path.split(".")
        inner = schema
        for name in outer:
            inner = inner["properties"][name.removesuffix("[]")]
            inner = inner["items"] if name.endswith("[]") else inner
        del inner["properties"][last]
    marked = {**schema, "x-kubernetes-group-version-kind": [{"kind": KIND}]}
    return {"components": {"schemas": {"ours": marked, "list": {"type": "object"}}}}


def test_what_is_needed_is_what_the_crd_of_this_version_has() -> None:
    head = {"apiVersion", "kind", "metadata"}
    assert needed() == set(_served(SCHEMA)) - head
    assert missing(document()) == ()


@pytest.mark.parametrize(
    ("path", "lacks"),
    [
        ("spec.suspend", ("spec.suspend",)),
        ("spec.local[].volumes.checkpoint.size", ("spec.local[].volumes.checkpoint.size",)),
        ("status.attempt", ("status.attempt",)),
        ("status.participants[].node", ("status.participants[].node",)),
        ("status.agreement", ("status.agreement.active", "status.agreement.plan")),
    ],
)
def test_a_field_that_is_not_served_is_missing_wherever_it_is(path: str, lacks: tuple[str, ...]) -> None:
    assert missing(document(path)) == lacks


def test_a_field_that_only_a_newer_crd_has_is_no_matter() -> None:
    newer = document()
    newer["components"]["schemas"]["ours"]["properties"]["spec"]["properties"]["later"] = {"type": "string"}
    assert missing(newer) == ()


def test_a_document_without_the_kind_lacks_all() -> None:
    assert set(missing({})) == needed()


def test_it_is_said_which_fields_and_what_to_do() -> None:
    said = sentence(tuple("abcdefg"))
    assert "it lacks a, b, c, d, e and 2 more; apply the crd.yaml of the operator's version" in said


def test_what_was_said_of_a_consortium_stays_beside_it() -> None:
    conditions = [
        {"type": "Accepted", "status": "True", "reason": "Accepted", "lastTransitionTime": "before"},
        {"type": "Ready", "status": "True", "reason": "InView", "lastTransitionTime": "before"},
    ]
    raw = {"metadata": {"generation": 3}, "status": {"state": "Running", "conditions": conditions}}
    status = refused(raw, ("spec.suspend",), NOW)
    assert status["state"] == "Running"
    accepted, ready = status["conditions"]
    assert ready == conditions[1]
    assert (accepted["status"], accepted["reason"], accepted["lastTransitionTime"]) == (
        "False",
        "CRDTooOld",
        NOW,
    )
    assert accepted["observedGeneration"] == 3
    again = refused({**raw, "status": status}, ("spec.suspend",), "later")
    assert again == status


def test_a_condition_has_no_field_that_is_not_served() -> None:
    raw = {"metadata": {"generation": 3}}
    [condition] = refused(raw, ("status.conditions[].observedGeneration",), NOW)["conditions"]
    assert "observedGeneration" not in condition


class Answers:
    """Requests that are answered from a list of documents and errors."""

    def __init__(self, *answers: dict[str, Any] | ClusterError) -> None:
        self._answers = list(answers)

    async def __call__(
        self, method: str, path: str, query: Mapping[str, str], body: Object | None, content_type: str
    ) -> Object:
        if not path.startswith("/openapi"):
            return {"resources": [{"kind": KIND}]}
        answer = self._answers.pop(0)
        if isinstance(answer, ClusterError):
            raise answer
        return answer


def looks(*answers: dict[str, Any] | ClusterError) -> list[tuple[bool, tuple[str, ...], int]]:
    """After a look at each answer: whether it told anything, what is missing, how often that has changed."""
    changes: list[int] = []

    async def all_of_them() -> list[tuple[bool, tuple[str, ...], int]]:
        found = ServedCRD(Cluster(Answers(*answers)), lambda: changes.append(1))
        return [(await found.look(), found.missing, len(changes)) for _ in answers]

    return asyncio.run(all_of_them())


def test_a_change_of_what_is_missing_is_told_once() -> None:
    old = document("spec.suspend")
    lacks = ("spec.suspend",)
    assert looks(document(), old, old, document()) == [
        (True, (), 0),
        (True, lacks, 1),
        (True, lacks, 1),
        (True, (), 2),
    ]


def test_no_answer_changes_nothing_and_one_that_is_forbidden_counts_as_good() -> None:
    lost, absent, forbidden = (ClusterError("GET /openapi", status, "planted") for status in (500, 404, 403))
    assert looks(document("spec.suspend"), lost, absent, forbidden) == [
        (True, ("spec.suspend",), 1),
        (False, ("spec.suspend",), 1),
        (False, ("spec.suspend",), 1),
        (True, (), 1),
    ]
