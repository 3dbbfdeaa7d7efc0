"""`manifests/crd.yaml` and `schema.py` say the same, and the CRD alone refuses what it can."""

import copy
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import jsonschema
import pytest
from pydantic import AfterValidator, BaseModel
from pydantic.fields import FieldInfo
from tests.builders import FULL, manifest
from tests.unit.bad_manifests import BAD_MANIFESTS, Bad

from pcmoe_operator.constants import GROUP, KIND, RESERVED_ANNOTATIONS, RESERVED_LABELS, VERSION
from pcmoe_operator.scalars import Between, canonical_decimal, number_as_text
from pcmoe_operator.schema import Spec
from pcmoe_operator.spec import read_yaml

CRD = read_yaml((Path(__file__).parents[2] / "manifests" / "crd.yaml").read_text())
SERVED = CRD["spec"]["versions"][0]
SCHEMA = SERVED["schema"]["openAPIV3Schema"]
SPEC = SCHEMA["properties"]["spec"]

Facts = dict[str, Any]

STORAGE = "local: where this participant's own files are"
MACHINE = "local: which machine runs this participant, and how"

MARKS = {
    "suspend": "local: pauses what runs here",
    "managedBy": "local: who looks after this object",
    "attempt": "local: a new start of what runs here",
    "roster[].name": "roster",
    "roster[].endpoint": "roster",
    "roster[].caBundle": "roster",
    "local[].name": "local: which participants run here",
    "local[].gpus": "local: this participant's speed and memory",
    "local[].resourceName": "local: this participant's speed and memory",
    "local[].device": "local: this participant's speed",
    "local[].gradientCheckpointing": "local: this participant's memory; the cut sends nothing twice",
    "local[].cpuThreads": "local: this participant's speed",
    "local[].dataset.path": "local: this participant's own records",
    "local[].dataset.format": "local: this participant's own records",
    "local[].dataset.textField": "local: this participant's own records",
    "local[].dataset.heldOutPercent": "local: this participant's own records",
    "local[].volumes.dataset.persistentVolumeClaim.claimName": STORAGE,
    "local[].volumes.dataset.image.reference": STORAGE,
    "local[].volumes.dataset.image.pullPolicy": STORAGE,
    "local[].volumes.model.persistentVolumeClaim.claimName": f"{STORAGE}; peers compare its fingerprint",
    "local[].volumes.model.image.reference": f"{STORAGE}; peers compare its fingerprint",
    "local[].volumes.model.image.pullPolicy": STORAGE,
    "local[].volumes.checkpoint.persistentVolumeClaim.claimName": STORAGE,
    "local[].volumes.checkpoint.size": STORAGE,
    "local[].volumes.checkpoint.storageClassName": STORAGE,
    "local[].volumes.checkpoint.onDelete": STORAGE,
    "local[].template.nodeSelector": MACHINE,
    "local[].template.tolerations": MACHINE,
    "local[].template.affinity": MACHINE,
    "local[].template.topologySpreadConstraints": MACHINE,
    "local[].template.resources.requests": MACHINE,
    "local[].template.resources.limits": MACHINE,
    "local[].template.resourceClaims[].name": MACHINE,
    "local[].template.resourceClaims[].resourceClaimName": MACHINE,
    "local[].template.resourceClaims[].resourceClaimTemplateName": MACHINE,
    "local[].template.runtimeClassName": MACHINE,
    "local[].template.priorityClassName": MACHINE,
    "local[].template.schedulerName": MACHINE,
    "local[].template.imagePullSecrets[].name": MACHINE,
    "local[].template.image": "local: what a partner runs; nobody else can know it anyway",
    "local[].template.labels": MACHINE,
    "local[].template.annotations": MACHINE,
}
"""Every field not agreed on. Local is only what no other party's work, exposure or limits depend on."""


