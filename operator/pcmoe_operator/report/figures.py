"""The figures of a report, computed from what nodes wrote down. Pure: the same input gives the same figures.

Everything here ends as JSON in `report.json`, in its own vocabulary; `page` only draws it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from pcmoe_operator.report.comparison import Baselines, comparison_of
from pcmoe_operator.report.continuations import Continuation
from pcmoe_operator.report.exposure import Exposure, share
from pcmoe_operator.report.leaks import Leak, leak_figures
from pcmoe_operator.report.parts import Part
from pcmoe_operator.report.read import Round, finite, own_tensors, peak_above_imports
from pcmoe_operator.report.timeline import Happening
from pcmoe_operator.report.words import TENSORS

FORMAT = "pcmoe-report/1"
HOUR = 3600.0
Figures = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Whole:
    """One process that holds and trains the whole model by itself, with the same optimizer."""

    tensors: Mapping[str, int]
    """Exact bytes by kind."""
    expert_parameters: int
    """Parameters of all routed experts."""
    shared_expert_parameters: int
    """Those of them in layers whose experts are shared out; the rest is in layers that everybody holds."""
    parameters: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Beside:
    """What was made beside the run, where somebody asked for it and it lies here."""

    baselines: Baselines = field(default_factory=dict)
    leaks: Mapping[str, Leak] = field(default_factory=dict)
    """By participant."""
    continuations: Mapping[str, Continuation] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Gathered:
    """What was found of a run, beside its manifest."""

    parts: Mapping[str, Part]
    """By participant."""
    missing: Mapping[str, str] = field(default_factory=dict)
    """Participants whose part should be here and isn't, and why."""
    elsewhere: Sequence[str] = ()
    """Participants that run in other clusters, and keep their parts."""
    held: Mapping[str, float] = field(default_factory=dict)
    """Seconds times GPUs of the pods that are still listed, by participant, as far as known."""
    standing: Mapping[str, str] = field(default_factory=dict)
    """How the run stands, in words, where somebody keeps that."""
    events: Sequence[Happening] = ()
    """What others than nodes tell."""
    settings: Mapping[str, str] = field(default_factory=dict)
    software: Mapping[str, str] = field(default_factory=dict)
    beside: Beside = field(default_factory=Beside)


@dataclass(frozen=True, kw_only=True, slots=True)
class RunFacts:
    """All that a report is made of."""

    title: str
    names: Sequence[str]
    """All participants, sorted."""
    rounds_planned: int
    rounds: Mapping[str, Sequence[Round]]
    """Of each participant whose part is there."""
    exposures: Mapping[str, Exposure]
    """The ledgers that lie here, by participant."""
    left_out: Mapping[str, str]
    """What is missing of a participant that runs here, and why."""
    elsewhere: Sequence[str]
    held: Mapping[str, float]
    standing: Mapping[str, str]
    events: Sequence[Happening]
    whole: Whole
    settings: Mapping[str, str]
    digests: Mapping[str, str]
    software: Mapping[str, str]
    optimizer: str
    beside: Beside = field(default_factory=Beside)


def figures_of(facts: RunFacts) -> Figures:
    """Every figure of the report, ready to be written as JSON."""
    names, here = sorted(facts.names), sorted(facts.rounds)
    done = min((rounds[-1].round for rounds in facts.rounds.values() if rounds), default=0)
    done = done if all(facts.rounds.values()) else 0
    return {
        "format": FORMAT,
        "title": facts.title,
        "participants": names,
        "leftOut": dict(sorted(facts.left_out.items())),
        "elsewhere": sorted(facts.elsewhere),
        "standing": dict(facts.standing),
        "roundsDone": done,
        "roundsPlanned": facts.rounds_planned,
        "seconds": _seconds(facts.rounds),
        "tokens": sum(r.tokens for rounds in facts.rounds.values() for r in rounds),
        "stepsSkipped": max((sum(r.steps_skipped for r in rs) for rs in facts.rounds.values()), default=0),
        "loss": {name: _loss(facts.rounds[name]) for name in here},
        "baselines": comparison_of(facts.rounds, facts.beside.baselines),
        "continuations": {name: asdict(each) for name, each in sorted(facts.beside.continuations.items())},
        "memory": _memory(facts, here),
        "traffic": _traffic(facts.rounds, names),
        "leak": {name: leak_figures(each) for name, each in sorted(facts.beside.leaks.items())},
        "exposure": {name: _exposure(facts.exposures[name]) for name in sorted(facts.exposures)},
        "time": {name: _time(facts.rounds[name]) for name in here},
        "gpuHours": _gpu_hours(facts, here),
        "machines": {name: _machine(facts.rounds[name]) for name in here},
        "span": _span(facts),
        "events": [asdict(each) for each in facts.events],
        "settings": dict(facts.settings),
        "digests": dict(facts.digests),
        "software": dict(facts.software),
    }


