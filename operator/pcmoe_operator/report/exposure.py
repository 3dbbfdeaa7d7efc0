"""What left a participant, and to whom: its own ledger, `exposure.jsonl`, read into types and added up.

The file is its owner's and never leaves by itself; it is read where it lies. Types are strict all the same.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pcmoe_operator.errors import UsageError
from pcmoe_operator.report.read import Line, count, few, read_each, read_lines, word

FILE = "exposure.jsonl"
MAX_LAYERS = 10_000
ASKED = ("FORWARD", "BACKWARD", "EVALUATE")
"""About the own tokens; all other kinds answer a peer's questions about its tokens."""
KINDS = (*ASKED, "FORWARD_REPLY", "BACKWARD_REPLY", "EVALUATE_REPLY")


@dataclass(kw_only=True, slots=True)
class PeerExposure:
    """What one peer was shown and sent, over all lines."""

    tokens: int = 0
    """Own tokens, each time that they were read in training, whose hidden state it got at one layer or more."""
    targets: int = 0
    """Own positions that predict a token, in training, whose gradient it got."""
    held_out: int = 0
    """As `tokens`, in evaluation."""
    messages: int = 0
    rows: int = 0
    """Of hidden states and gradients of own tokens, over all layers."""
    smallest: int | None = None
    """Rows of the smallest request that had any."""
    asked: Counter[str] = field(default_factory=Counter)
    """Bytes about the own tokens, by part."""
    answered: Counter[str] = field(default_factory=Counter)
    """Bytes about its tokens: what the own experts made of them."""
    control: int = 0
    """Bytes of messages about steps."""
    documents: Counter[tuple[str, int]] = field(default_factory=Counter)
    """By corpus and document: in how many pieces something of it was shown."""
    leaves: set[str] = field(default_factory=set)
    """SHA-256 of the certificates that it showed."""
    authorities: set[str] = field(default_factory=set)

    @property
    def bytes(self) -> int:
        """All that was sent to it."""
        return sum(self.asked.values()) + sum(self.answered.values()) + self.control


@dataclass(kw_only=True, slots=True)
class Exposure:
    """The ledger of one participant, added up."""

    participant: str
    tokens: int = 0
    """Own tokens, each time that they were read in training."""
    targets: int = 0
    held_out: int = 0
    rounds: set[int] = field(default_factory=set)
    again: int = 0
    """Rounds that were done once more after a loss: what they showed left again, and counts again."""
    views: int = 0
    open_views: list[int] = field(default_factory=list)
    """Views whose end nobody wrote down: the last one of a run that goes on, or a process that was killed."""
    refused_frames: int = 0
    refused_connections: int = 0
    """Of the last process."""
    documents: int = 0
    """Documents that the participant has, held-out ones included."""
    peers: dict[str, PeerExposure] = field(default_factory=dict)
    corpus: str = ""


def exposure_in(folder: Path, participant: str) -> Exposure | None:
    """The ledger in a log folder; None where there is none. `UsageError` names the line that can't be read."""
    lines = read_lines(folder / FILE)
    return exposure_of(lines, participant, str(folder / FILE)) if lines else None


def exposures_in(folder: Path, participant: str | None = None) -> dict[str, Exposure]:
    """By participant, of a run's folder; all, or one. Raises `UsageError` where there is none."""
    found = {path.parent.parent.name for path in folder.glob(f"*/log/{FILE}")}
    if participant is not None and participant not in found:
        known = f"; there is one of {', '.join(sorted(found))}" if found else ""
        raise UsageError(f"{folder} holds no ledger of {participant}: no {participant}/log/{FILE}{known}")
    if not found:
        raise UsageError(f"{folder} holds no ledger: no NAME/log/{FILE} of any participant")
    names = sorted(found) if participant is None else [participant]
    each = {name: exposure_in(folder / name / "log", name) for name in names}
    return {name: exposure for name, exposure in each.items() if exposure is not None}


def exposure_of(lines: Iterable[Line], participant: str, where: str) -> Exposure:
    """The sums of a ledger's lines; raises `UsageError` that names `where` and the line that can't be read."""
    exposure = Exposure(participant=participant)
    for add in read_each(lines, _record, where, "entry of a ledger"):
        add(exposure)
    return exposure


Add = Callable[[Exposure], None]


def _record(given: dict[str, Any]) -> Add:
    """What a line adds; raises KeyError, ValueError and the like."""
    kind, view = given["record"], count(given, "view")
    if kind == "view":
        return _entered(given, view)
    if kind not in ("round", "rest"):
        raise ValueError("record must be view, round or rest")
    own = _numbers(given["own"], "tokens", "targets", "heldOut")
    number, peers = count(given, "round"), few(given, "peers")
    entries = {name: _peer(entry) for name, entry in peers.items()}
    refused = sum(count(few(given, "refusedConnections"), reason) for reason in given["refusedConnections"])
    frames = count(given, "refusedFrames") if kind == "rest" else 0

    def add(to: Exposure) -> None:
        to.tokens += own["tokens"]
        to.targets += own["targets"]
        to.held_out += own["heldOut"]
        to.refused_connections, to.refused_frames = refused, to.refused_frames + frames
        if kind == "rest":
            to.open_views = [each for each in to.open_views if each != view]
        else:
            to.again += number in to.rounds
            to.rounds.add(number)
        for name, entry in entries.items():
            entry(to.peers.setdefault(name, PeerExposure()), to.corpus)

    return add


