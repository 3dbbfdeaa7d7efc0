"""The agreement's canonical form: what partners compare, and what the digest is taken over.

RFC 8785 JSON of `spec.agreement` with defaults left out (a field added later changes no digest until it is
used), decimals as the shortest `d[.d…]e±N`, participants and pinned entries sorted by name, text in NFC.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import rfc8785

from pcmoe_operator.constants import AGREEMENT_FORMAT
from pcmoe_operator.schema import Consortium
from pcmoe_operator.shape import canonical_config

Difference = tuple[str, object, object]
"""(path, the first agreement's value, the second's); None where the field is absent or has its default."""


def canonical(consortium: Consortium) -> str:
    """The agreement's canonical text."""
    fields = consortium.agreement.model_dump(by_alias=True, exclude_defaults=True, mode="json")
    fields["participants"].sort(key=lambda participant: participant["name"])
    source = fields["model"]["source"]
    holder = source.get("checkpoint", source)
    holder["config"] = canonical_config(holder["config"])
    if "pinned" in fields.get("experts", ()):
        fields["experts"]["pinned"].sort(key=lambda entry: entry["participant"])
    return str(rfc8785.dumps(fields), "utf-8")


def digest_of(text: str) -> str:
    """The digest of a canonical agreement text."""
    return "sha256:" + hashlib.sha256(f"{AGREEMENT_FORMAT}\n{text}".encode()).hexdigest()


def digest(consortium: Consortium) -> str:
    """`sha256:…` of the agreement."""
    return digest_of(canonical(consortium))


def differences(first: str, second: str) -> list[Difference]:
    """Where two canonical texts differ, by path; participants are compared by name, not by place."""
    one, other = _leaves(json.loads(first)), _leaves(json.loads(second))
    return [
        (path, one.get(path), other.get(path))
        for path in sorted({*one, *other})
        if one.get(path) != other.get(path)
    ]


def _leaves(value: object, path: str = "spec.agreement") -> dict[str, object]:
    """Every leaf by path. The model's configuration, JSON text in JSON, is opened."""
    if path.endswith(".config") and isinstance(value, str):
        value = json.loads(value)
    if isinstance(value, Mapping) and value:
        return {
            p: leaf for key, child in value.items() for p, leaf in _leaves(child, f"{path}.{key}").items()
        }
    if isinstance(value, list) and any(isinstance(child, Mapping) for child in value):
        return {p: leaf for child in value for p, leaf in _leaves(child, f"{path}[{_name(child)}]").items()}
    return {path: value}


def _name(entry: Any) -> str:
    return str(entry.get("name", entry.get("participant", "?"))) if isinstance(entry, Mapping) else str(entry)