def crd_facts(node: Any, path: str = "") -> Iterator[tuple[str, Facts]]:
    """(path, facts) of every field of the CRD's spec."""
    for name, child in node.get("properties", {}).items():
        where = f"{path}.{name}".lstrip(".")
        kind = child["type"]
        facts = {
            "type": kind,
            "required": name in node.get("required", ()),
            "default": child.get("default"),
            "enum": child.get("enum"),
            "low": child.get("minimum", child.get("minLength", child.get("minItems"))),
            "high": first_of(child, "maximum", "maxLength", "maxItems", "maxProperties"),
            "values": value_facts(child.get("additionalProperties")),
            "handed on": bool(child.get("items", child).get("x-kubernetes-preserve-unknown-fields")),
            "pattern": child.get("pattern"),
            "decimal": [
                r["rule"] for r in child.get("x-kubernetes-validations", ()) if "double(" in r["rule"]
            ],
        }
        if facts["decimal"] and facts["default"] is not None:
            facts["default"] = canonical_decimal(facts["default"])
        yield where, facts
        if kind == "array" and child["items"]["type"] == "object":
            yield from crd_facts(child["items"], f"{where}[]")
        yield from crd_facts(child, where)


def first_of(node: Any, *keys: str) -> Any:
    return next((node[key] for key in keys if key in node), None)


def value_facts(node: Any) -> Facts | None:
    """Facts of the values of a map; a quantity may be a number too."""
    if node is None:
        return None
    number = node.get("x-kubernetes-int-or-string", False)
    return {"high": node.get("maxLength"), "pattern": node.get("pattern"), "number": number}


def type_facts(model: type[BaseModel], path: str = "") -> Iterator[tuple[str, Facts]]:
    """(path, facts) of every field of the types."""
    for name, info in model.model_fields.items():
        where = f"{path}.{info.alias or name}".lstrip(".")
        annotation, metadata = unwrapped(info.annotation, list(info.metadata))
        item = get_args(annotation)[0] if get_origin(annotation) is tuple else None
        nested = isinstance(annotation, type) and issubclass(annotation, BaseModel)
        default = None if info.is_required() or info.default == () else info.default
        yield (
            where,
            {
                "type": json_type(annotation),
                "required": info.is_required(),
                "default": {} if isinstance(default, BaseModel) else default,
                "enum": list(get_args(annotation)) if get_origin(annotation) is Literal else None,
                "low": first(metadata, "ge", "min_length"),
                "high": first(metadata, "le", "max_length"),
                "values": map_facts(annotation),
                "handed on": dict[str, Any] in (annotation, item),
                "pattern": first(metadata, "pattern"),
                "decimal": [decimal_rule(m.func) for m in metadata if is_decimal(m)],
            },
        )
        if nested:
            yield from type_facts(annotation, where)
        if isinstance(item, type) and issubclass(item, BaseModel):
            yield from type_facts(item, f"{where}[]")


def map_facts(annotation: Any) -> Facts | None:
    """Facts of the values of a map of texts."""
    if get_origin(annotation) is not dict or get_args(annotation)[1] is Any:
        return None
    _, metadata = unwrapped(get_args(annotation)[1], [])
    return {
        "high": first(metadata, "max_length"),
        "pattern": first(metadata, "pattern"),
        "number": any(getattr(entry, "func", None) is number_as_text for entry in metadata),
    }


def unwrapped(annotation: Any, metadata: list[Any]) -> tuple[Any, list[Any]]:
    """The bare type inside `Annotated` and `| None`, and all metadata on the way."""
    flat = [m for entry in metadata for m in (entry.metadata if isinstance(entry, FieldInfo) else [entry])]
    if get_origin(annotation) is Annotated:
        inner, *more = get_args(annotation)
        return unwrapped(inner, [*more, *flat])
    if get_origin(annotation) in (Union, types.UnionType):
        return unwrapped(next(a for a in get_args(annotation) if a is not type(None)), flat)
    return annotation, flat


def json_type(annotation: Any) -> str:
    if get_origin(annotation) in (tuple, Literal):
        return "array" if get_origin(annotation) is tuple else "string"
    return {str: "string", int: "integer", bool: "boolean"}.get(annotation, "object")


