"""What a partner could read, as each participant measured it on its own text: `NAME/leak.json`, read into types.

`python -m pcmoe_node.leak --output` writes the file: shares and counts, never a token. Types are strict all the same.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pcmoe_operator.answers import printable
from pcmoe_operator.errors import UsageError
from pcmoe_operator.report.read import count, few, word

FILE = "leak.json"
VERSION = "pcmoe-leak/1"
MAX_READINGS = 10_000
MAX_TEXT = 1000
START = "the start"
PROBE, CLOSED_FORM = "linear probe", "closed form"
HIDDEN, GRADIENTS = "hidden states", "gradients"
CURRENT, NEXT = "current", "next"


@dataclass(frozen=True, kw_only=True, slots=True)
class Share:
    """A share of rows, 0 to 1, and its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """What one attack reads from what one layer sends."""

    layer: int
    sent_if_at_end: int
    """The layer leaves if `localLayers.atEnd` is at most this."""
    sent: float
    """Share of the tokens that the host is sent in this layer."""
    attack: str
    signal: str
    token: str
    """The row's own (current), or the one after it (next)."""
    taught: str | None
    """Of a probe: the weights it has learnt at."""
    read: Share
    most_frequent: Share
    unigram: Share


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurement:
    """One state of the weights."""

    weights: str
    host: str
    """Who reads."""
    documents: int
    tokens: int
    sent: float
    """Share of the tokens that the host is sent in one layer or more."""
    at_end: int
    readings: Sequence[Reading]


@dataclass(frozen=True, kw_only=True, slots=True)
class Leak:
    """The newest measurement of one participant, and how it is to be understood."""

    caveat: str
    knows: Mapping[str, str]
    """What the adversary knows, by attack."""
    limits: Sequence[str]
    measured: Measurement


def leaks_in(folder: Path, names: Sequence[str]) -> dict[str, Leak]:
    """By participant, of a run's folder; `UsageError` names the file that can't be used, and why."""
    found = {name: _leak_in(folder / name / FILE, name) for name in names}
    return {name: leak for name, leak in found.items() if leak is not None}


def _leak_in(path: Path, name: str) -> Leak | None:
    try:
        return leak_of(json.loads(path.read_text("utf-8")), name)
    except FileNotFoundError:
        return None
    except KeyError as error:
        raise UsageError(f"{path}: is no measured leak: it has no {error.args[0]}") from None
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        kind = "not valid JSON" if isinstance(error, json.JSONDecodeError) else str(error)
        raise UsageError(f"{path}: is no measured leak: {printable(kind)}") from None


def leak_of(given: dict[str, Any], name: str) -> Leak:
    """The newest of its measurements; raises KeyError, ValueError and the like."""
    if given["version"] != VERSION:
        raise ValueError(f"version must be {VERSION}")
    if given["participant"] != name:
        raise ValueError(f"participant must be {name}")
    measured = [_measurement(each) for each in _list(given, "measurements")]
    if not measured:
        raise ValueError("measurements must hold one or more")
    knows = few(given, "adversaryKnows")
    return Leak(
        caveat=word(given, "caveat", MAX_TEXT),
        knows={attack: word(knows, attack, MAX_TEXT) for attack in knows},
        limits=[word({"limits": each}, "limits", MAX_TEXT) for each in _list(given, "limits")],
        measured=measured[-1],
    )


def _measurement(given: Mapping[str, Any]) -> Measurement:
    return Measurement(
        weights=word(given, "weights"),
        host=word(given, "host"),
        documents=count(given, "documents"),
        tokens=count(given, "tokens"),
        sent=_part(given, "tokens_share"),
        at_end=count(given, "at_end"),
        readings=[_reading(each) for each in _list(given, "readings")],
    )


