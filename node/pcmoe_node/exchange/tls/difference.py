"""Where two agreements differ, in words both partners can act on."""

import json
from typing import Any

from pcmoe_node.exchange.wire import printable

_ABSENT = object()
_SHOWN = 8
_VALUE_LIMIT = 80


def difference(ours: str, theirs: str, peer: str) -> str:
    """One line: each differing path of two canonical agreements with our value and `peer`'s."""
    try:
        ours_value, theirs_value = _parsed(ours), _parsed(theirs)
    except (ValueError, RecursionError):
        return f"{peer}'s agreement can't be compared: must be canonical JSON"
    found: list[str] = []
    _walk("", ours_value, theirs_value, peer, found)
    if not found:
        return "the texts are equal and the digests are not: another version of this program?"
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return "; ".join(found[:_SHOWN]) + more


def _parsed(text: str) -> Any:
    # The canonical form may start with a line that names its version.
    head, _, rest = text.partition("\n")
    return json.loads(rest if head.startswith("pcmoe-agreement/") else text)


def _walk(path: str, ours: Any, theirs: Any, peer: str, found: list[str]) -> None:
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key in sorted(ours.keys() | theirs.keys()):
            inner = f"{path}.{key}" if path else key
            _walk(inner, ours.get(key, _ABSENT), theirs.get(key, _ABSENT), peer, found)
    elif isinstance(ours, list) and isinstance(theirs, list):
        left, right = _keyed(ours), _keyed(theirs)
        for key in dict.fromkeys([*left, *right]):
            _walk(f"{path}[{key}]", left.get(key, _ABSENT), right.get(key, _ABSENT), peer, found)
    elif ours != theirs or type(ours) is not type(theirs):
        found.append(f"{printable(path, _VALUE_LIMIT)}: ours {_shown(ours)}, {peer}'s {_shown(theirs)}")


def _keyed(items: list[Any]) -> dict[str, Any]:
    """Items by name where all have one: an added participant is then one difference. Else by position."""
    names = [item.get("name") if isinstance(item, dict) else None for item in items]
    if all(isinstance(name, str) for name in names) and len(set(names)) == len(names):
        return {str(name): item for name, item in zip(names, items, strict=True)}
    return {str(i): item for i, item in enumerate(items)}


def _shown(value: Any) -> str:
    if value is _ABSENT:
        return "absent (its default)"
    return printable(json.dumps(value, ensure_ascii=False), _VALUE_LIMIT)
