"""Manifests: what is read, what is refused, and with which sentence."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.builders import FULL, consortium, manifest, put
from tests.unit.bad_manifests import BAD_MANIFESTS, Bad

from pcmoe_operator.agreement import digest
from pcmoe_operator.errors import Fault, ManifestError, UsageError
from pcmoe_operator.plan import make_plan
from pcmoe_operator.rules import RULES
from pcmoe_operator.scalars import canonical_decimal, expert_numbers, expert_ranges
from pcmoe_operator.spec import load, parse, read_yaml


def refused(bad: Bad) -> tuple[Fault, ...]:
    with pytest.raises(ManifestError) as caught:
        parse(manifest(3, bad.changes))
    return caught.value.faults


@pytest.mark.parametrize("bad", BAD_MANIFESTS, ids=lambda bad: bad.name)
def test_a_bad_manifest_is_refused_with_field_value_and_rule(bad: Bad) -> None:
    faults = refused(bad)
    assert bad.rule in [fault.rule for fault in faults]
    sentence = next(str(fault) for fault in faults if fault.rule == bad.rule)
    for fragment in bad.says:
        assert fragment in sentence, sentence


@pytest.mark.parametrize("bad", BAD_MANIFESTS, ids=lambda bad: bad.name)
def test_one_broken_rule_is_one_fault(bad: Bad) -> None:
    assert {fault.rule for fault in refused(bad)} == {bad.rule}


def test_every_rule_between_fields_has_a_bad_manifest() -> None:
    assert {rule.id for rule in RULES} <= {bad.rule for bad in BAD_MANIFESTS}


def test_the_table_has_no_name_twice() -> None:
    names = [bad.name for bad in BAD_MANIFESTS]
    assert len(names) == len(set(names)) >= 40


def test_every_fault_is_told_at_once_in_the_order_of_the_manifest() -> None:
    changes = {
        "agreement.training.inFlight": 9,
        "agreement.training.schedule": "Sequential",
        "agreement.training.seeds": 3,
        "agreement.coordinator": "paris",
        "agreement.transport.mode": "HTTP",
        "agreement.participants[1].name": "Lyon",
        "local": [{"name": "oslo", "device": "CUDA"}],
    }
    with pytest.raises(ManifestError) as caught:
        parse(manifest(3, changes))
    assert [fault.rule for fault in caught.value.faults] == [
        "in-flight-within-step",
        "unknown-field",
        "enum",
        "format",
        "device-has-gpu",
    ]


def test_a_rule_between_fields_is_told_beside_a_broken_field() -> None:
    changes = {
        "agreement.training.inFlight": 9,
        "agreement.transport.mode": "HTTP",
        "agreement.coordinator": "paris",
    }
    with pytest.raises(ManifestError) as caught:
        parse(manifest(3, changes))
    rules = [fault.rule for fault in caught.value.faults]
    assert rules == ["in-flight-within-step", "enum", "coordinator-participates"]


def test_rules_are_asked_beside_a_required_field_that_is_missing_or_broken() -> None:
    changes = {
        "agreement.training.rounds": 0,
        "agreement.id": ...,
        "kind": "Pod",
        "agreement.training.inFlight": 9,
    }
    with pytest.raises(ManifestError) as caught:
        parse(manifest(3, changes | {"agreement.coordinator": "paris"}))
    rules = [fault.rule for fault in caught.value.faults]
    assert rules == ["enum", "bounds", "in-flight-within-step", "coordinator-participates", "required"]


def test_a_rule_is_not_asked_about_a_field_that_is_broken_itself() -> None:
    changes = {"agreement.training.inFlight": 9, "agreement.training.microBatchesPerStep": "many"}
    with pytest.raises(ManifestError) as caught:
        parse(manifest(3, changes))
    assert [fault.path for fault in caught.value.faults] == ["spec.agreement.training.microBatchesPerStep"]


def test_a_manifest_as_the_api_server_returns_it_is_read() -> None:
    raw = manifest(2, {"suspend": True})
    raw["metadata"] |= {"namespace": "default", "uid": "1", "managedFields": [{}], "annotations": {"a": "b"}}
    raw["status"] = {"state": "Running"}
    assert parse(raw).spec.suspend is True


def test_without_local_every_participant_runs_here_with_defaults() -> None:
    assert [entry.name for entry in consortium(3).local] == ["berlin", "lyon", "oslo"]
    assert [entry.name for entry in consortium(3, {"local": [{"name": "oslo"}]}).local] == ["oslo"]


def test_what_is_said_of_a_pod_is_read_and_changes_no_digest() -> None:
    bare, full = consortium(3, {"local": [{"name": "lyon"}]}), consortium(3, {"local": [FULL]})
    entry = full.local_entry("lyon")
    assert entry.resource_name == "nvidia.com/mig-1g.10gb"
    assert bare.local_entry("lyon").resource_name == "nvidia.com/gpu"
    assert entry.template.resources is not None
    assert entry.template.resources.requests == {"cpu": "4", "memory": "64Gi"}
    assert entry.template.tolerations == ({"key": "gpu", "operator": "Exists"},)
    assert digest(full) == digest(bare)
    assert make_plan(full).digest == make_plan(bare).digest


def test_a_file_is_read_as_kubectl_reads_it(tmp_path: Path) -> None:
    file = tmp_path / "manifest.yaml"
    raw = manifest(2, {"agreement.training.optimizer": {"learningRate": "RATE", "maxGradNorm": "NORM"}})
    text = yaml.safe_dump(raw).replace("RATE", "2e-5").replace("NORM", "1")
    file.write_text(text)
    optimizer = load(file).agreement.training.optimizer
    assert (optimizer.learning_rate, optimizer.max_grad_norm) == ("2e-5", "1e+0")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2e-5", 2e-5),
        ("1E5", 1e5),
        (".5", 0.5),
        ("-3", -3),
        ("0", 0),
        ("010", "010"),
        ("1:30", "1:30"),
        ("2026-11-01T00:00:00Z", "2026-11-01T00:00:00Z"),
        ("2026-11-01", "2026-11-01"),
        ("yes", True),
        ("off", False),
        ("~", None),
        ("12e", "12e"),
        ('"2e-5"', "2e-5"),
        (".inf", ".inf"),
    ],
)
def test_scalars_are_those_of_kubectl(text: str, value: object) -> None:
    read = read_yaml(f"key: {text}")["key"]
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: 1\na: 2", "stands twice (line 2)"),
        ("a: [", "not YAML"),
        ("- a", "exactly one object"),
        ("", "holds 0"),
        ("a: 1\n---\nb: 2", "holds 2"),
        ("a: !!python/object:os.system x", "not YAML"),
        ("a: \x00", "not YAML"),
        ("? [a]\n: b", "not YAML"),
        ("a: &x [*x]", "what JSON can hold"),
        ("a: !!binary aGk=", "what JSON can hold"),
        ("a: 1e999", "what JSON can hold"),
        ("[" * 2000, "not YAML"),
    ],
)
def test_text_that_is_not_one_object_is_refused(text: str, reason: str) -> None:
    with pytest.raises(UsageError, match="manifest: ") as caught:
        read_yaml(text)
    assert reason in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="none.yaml: can't be read: No such file"):
        load(tmp_path / "none.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="not UTF-8"):
        load(tmp_path / "binary.yaml")


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("2e-5", "2e-5"),
        ("0.00002", "2e-5"),
        ("20E-6", "2e-5"),
        ("0.950", "9.5e-1"),
        ("1", "1e+0"),
        ("1000", "1e+3"),
        ("0", "0e+0"),
        ("0.000e5", "0e+0"),
        ("12.5", "1.25e+1"),
        ("0.1", "1e-1"),
    ],
)
def test_a_decimal_has_one_form(text: str, canonical: str) -> None:
    assert canonical_decimal(text) == canonical
    assert canonical_decimal(canonical) == canonical


def test_only_finite_decimals_are_decimals() -> None:
    for text in ("NaN", "Infinity", "1e", ""):
        with pytest.raises(ValueError, match="decimal|finite"):
            canonical_decimal(text)


def test_expert_ranges_name_what_they_name() -> None:
    assert expert_numbers("0-3,8") == (0, 1, 2, 3, 8)
    assert expert_ranges((8, 0, 1, 2, 3)) == "0-3,8"
    assert expert_numbers(expert_ranges(tuple(range(64)))) == tuple(range(64))


def _paths(value: Any, path: str = "") -> Iterator[str]:
    for key, child in value.items() if isinstance(value, dict) else enumerate(value):
        where = f"{path}[{key}]" if isinstance(value, list) else f"{path}.{key}".lstrip(".")
        yield where
        if isinstance(child, dict | list):
            yield from _paths(child, where)


RICH = {
    "roster": [{"name": "lyon", "endpoint": "lyon.example:443"}],
    "local": [{**FULL, "dataset": {"path": "a.jsonl"}}],
    "agreement.experts.pinned": [{"participant": "lyon", "experts": "0-7"}],
    "agreement.experts.placement": "Pinned",
    "agreement.experts.localLayers": {"atStart": 0, "atEnd": 1},
}


@pytest.mark.parametrize("path", list(_paths(manifest(3, RICH))))
def test_any_value_anywhere_is_either_taken_or_refused_as_a_manifest(path: str) -> None:
    junk: list[Any] = [
        None,
        True,
        -1,
        0,
        2.5,
        10**30,
        "",
        "x",
        "\u0000",
        [],
        [[]],
        [None],
        {},
        {"": None},
        {"name": []},
        ...,
    ]
    for value in junk:
        raw = manifest(3, RICH)
        put(raw, path, value)
        try:
            make_plan(parse(raw))
        except ManifestError as error:
            assert error.faults
            assert all(fault.path and fault.rule and fault.message for fault in error.faults)


def test_a_manifest_is_never_changed_by_reading_it() -> None:
    raw = manifest(3, {"agreement.training.bogus": 1, "status": {}})
    before = json.dumps(raw)
    with pytest.raises(ManifestError):
        parse(raw)
    assert json.dumps(raw) == before