def _seconds(rounds: Mapping[str, Sequence[Round]]) -> float:
    """Seconds of training: the slowest participant's, summed over its rounds."""
    return round(max((sum(r.seconds for r in own) for own in rounds.values()), default=0.0), 3)


def _span(facts: RunFacts) -> Figures:
    """From the first moment that anybody tells of to the last, Unix seconds."""
    rounds = [r for own in facts.rounds.values() for r in own]
    moments = [each.time for each in facts.events]
    moments += [m for r in rounds for m in (r.time - r.seconds, r.time)]
    return {"from": min(moments, default=0.0), "to": max(moments, default=0.0)}


def _loss(rounds: Sequence[Round]) -> Figures:
    held_out = [finite(r.held_out_loss) for r in rounds if r.held_out_loss is not None]
    first, last = (held_out[0], held_out[-1]) if held_out else (None, None)
    change = None if first is None or last is None else last - first
    return {
        "rounds": [
            {
                "round": r.round,
                "step": r.step,
                "training": finite(r.train_loss),
                "heldOut": finite(r.held_out_loss),
            }
            for r in rounds
        ],
        "firstHeldOut": first,
        "lastHeldOut": last,
        "change": None if change is None else round(change, 6),
        "changePercent": None if change is None or not first else finite(round(100 * change / first, 2)),
    }


def _gpu_hours(facts: RunFacts, here: Sequence[str]) -> Figures:
    """Hours times GPUs: trained, of the rounds that count, and held, of the pods; None is unknown."""
    trained = {name: _trained(facts.rounds[name]) for name in here}
    names = sorted({*here, *facts.held})
    held = {name: facts.held.get(name) for name in names}
    return {
        "participants": {
            name: {"trained": _hours(trained.get(name)), "held": _hours(held[name])} for name in names
        },
        "trained": _hours(_total(trained.values())),
        "held": _hours(_total(held.values())),
    }


def _trained(rounds: Sequence[Round]) -> float | None:
    """GPU-seconds, or None where no record says how many GPUs there were."""
    return _total([None if r.gpus is None else r.seconds * r.gpus for r in rounds])


def _total(values: Iterable[float | None]) -> float | None:
    """The sum of what is known, or None if nothing is."""
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _hours(gpu_seconds: float | None) -> float | None:
    return None if gpu_seconds is None else round(gpu_seconds / HOUR, 4)


def _machine(rounds: Sequence[Round]) -> Figures:
    """What a participant's machine had to do beside computing."""
    stored = [r for r in rounds if r.checkpoint_bytes is not None]
    took = [r.checkpoint_seconds for r in rounds if r.checkpoint_seconds is not None]
    shares = [(r.remote_token_share, r.tokens) for r in rounds if r.remote_token_share is not None]
    tokens = sum(count for _, count in shares)
    share = sum(part * count for part, count in shares) / tokens if tokens else None
    return {
        "gpus": rounds[-1].gpus if rounds else None,
        "checkpointBytes": stored[-1].checkpoint_bytes if stored else None,
        "checkpointSeconds": round(sum(took) / len(took), 3) if took else None,
        "remoteTokenShare": None if share is None else round(share, 4),
    }


def _memory(facts: RunFacts, here: Sequence[str]) -> Figures:
    whole = sum(facts.whole.tensors.values())
    return {
        "unit": "bytes",
        "whole": {"tensors": ordered(facts.whole.tensors), "total": whole},
        "participants": {name: _own_memory(facts.rounds[name], whole) for name in here},
        "basis": {
            "participants": len(facts.names),
            "parameters": facts.whole.parameters,
            "expertSharePercent": percent(facts.whole.expert_parameters, facts.whole.parameters),
            "sharedOutPercent": percent(facts.whole.shared_expert_parameters, facts.whole.parameters),
            "optimizer": facts.optimizer,
        },
    }