def first(metadata: list[Any], *attributes: str) -> Any:
    values = (getattr(entry, attribute, None) for entry in metadata for attribute in attributes)
    return next((value for value in values if value is not None), None)


def is_decimal(entry: Any) -> bool:
    return isinstance(entry, AfterValidator) and isinstance(entry.func, Between)


def decimal_rule(between: Any) -> str:
    """The CEL rule that says the same as a `Between`."""
    low, high = (b if "e" in b else f"{b}.0" for b in (between.low, between.high))
    more, less = ">" if between.above else ">=", "<" if between.below else "<="
    return f"double(self) {more} {low} && double(self) {less} {high}"


def test_the_types_and_the_crd_have_the_same_fields_with_the_same_rules() -> None:
    assert dict(crd_facts(SPEC)) == dict(type_facts(Spec))


def test_every_field_is_agreed_or_marked_roster_or_local() -> None:
    fields = dict(crd_facts(SPEC))
    leaves = {
        path
        for path, facts in fields.items()
        if facts["type"] != "object" or facts["values"] or facts["handed on"]
    }
    leaves = {path for path in leaves if not any(other.startswith(f"{path}[]") for other in fields)}
    assert {path for path in leaves if not path.startswith("agreement.")} == set(MARKS)


def descriptions(node: Any, name: str) -> Iterator[tuple[str, str | None]]:
    yield name, node.get("description")
    for key, child in node.get("properties", {}).items():
        yield from descriptions(child, key)
    if "items" in node:
        for key, child in node["items"].get("properties", {}).items():
            yield from descriptions(child, key)


def test_every_description_begins_with_its_field() -> None:
    for name, text in (*descriptions(SPEC, "spec"), *descriptions(SCHEMA["properties"]["status"], "status")):
        assert text, name
        assert text.split()[0] == name
        assert text.endswith("."), text


def bounded(node: Any, path: str) -> Iterator[str]:
    """Paths of strings, lists and numbers without an upper bound."""
    kind = node.get("type")
    if kind == "string" and not {"enum", "maxLength", "format"} & set(node):
        yield path
    if kind == "array" and "maxItems" not in node:
        yield path
    if kind == "integer" and "maximum" not in node and not path.endswith("observedGeneration"):
        yield path
    if "additionalProperties" in node:
        if "maxProperties" not in node:
            yield path
        yield from bounded({"type": "string", **node["additionalProperties"]}, f"{path}{{}}")
    for key, child in node.get("properties", {}).items():
        yield from bounded(child, f"{path}.{key}")
    if "items" in node:
        yield from bounded(node["items"], f"{path}[]")


def test_everything_is_bounded() -> None:
    assert list(bounded(SPEC, "spec")) == []
    assert list(bounded(SCHEMA["properties"]["status"], "status")) == []


def test_there_is_one_immutability_rule_for_the_whole_agreement() -> None:
    rules = [rule["rule"] for rule in SPEC["x-kubernetes-validations"]]
    assert len([rule for rule in rules if "oldSelf" in rule]) == 1
    assert any(rule.startswith("self.agreement == oldSelf.agreement ||") for rule in rules)


@pytest.mark.parametrize(
    ("field", "reserved"), [("labels", RESERVED_LABELS), ("annotations", RESERVED_ANNOTATIONS)]
)
def test_the_crd_and_the_types_reserve_the_same_keys(field: str, reserved: tuple[str, ...]) -> None:
    template = SPEC["properties"]["local"]["items"]["properties"]["template"]["properties"]
    (rule,) = template[field]["x-kubernetes-validations"]
    said = " && ".join(f"!k.startsWith('{prefix}')" for prefix in reserved)
    assert rule["rule"] == f"self.all(k, {said})"


HANDED_ON = {"tolerations", "affinity", "topologySpreadConstraints"}


def test_only_terms_of_scheduling_are_handed_on_unread() -> None:
    """Whoever may write a consortium must not gain rights by it, so nothing else may be open."""
    found = {path for path, facts in crd_facts(SPEC) if facts["handed on"]}
    assert found == {f"local[].template.{name}" for name in HANDED_ON}


