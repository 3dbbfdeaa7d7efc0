"""From a manifest to a `Consortium`, or to a `ManifestError` that has every fault at once.

Files are read as kubectl reads them: `2e-5` is a number, a time is text, `no` is false, a key stands once.
"""

import copy
import difflib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from pcmoe_operator.constants import API_VERSION, KIND
from pcmoe_operator.errors import Fault, ManifestError, UsageError
from pcmoe_operator.rules import broken_rules
from pcmoe_operator.scalars import FORMATS
from pcmoe_operator.schema import Consortium


def load(path: Path) -> Consortium:
    """Read and check a manifest file; numbers that stand for decimals may be unquoted.

    Raises `UsageError` if there is no such file and `ManifestError` for everything wrong in it.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path}: can't be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: is not UTF-8 text: {error.reason} at byte {error.start}") from None
    return load_text(text, str(path))


def load_text(text: str, name: str) -> Consortium:
    """Check the text of a manifest file, called `name` in errors. Raises as `load` does."""
    return _consortium(read_yaml(text, name), {"file": True})


def refused_by_the_api(path: Path) -> tuple[Fault, ...]:
    """Faults that only the API server finds in a file that `load` takes: decimals without quotes."""
    try:
        parse(read_yaml(path.read_text(encoding="utf-8"), str(path)))
    except ManifestError as error:
        return error.faults
    return ()


def parse(manifest: Mapping[str, Any]) -> Consortium:
    """Check a manifest as the API server hands it out. Raises `ManifestError` with every fault."""
    return _consortium(manifest, {})


def _consortium(manifest: Mapping[str, Any], context: dict[str, bool]) -> Consortium:
    raw = {key: value for key, value in manifest.items() if key != "status"}
    try:
        consortium = _validated(raw, context)
        faults = broken_rules(consortium)
    except ValidationError as error:
        details = error.errors(include_url=False)
        faults = [_fault(detail) for detail in details] + _faults_beside(raw, details, context)
    if faults:
        raise ManifestError(sorted(faults, key=lambda fault: _place(fault.path, raw)))
    return consortium


def _validated(raw: object, context: dict[str, bool]) -> Consortium:
    # By way of JSON: strict JSON mode takes a list for a tuple, and it is what the API server hands out.
    return Consortium.model_validate_json(json.dumps(raw), context=context)


def _faults_beside(raw: object, details: Sequence[ErrorDetails], context: dict[str, bool]) -> list[Fault]:
    """Faults between fields beside broken ones: those are taken out, and their rules not asked."""
    pruned = json.loads(json.dumps(raw))
    gone = [detail["loc"] for detail in details if detail["type"] != "missing"]
    for loc in sorted(gone, key=_indices, reverse=True):
        _remove(pruned, loc)
    for _ in range(3):
        try:
            consortium = _validated(pruned, context)
        except ValidationError as error:
            _mend(pruned, [detail["loc"] for detail in error.errors()])
        else:
            return broken_rules(consortium, [_path(_without_indices(detail["loc"])) for detail in details])
    return []


_STAND_INS: dict[tuple[int | str, ...], Any] = {
    ("apiVersion",): API_VERSION,
    ("kind",): KIND,
    ("metadata",): {"name": "x"},
    ("metadata", "name"): "x",
    ("spec", "agreement", "id"): "x",
    ("spec", "agreement", "coordinator"): "x",
    ("spec", "agreement", "participants"): [{"name": "x"}],
    ("spec", "agreement", "model"): {"source": {}},
    ("spec", "agreement", "model", "source"): {},
    ("spec", "agreement", "model", "source", "checkpoint", "fingerprint"): f"sha256:{'0' * 64}",
    ("spec", "agreement", "model", "source", "checkpoint", "config"): "{}",
    ("spec", "agreement", "training"): {"rounds": 1},
    ("spec", "agreement", "training", "rounds"): 1,
}
"""Values for required fields that are broken or missing, so that rules between the others can be asked."""


def _mend(raw: Any, missing: Sequence[tuple[int | str, ...]]) -> None:
    """Put in what is missing; a list's entry that lacks something goes as a whole."""
    for loc in missing:
        if loc in _STAND_INS:
            parent = raw
            for key in loc[:-1]:
                parent = parent[key]
            parent[loc[-1]] = copy.deepcopy(_STAND_INS[loc])
    entries = {loc[: _last_index(loc) + 1] for loc in missing}
    for loc in sorted(entries, key=_indices, reverse=True):
        _remove(raw, loc)


def _indices(loc: tuple[int | str, ...]) -> list[int]:
    return [key for key in loc if isinstance(key, int)]


def _last_index(loc: tuple[int | str, ...]) -> int:
    return max((i for i, key in enumerate(loc) if isinstance(key, int)), default=-1)


def _without_indices(loc: tuple[int | str, ...]) -> tuple[int | str, ...]:
    return tuple(key for key in loc if isinstance(key, str))


def _remove(raw: Any, loc: tuple[int | str, ...]) -> None:
    """Take the value at `loc` away, if it is there."""
    for key in loc[:-1]:
        try:
            raw = raw[key]
        except (KeyError, IndexError, TypeError):
            return
    if loc and (not isinstance(raw, dict) or loc[-1] in raw):
        del raw[loc[-1]]