def _own_memory(rounds: Sequence[Round], whole: int) -> Figures | None:
    if not rounds:
        return None
    memory, total = rounds[-1].memory, own_tensors(rounds[-1])
    return {
        "tensors": ordered(memory.tensors),
        "total": total,
        "savingPercent": round(100 - percent(total, whole), 1),
        "peakAboveBaseline": peak_above_imports(rounds[-1]),
        "peakRss": memory.peak_rss,
        "baselineRss": memory.baseline_rss,
        "gpuPeak": memory.gpu_peak,
    }


def ordered(tensors: Mapping[str, int]) -> dict[str, int]:
    """Bytes by kind in the order of the charts, without empty kinds."""
    kinds = [*TENSORS, *sorted(set(tensors) - set(TENSORS))]
    return {kind: tensors[kind] for kind in kinds if tensors.get(kind)}


def percent(part: float, whole: float) -> float:
    """`part` of `whole` in percent, with one digit; 0 of nothing."""
    return round(100 * part / whole, 1) if whole else 0.0


def _traffic(rounds: Mapping[str, Sequence[Round]], names: Sequence[str]) -> Figures:
    pairs = [(name, peer) for name in names for peer in names if peer != name]
    sent: Figures = {name: {} for name in names}
    rows: Figures = {name: {} for name in names}
    waits: Figures = {name: {} for name in names}
    for name, peer in pairs:
        sent[name][peer] = _sent(rounds, name, peer)
        rows[name][peer] = _sum(rounds[name], peer, "hidden_rows_sent") if name in rounds else None
        waits[name][peer] = _reply_milliseconds(rounds.get(name, ()), peer)
    total = sum(count or 0 for row in sent.values() for count in row.values())
    tokens = sum(r.tokens for own in rounds.values() for r in own)
    return {
        "bytesSent": sent,
        "hiddenRowsSent": rows,
        "replyMilliseconds": waits,
        "messagesSent": {
            name: sum(_sum(own, p, "messages_sent") for p in names) for name, own in sorted(rounds.items())
        },
        "totalBytes": total,
        "bytesPerTrainedToken": round(total / tokens, 1) if tokens and len(rounds) == len(names) else None,
    }


def _exposure(exposure: Exposure) -> Figures:
    """Sums of a participant's ledger; `pcmoe exposure` tells all of it."""
    return {
        "documents": exposure.documents,
        "roundsAgain": exposure.again,
        "openViews": len(exposure.open_views),
        "refusedFrames": exposure.refused_frames,
        "refusedConnections": exposure.refused_connections,
        "peers": {
            name: {
                "tokensPercent": share(peer.tokens, exposure.tokens),
                "nextTokensPercent": share(peer.targets, exposure.targets),
                "heldOutPercent": share(peer.held_out, exposure.held_out),
                "documentsSeen": len(peer.documents),
                "bytesAsked": sum(peer.asked.values()),
                "bytesAnswered": sum(peer.answered.values()),
            }
            for name, peer in sorted(exposure.peers.items())
        },
    }


def _sent(rounds: Mapping[str, Sequence[Round]], name: str, peer: str) -> int | None:
    """Bytes from one to another, by the sender's count; where its part is missing by the receiver's."""
    if name in rounds:
        return _sum(rounds[name], peer, "bytes_sent")
    return _sum(rounds[peer], name, "bytes_received") if peer in rounds else None


def _reply_milliseconds(rounds: Sequence[Round], peer: str) -> float | None:
    """How long an answer of a peer took on average."""
    moved = [one.traffic[peer] for one in rounds if peer in one.traffic]
    count = sum(each.replies for each in moved)
    return round(1000 * sum(each.reply_seconds for each in moved) / count, 1) if count else None


def _sum(rounds: Sequence[Round], peer: str, what: str) -> int:
    return sum(getattr(r.traffic[peer], what) for r in rounds if peer in r.traffic)


def _time(rounds: Sequence[Round]) -> dict[str, float]:
    phases: dict[str, float] = {}
    for one in rounds:
        for phase, seconds in one.seconds_by_phase.items():
            phases[phase] = phases.get(phase, 0.0) + seconds
    return {phase: round(seconds, 3) for phase, seconds in phases.items()}
