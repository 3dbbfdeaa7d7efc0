"""A consortium as `-o json` gives it and tables show it. Pure.

The keys are part of the command line: some may come, none goes or changes.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from pcmoe_operator.answers import items, number, part, printable, text_at, whole
from pcmoe_operator.remote.verdict import verdict_of

Object = dict[str, Any]
EVENTS_SHOWN = 10


def summary(consortium: Object) -> Object:
    """One line of `pcmoe status`: names and how it stands."""
    metadata, spec, status = (part(consortium, key) for key in ("metadata", "spec", "status"))
    done, rounds = _pair(status, "round")
    ready, here = _pair(status, "ready")
    found = verdict_of(consortium)
    training = part(spec, "agreement", "training")
    return {
        "namespace": text_at(metadata, "namespace"),
        "name": text_at(metadata, "name"),
        "state": printable(status.get("state"), 20) or "Unknown",
        "round": done,
        "rounds": rounds or whole(training.get("rounds")),
        "ready": ready,
        "here": here,
        "loss": _number(status.get("loss")),
        "attempt": whole(spec.get("attempt")) or 1,
        "suspend": spec.get("suspend") is True,
        "created": text_at(metadata, "creationTimestamp"),
        "verdict": {
            "level": found.level,
            "reason": found.reason,
            "sentence": found.sentence,
            "end": found.end,
            "note": found.note or None,
        },
    }


def details(consortium: Object, events: Sequence[Object]) -> Object:
    """What `pcmoe status NAME` shows: the same, participants, conditions and the last events."""
    status = part(consortium, "status")
    return {
        **summary(consortium),
        "agreement": text_at(part(status, "agreement"), "active") or None,
        "participants": [participant(each) for each in items(status, "participants")],
        "conditions": [_condition(each) for each in items(status, "conditions")],
        "events": [event(each) for each in events[-EVENTS_SHOWN:]],
    }


def participant(entry: Object) -> Object:
    """One that runs in this cluster."""
    round_ = entry.get("round")
    return {
        "name": printable(entry.get("name"), 63),
        "state": printable(entry.get("state"), 20),
        "round": whole(round_) if round_ is not None else None,
        "phase": printable(entry.get("phase"), 20) or None,
        "restarts": whole(entry.get("restarts")),
        "machine": printable(entry.get("node"), 253) or None,
        "reason": printable(entry.get("reason"), 63) or None,
        "message": printable(entry.get("message"), 1024) or None,
    }


def event(raw: Object) -> Object:
    """Something that happened; `time` is the last time, `count` how often."""
    series = part(raw, "series")
    return {
        "time": last_seen(raw),
        "type": printable(raw.get("type"), 20),
        "reason": printable(raw.get("reason"), 128),
        "message": printable(raw.get("message"), 1024),
        "count": whole(series.get("count")) or whole(raw.get("count")) or 1,
    }


def last_seen(event: Object) -> str:
    """When an event came last; text that sorts by time."""
    series = event.get("series") or {}
    moments = (series.get("lastObservedTime"), event.get("lastTimestamp"), event.get("eventTime"))
    return str(next((each for each in moments if each), event["metadata"].get("creationTimestamp", "")))


def news(before: Object | None, after: Object) -> list[str]:
    """What to tell of a change between two `details`, each a line."""
    told = []
    name = after["name"]
    if before is None or _standing(before) != _standing(after):
        told.append(f"{name}: {standing(after)}")
    if before is None or before["verdict"]["sentence"] != after["verdict"]["sentence"]:
        told.append(f"{name}: {after['verdict']['sentence']}")
    old = {each["name"]: each for each in before["participants"]} if before else {}
    for each in after["participants"]:
        was = old.get(each["name"], {})
        if was and was.get("state") != each["state"]:
            told.append(f"{each['name']}: {was['state']} → {each['state']}")
        if was and each["restarts"] > was["restarts"]:
            told.append(f"{each['name']}: started again, restart {each['restarts']}")
    return told


def standing(shown: Mapping[str, Any]) -> str:
    """State and figures: `Running, round 12 of 20, 3 of 3 ready, loss 1.68`."""
    parts = [str(shown["state"]), f"round {shown['round']} of {shown['rounds']}"]
    if shown["here"]:
        parts.append(f"{shown['ready']} of {shown['here']} ready")
    if shown["loss"] is not None:
        parts.append(f"loss {shown['loss']:g}")
    return ", ".join(parts)


def age(moment: str, now: datetime) -> str:
    """How long ago, as kubectl says it: `42s`, `5m`, `3h`, `12d`; empty if it isn't known."""
    try:
        seconds = max(0, int((now - datetime.fromisoformat(moment)).total_seconds()))
    except (ValueError, TypeError):
        return ""
    for unit, length, limit in (("s", 1, 120), ("m", 60, 120 * 60), ("h", 3600, 48 * 3600)):
        if seconds < limit:
            return f"{seconds // length}{unit}"
    return f"{seconds // 86400}d"


def _standing(shown: Object) -> tuple[Any, ...]:
    return tuple(shown[key] for key in ("state", "round", "ready", "here", "attempt"))


def _condition(raw: Object) -> Object:
    return {
        "type": text_at(raw, "type"),
        "status": text_at(raw, "status"),
        "reason": text_at(raw, "reason"),
        "message": printable(raw.get("message"), 1024),
        "since": text_at(raw, "lastTransitionTime"),
    }


def _pair(status: Object, field: str) -> tuple[int, int]:
    """Both numbers of `12/20`; 0 where there is none."""
    first, _, second = text_at(status, field).partition("/")
    return _whole(first), _whole(second)


def _whole(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0


def _number(text: object) -> float | None:
    try:
        return number(float(str(text)))
    except ValueError:
        return None
