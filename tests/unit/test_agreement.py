"""The agreement's canonical form and digest: golden vectors, and what may and may not change them."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from tests.builders import OLMOE, architecture, consortium, manifest

from pcmoe_operator.agreement import canonical, differences, digest
from pcmoe_operator.constants import MAX_AGREEMENT_BYTES
from pcmoe_operator.spec import load, parse, read_yaml

GOLDEN = sorted((Path(__file__).parent / "golden").glob("*.yaml"))


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_a_golden_manifest_has_its_canonical_text_and_digest(path: Path) -> None:
    expected = path.with_suffix(".json").read_text(encoding="utf-8").splitlines()
    made = load(path)
    assert canonical(made) == expected[0]
    assert digest(made) == expected[1]


def test_there_are_golden_manifests() -> None:
    assert [path.stem for path in GOLDEN] == ["everything", "minimal", "pinned"]


def test_a_field_that_says_its_default_changes_nothing() -> None:
    said = {
        "agreement.transport.connections": 2,
        "agreement.experts": {"placement": "RoundRobin", "localLayers": {"atEnd": 1}},
        "agreement.checkpoint": {},
        "agreement.training.seed": 7,
        "agreement.participants[0].capacity": 1,
        "agreement.training.optimizer.maxGradNorm": "1.000",
    }
    assert digest(consortium(2, said)) == digest(consortium(2))


def test_every_default_of_the_api_server_changes_nothing() -> None:
    crd = read_yaml((Path(__file__).parents[2] / "manifests" / "crd.yaml").read_text())
    schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    raw = manifest(3, {"agreement.training.optimizer": ..., "agreement.transport": ...})
    assert digest(parse(_defaulted(raw, schema))) == digest(parse(raw))


def _defaulted(value: Any, schema: Any) -> Any:
    if isinstance(value, dict):
        filled = dict(value)
        for name, child in schema.get("properties", {}).items():
            if name in filled or "default" in child:
                filled[name] = _defaulted(filled.get(name, copy.deepcopy(child.get("default"))), child)
        return filled
    return [_defaulted(item, schema["items"]) for item in value] if isinstance(value, list) else value


def test_the_order_of_participants_pins_and_keys_changes_nothing() -> None:
    pins = [{"participant": "berlin", "experts": "0-3"}, {"participant": "lyon", "experts": "4-7"}]
    one = manifest(2, {"agreement.experts": {"placement": "Pinned", "pinned": pins}})
    other = json.loads(json.dumps(one))
    other["spec"]["agreement"]["participants"].reverse()
    other["spec"]["agreement"]["experts"]["pinned"].reverse()
    other["spec"]["agreement"] = dict(sorted(other["spec"]["agreement"].items(), reverse=True))
    assert digest(parse(one)) == digest(parse(other))


@pytest.mark.parametrize("rate", ["0.001", "1e-3", "1E-3", "0.0010", "10e-4"])
def test_a_decimal_counts_by_its_value(rate: str) -> None:
    assert digest(consortium(2, {"agreement.training.optimizer.learningRate": rate})) == digest(consortium(2))


def test_the_configuration_counts_by_its_value_and_text_by_its_composed_form() -> None:
    spaced = json.dumps(dict(sorted(OLMOE.items(), reverse=True)), indent=2)
    assert digest(consortium(2, config=spaced)) == digest(consortium(2, config=architecture()))
    composed = architecture(note="caf\u00e9")
    decomposed = architecture(note="cafe\u0301")
    raw = architecture(note="x").replace('"x"', '"cafe\u0301"')
    assert digest(consortium(2, config=composed)) == digest(consortium(2, config=decomposed))
    assert digest(consortium(2, config=composed)) == digest(consortium(2, config=raw))


def test_roster_and_local_are_not_agreed_on() -> None:
    own = {
        "suspend": True,
        "attempt": 2,
        "roster": [{"name": "lyon", "endpoint": "lyon.example:443"}],
        "local": [{"name": "lyon", "cpuThreads": 2}],
        "metadata.name": "another",
    }
    assert digest(consortium(2, own)) == digest(consortium(2))


def test_whatever_is_agreed_on_changes_the_digest() -> None:
    changes: list[dict[str, Any]] = [
        {"agreement.id": "other"},
        {"agreement.training.seed": 8},
        {"agreement.participants[1].capacity": 2},
        {"agreement.coordinator": "lyon"},
        {"agreement.model.source.config": architecture(num_experts=4)},
        {"agreement.transport.maxAbs": "1e5"},
    ]
    digests = {digest(consortium(2, change)) for change in changes}
    assert len(digests | {digest(consortium(2))}) == len(changes) + 1


def test_differences_are_paths_with_both_values() -> None:
    first = consortium(2)
    second = consortium(
        3,
        {
            "agreement.training.seed": 8,
            "agreement.training.optimizer.learningRate": "2e-3",
            "agreement.participants[1].capacity": 5,
        },
        config=architecture(num_experts=4),
    )
    assert differences(canonical(first), canonical(second)) == [
        ("spec.agreement.model.source.config.num_experts", 8, 4),
        ("spec.agreement.participants[lyon].capacity", None, 5),
        ("spec.agreement.participants[oslo].name", None, "oslo"),
        ("spec.agreement.training.optimizer.learningRate", "1e-3", "2e-3"),
        ("spec.agreement.training.seed", None, 8),
    ]
    assert differences(canonical(first), canonical(first)) == []


def test_the_largest_agreement_fits_what_peers_may_send() -> None:
    names = [f"p{i:02}" + "x" * 25 for i in range(64)]
    pins = [
        {"participant": name, "experts": ",".join(str(e) for e in range(i, 512, 64))}
        for i, name in enumerate(names)
    ]
    config = architecture(num_experts=512, note="n" * 15_500)
    made = consortium(names, {"agreement.experts": {"placement": "Pinned", "pinned": pins}}, config=config)
    assert len(canonical(made).encode()) <= MAX_AGREEMENT_BYTES


def test_a_whole_float_stays_one_for_the_node_and_is_a_number_like_any_other_in_the_digest() -> None:
    floats, ints = (
        consortium(2, config=architecture(clip_qkv=8.0)),
        consortium(2, config=architecture(clip_qkv=8)),
    )
    assert '"clip_qkv":8.0' in floats.config
    assert digest(floats) == digest(ints)
