"""What leaves a cluster in a bundle for others to look at: no values of Secrets, no environment, no keys. Pure."""

import re
from typing import Any

Object = dict[str, Any]
HIDDEN = "(left out)"
KEY = re.compile(r"-----BEGIN ([A-Z ]*)PRIVATE KEY-----.*?(-----END \1PRIVATE KEY-----|\Z)", re.DOTALL)
TOKEN = re.compile(r"\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]{8,}")
"""A JSON Web Token."""
BEARER = re.compile(r"(?i)\b(bearer|basic) [\w.~+/=-]{16,}")
IN_ADDRESS = re.compile(r"(?<=://)[^/\s:@]+:[^/\s@]+(?=@)")
APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
"""An annotation that holds the object again, as it was applied."""


def clean_text(text: str) -> str:
    """Text without private keys, tokens, and passwords in addresses."""
    text = KEY.sub(f"(private key {HIDDEN})", text)
    text = TOKEN.sub(f"(token {HIDDEN})", text)
    text = BEARER.sub(rf"\1 {HIDDEN}", text)
    return IN_ADDRESS.sub(HIDDEN, text)


def clean(value: Any) -> Any:
    """A Kubernetes object, or a part of one, without what nobody may see or needs.

    Literal values of environment variables go, wherever a container has them: the operator sets none that is secret,
    but who changes pods on their way may.
    """
    if isinstance(value, dict):
        return {
            key: _environment(each) if key == "env" else clean(each)
            for key, each in value.items()
            if key not in ("managedFields", APPLIED)
        }
    if isinstance(value, list):
        return [clean(each) for each in value]
    return clean_text(value) if isinstance(value, str) else value


def secret(row: Object) -> Object:
    """A Secret as the API server's table has it, which never held its values: name and type."""
    cells = [each if isinstance(each, str) else str(each) for each in row.get("cells", [])]
    return {"name": cells[0] if cells else "", "type": cells[1] if len(cells) > 1 else ""}


def machine(node: Object) -> Object:
    """What matters of a machine to who asks why a pod is not on it."""
    metadata, spec, status = (node.get(key) or {} for key in ("metadata", "spec", "status"))
    return {
        "name": metadata.get("name"),
        "labels": metadata.get("labels"),
        "taints": spec.get("taints") or [],
        "unschedulable": spec.get("unschedulable") is True,
        "allocatable": status.get("allocatable"),
        "conditions": status.get("conditions"),
        "nodeInfo": status.get("nodeInfo"),
    }


def _environment(entries: Any) -> Any:
    if not isinstance(entries, list):
        return clean(entries)
    return [
        {**clean(each), "value": HIDDEN} if isinstance(each, dict) and each.get("value") else clean(each)
        for each in entries
    ]