def _reading(given: Mapping[str, Any]) -> Reading:
    return Reading(
        layer=count(given, "layer"),
        sent_if_at_end=count(given, "sent_if_at_end"),
        sent=_part(given, "rows_share"),
        attack=_one_of(given, "attack", PROBE, CLOSED_FORM),
        signal=_one_of(given, "signal", HIDDEN, GRADIENTS),
        token=_one_of(given, "token", CURRENT, NEXT),
        taught=None if given["taught"] is None else word(given, "taught"),
        read=_share(given["read"]),
        most_frequent=_share(given["most_frequent"]),
        unigram=_share(given["unigram"]),
    )


def _share(given: Mapping[str, Any]) -> Share:
    return Share(value=_part(given, "value"), low=_part(given, "low"), high=_part(given, "high"))


def _part(given: Mapping[str, Any], key: str) -> float:
    value = given[key]
    if type(value) not in (int, float) or not 0 <= value <= 1:
        raise ValueError(f"{key} must be a number from 0 to 1")
    return float(value)


def _one_of(given: Mapping[str, Any], key: str, *words: str) -> str:
    value = given[key]
    if value not in words:
        raise ValueError(f"{key} must be one of {', '.join(words)}")
    return str(value)


def _list(given: Mapping[str, Any], key: str) -> list[Any]:
    found = given[key]
    if not isinstance(found, list) or len(found) > MAX_READINGS:
        raise ValueError(f"{key} must be a list of at most {MAX_READINGS}")
    return found


def leak_figures(leak: Leak) -> dict[str, Any]:
    """As JSON: one entry per layer, in percent with one digit, each read with the ends of its 95 % interval."""
    measured = leak.measured
    layers = sorted({reading.layer for reading in measured.readings})
    return {
        "weights": measured.weights,
        "host": measured.host,
        "documents": measured.documents,
        "tokens": measured.tokens,
        "sentPercent": _percent(measured.sent),
        "atEnd": measured.at_end,
        "layers": [
            _layer([r for r in measured.readings if r.layer == layer], measured.at_end) for layer in layers
        ],
        "adversaryKnows": dict(leak.knows),
        "limits": list(leak.limits),
        "caveat": leak.caveat,
    }


def _layer(readings: Sequence[Reading], at_end: int) -> dict[str, Any]:
    one = readings[0]
    own = _attacks(readings, PROBE, HIDDEN, CURRENT)
    ahead = _attacks(readings, PROBE, GRADIENTS, NEXT)
    return {
        "layer": one.layer,
        "leaves": one.sent_if_at_end >= at_end,
        "sentPercent": _percent(one.sent),
        "ownToken": {"probe": own[0], "probeUpperBound": own[1], **_floors(readings, CURRENT)},
        "nextToken": {
            "formula": _attacks(readings, CLOSED_FORM, GRADIENTS, NEXT)[0],
            "probe": ahead[0],
            "probeUpperBound": ahead[1],
            "withoutGradients": _attacks(readings, PROBE, HIDDEN, NEXT)[0],
            **_floors(readings, NEXT),
        },
    }


def _attacks(
    readings: Sequence[Reading], attack: str, signal: str, token: str
) -> list[dict[str, float] | None]:
    """First as whoever has the public start can do it, then taught with weights that only the owner has.

    The guess from hidden states alone has only the latter, and stands first all the same.
    """
    found = [r for r in readings if (r.attack, r.signal, r.token) == (attack, signal, token)]
    anybody = [r for r in found if r.taught in (None, START)]
    owner = [r for r in found if r.taught not in (None, START)]
    first, second = (anybody, owner) if anybody else (owner, [])
    return [_interval(each[0].read) if each else None for each in (first, second)]


def _floors(readings: Sequence[Reading], token: str) -> dict[str, Any]:
    """What guessing alone reaches, in hindsight."""
    one = next((r for r in readings if r.token == token), None)
    if one is None:
        return {"mostFrequent": None, "unigram": None}
    return {"mostFrequent": _interval(one.most_frequent), "unigram": _interval(one.unigram)}


def _interval(share: Share) -> dict[str, float]:
    return {key: _percent(value) for key, value in asdict(share).items()}


def _percent(part: float) -> float:
    return round(100 * part, 1)