def names_in(node: Any) -> Iterator[str]:
    for name, child in node.get("properties", {}).items():
        yield name
        yield from names_in(child)
    if "items" in node:
        yield from names_in(node["items"])


def test_nothing_that_gives_rights_can_be_said() -> None:
    forbidden = {"hostPath", "secret", "serviceAccountName", "securityContext", "command", "args", "env"}
    forbidden |= {"envFrom", "volumeMounts", "containers", "initContainers", "hostNetwork", "projected"}
    assert not forbidden.intersection(names_in(SPEC))


def test_names_group_and_columns() -> None:
    assert CRD["metadata"]["name"] == f"{CRD['spec']['names']['plural']}.{GROUP}"
    assert (CRD["spec"]["group"], CRD["spec"]["names"]["kind"], SERVED["name"]) == (GROUP, KIND, VERSION)
    assert CRD["spec"]["names"]["shortNames"] == ["pcmoe"]
    assert [column["name"] for column in SERVED["additionalPrinterColumns"]] == [
        "State",
        "Round",
        "Ready",
        "Loss",
        "Age",
    ]
    assert SERVED["subresources"] == {"status": {}}


def defaulted(value: Any, node: Any) -> Any:
    """What the API server makes of a value before it validates: defaults filled in."""
    if isinstance(value, dict):
        filled = dict(value)
        for name, child in node.get("properties", {}).items():
            if name not in filled and "default" in child:
                filled[name] = copy.deepcopy(child["default"])
            if name in filled:
                filled[name] = defaulted(filled[name], child)
        return filled
    if isinstance(value, list) and "items" in node:
        return [defaulted(item, node["items"]) for item in value]
    return value


def json_schema(node: Any) -> Any:
    """The structural schema as JSON Schema; unknown fields are refused, as with strict field validation."""
    made = {key: value for key, value in node.items() if not key.startswith("x-") and key != "format"}
    if "properties" in made:
        made["properties"] = {name: json_schema(child) for name, child in made["properties"].items()}
        made["additionalProperties"] = False
    if "items" in made:
        made["items"] = json_schema(made["items"])
    if "additionalProperties" in node:
        made["additionalProperties"] = json_schema(node["additionalProperties"])
        if node["additionalProperties"].get("x-kubernetes-int-or-string"):
            made["additionalProperties"]["type"] = ["integer", "string"]
    return made


def duplicates(value: Any, node: Any, path: str = "") -> Iterator[str]:
    """Paths of lists that hold a key of a list map, or a member of a set, twice."""
    if isinstance(value, dict):
        for name, child in node.get("properties", {}).items():
            if name in value:
                yield from duplicates(value[name], child, f"{path}.{name}")
    if isinstance(value, list):
        keys = node.get("x-kubernetes-list-map-keys")
        members = [
            item.get(keys[0]) if keys else item for item in value if isinstance(item, dict) or not keys
        ]
        if any(member in members[:i] for i, member in enumerate(members)):
            yield path
        for item in value if "items" in node else ():
            yield from duplicates(item, node["items"], f"{path}[]")


def structural_faults(changes: Any) -> list[str]:
    whole = defaulted(manifest(3, changes), SCHEMA)["spec"]
    validator = jsonschema.Draft202012Validator(json_schema(SPEC))
    return [error.json_path for error in validator.iter_errors(whole)] + list(duplicates(whole, SPEC))


def test_the_schema_takes_good_manifests() -> None:
    assert structural_faults({}) == []
    assert (
        structural_faults({"local": [{"name": "lyon"}], "roster": [{"name": "lyon", "endpoint": "a:1"}]})
        == []
    )
    assert structural_faults({"local": [FULL]}) == []


@pytest.mark.parametrize("bad", BAD_MANIFESTS, ids=lambda bad: bad.name)
def test_the_schema_alone_refuses_what_the_table_says_it_can(bad: Bad) -> None:
    assert bool(structural_faults(bad.changes)) == (bad.by == "schema")