def _entered(given: Mapping[str, Any], view: int) -> Add:
    corpus, members = given["corpus"], few(given, "members")
    fingerprint = word(corpus, "fingerprint", 80)
    documents = count(corpus, "documents") + count(corpus, "heldOut")

    def add(to: Exposure) -> None:
        to.views += 1
        to.open_views.append(view)
        to.corpus, to.documents = fingerprint, documents
        for name in members:
            to.peers.setdefault(name, PeerExposure())

    return add


def _peer(given: Mapping[str, Any]) -> Callable[[PeerExposure, str], None]:
    """What a line adds to what one peer was shown."""
    seen = _numbers(given, "tokens", "targets", "heldOut")
    control = _numbers(given["control"], "messages", "bytes")
    smallest = None if given["smallest"] is None else count(given, "smallest")
    documents = _documents(given)
    kinds = [_sent(kind, sent) for layer in _layers(given).values() for kind, sent in few_of(layer).items()]
    leaf, authorities = (word(given, key, 700) if key in given else "" for key in ("leaf", "authorities"))

    def add(to: PeerExposure, corpus: str) -> None:
        to.tokens += seen["tokens"]
        to.targets += seen["targets"]
        to.held_out += seen["heldOut"]
        to.control += control["bytes"]
        to.messages += control["messages"]
        to.smallest = min((each for each in (to.smallest, smallest) if each is not None), default=None)
        to.documents.update({(corpus, document): times for document, times in documents.items()})
        for kind, messages, rows, parts in kinds:
            to.messages += messages
            to.rows += rows if kind in ASKED else 0
            (to.asked if kind in ASKED else to.answered).update(parts)
        to.leaves |= {leaf} - {""}
        to.authorities |= {authorities} - {""}

    return add


def _sent(kind: str, given: Mapping[str, Any]) -> tuple[str, int, int, dict[str, int]]:
    if kind not in KINDS:
        raise ValueError(f"a kind of message must be one of {', '.join(KINDS)}")
    parts = few(given, "bytes")
    return kind, count(given, "messages"), count(given, "rows"), {part: count(parts, part) for part in parts}


def _numbers(given: Mapping[str, Any], *keys: str) -> dict[str, int]:
    return {key: count(given, key) for key in keys}


def few_of(given: Any) -> Mapping[str, Any]:
    """The same as `few`, of an object itself."""
    return few({"layer": given}, "layer")


def _layers(given: Mapping[str, Any]) -> Mapping[str, Any]:
    layers = given["layers"]
    if not isinstance(layers, dict) or len(layers) > MAX_LAYERS or not all(key.isdecimal() for key in layers):
        raise ValueError("layers must be an object by number of the layer")
    return layers


def _documents(given: Mapping[str, Any]) -> dict[int, int]:
    by_times = given["documents"]
    if not isinstance(by_times, dict) or not all(key.isdecimal() and len(key) < 10 for key in by_times):
        raise ValueError("documents must be an object by number of times")
    found: dict[int, int] = {}
    for times, documents in by_times.items():
        if not all(type(document) is int and document >= 0 for document in documents):
            raise ValueError("documents must be whole numbers from 0 on")
        found |= dict.fromkeys(documents, int(times))
    return found


def times_shown(exposure: Exposure, peer: PeerExposure) -> dict[str, int]:
    """How many documents were shown how often: `0`, `1`, `2-3`, `4-7`, … pieces."""
    shown = Counter(1 << (times.bit_length() - 1) for times in peer.documents.values())
    never = max(0, exposure.documents - len(peer.documents))
    found = {"0": never} if never else {}
    for low in sorted(shown):
        found[str(low) if low == 1 else f"{low}-{2 * low - 1}"] = shown[low]
    return found


def exposure_figures(exposure: Exposure) -> dict[str, Any]:
    """The sums with stable keys, ready to be written as JSON."""
    return {
        "rounds": len(exposure.rounds - {0}),
        "roundsAgain": exposure.again,
        "views": exposure.views,
        "openViews": exposure.open_views,
        "refusedFrames": exposure.refused_frames,
        "refusedConnections": exposure.refused_connections,
        "tokens": exposure.tokens,
        "targets": exposure.targets,
        "heldOutTokens": exposure.held_out,
        "documents": exposure.documents,
        "peers": {
            name: {
                "tokensSeen": peer.tokens,
                "tokensSeenPercent": share(peer.tokens, exposure.tokens),
                "targetsSeen": peer.targets,
                "targetsSeenPercent": share(peer.targets, exposure.targets),
                "heldOutTokensSeen": peer.held_out,
                "heldOutTokensSeenPercent": share(peer.held_out, exposure.held_out),
                "documentsSeen": len(peer.documents),
                "documentsByTimesSeen": times_shown(exposure, peer),
                "smallestRequestRows": peer.smallest,
                "messages": peer.messages,
                "rows": peer.rows,
                "bytes": peer.bytes,
                "bytesAsked": dict(sorted(peer.asked.items())),
                "bytesAnswered": dict(sorted(peer.answered.items())),
                "bytesControl": peer.control,
                "certificates": sorted(peer.leaves),
                "authorities": sorted(peer.authorities),
            }
            for name, peer in sorted(exposure.peers.items())
        },
    }


def share(part: int, whole: int) -> float | None:
    """Percent with one digit; None of nothing."""
    return round(100 * part / whole, 1) if whole else None