def _path(loc: Sequence[int | str]) -> str:
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in loc).lstrip(".")


def _place(path: str, raw: object) -> tuple[tuple[int, int], ...]:
    """Where a path stands in the manifest, for sorting; a key that isn't there comes last."""
    places: list[tuple[int, int]] = []
    for name, index in re.findall(r"([^.\[\]]+)|\[(\d+)\]", path):
        if index:
            places.append((0, int(index)))
            raw = raw[int(index)] if isinstance(raw, list) and int(index) < len(raw) else None
        else:
            keys = list(raw) if isinstance(raw, dict) else []
            places.append((0, keys.index(name)) if name in keys else (1, 0))
            raw = raw[name] if isinstance(raw, dict) and name in raw else None
    return tuple(places)


_RULE_OF_TYPE = {
    "missing": "required",
    "extra_forbidden": "unknown-field",
    "literal_error": "enum",
    "string_pattern_mismatch": "format",
    **dict.fromkeys(
        (
            "greater_than_equal",
            "less_than_equal",
            "string_too_long",
            "string_too_short",
            "too_long",
            "too_short",
        ),
        "bounds",
    ),
}


def _fault(detail: ErrorDetails) -> Fault:
    kind, value = detail["type"], detail["input"]
    rule = _RULE_OF_TYPE.get(kind, kind if "-" in kind or kind in ("bounds", "unique") else "type")
    path = _path(detail["loc"])
    if kind == "missing":
        return Fault(path, None, rule, "is required")
    if kind == "extra_forbidden":
        return Fault(path, value, rule, f"is not a known field{_suggestion(detail['loc'])}")
    return Fault(path, value, rule, f"is {quoted(value)}; {_reason(detail)}")


def quoted(value: object) -> str:
    """A value as it may stand in a sentence: JSON, at most 60 characters."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}…"


_SENTENCES = {
    "greater_than_equal": "must be at least {ge}",
    "less_than_equal": "must be at most {le}",
    "string_too_long": "must have at most {max_length} characters",
    "string_too_short": "must have at least {min_length} characters",
    "too_long": "must have at most {max_length} entries",
    "too_short": "must have at least {min_length} entries",
    "literal_error": "must be {expected}",
    "string_type": "must be text, in quotes",
    "int_type": "must be a whole number",
    "bool_type": "must be true or false",
    "tuple_type": "must be a list",
    "model_type": "must be an object with fields",
    "model_attributes_type": "must be an object with fields",
    "dict_type": "must be an object with fields",
}


def _reason(detail: ErrorDetails) -> str:
    kind, context = detail["type"], detail.get("ctx", {})
    if kind == "string_pattern_mismatch":
        return FORMATS[str(context["pattern"])]
    if kind in _SENTENCES:
        return _SENTENCES[kind].format(**context)
    return detail["msg"]


def _suggestion(loc: Sequence[int | str]) -> str:
    """` (did you mean x?)` if a field of the same object is spelled much like the unknown one."""
    model: Any = Consortium
    for key in _without_indices(tuple(loc[:-1])):
        fields = {field.alias or name: field.annotation for name, field in model.model_fields.items()}
        model = _model_in(fields[key])
    names = [field.alias or name for name, field in model.model_fields.items()]
    close = difflib.get_close_matches(str(loc[-1]), names, n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def _model_in(annotation: Any) -> type[BaseModel]:
    """The model inside `X`, `X | None`, `tuple[X, ...]` or `Annotated` of these."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(
        _model_in(argument) for argument in get_args(annotation) if argument not in (type(None), Ellipsis)
    )


class _Loader(yaml.SafeLoader):
    """Scalars as kubectl reads them; a key that stands twice is an error."""

    yaml_implicit_resolvers = {
        first: [
            (tag, regexp) for tag, regexp in resolvers if tag.rpartition(":")[2] in ("bool", "null", "merge")
        ]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> Any:
        seen: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen and key.tag != "tag:yaml.org,2002:merge":
                line = key.start_mark.line + 1
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key.value!r} stands twice (line {line})", None
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"^[-+]?(?:0|[1-9][0-9]*)$"), list("-+0123456789")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?$"),
    list("-+.0123456789"),
)
_Loader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(node.value))
_Loader.add_constructor("tag:yaml.org,2002:float", lambda loader, node: float(node.value))


def read_yaml(text: str, name: str = "manifest") -> dict[str, Any]:
    """The one object of a YAML (or JSON) text, scalars as kubectl reads them.

    Raises `UsageError` with line and column for text that isn't YAML or isn't exactly one object.
    """
    try:
        documents = [document for document in yaml.load_all(text, Loader=_Loader) if document is not None]
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        reason = " ".join(str(error).split()) or "nested too deeply"
        raise UsageError(f"{name}: is not YAML: {reason}") from None
    if len(documents) != 1 or not isinstance(documents[0], dict):
        raise UsageError(
            f"{name}: must hold exactly one object, a PCMoEConsortium; holds {len(documents)} documents"
        )
    document: dict[str, Any] = documents[0]
    try:
        json.dumps(document, allow_nan=False)
    except (ValueError, TypeError, RecursionError):
        raise UsageError(
            f"{name}: must hold only what JSON can hold: text, numbers, true, false, lists, objects"
        ) from None
    return document
