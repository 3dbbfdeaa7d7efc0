"""The figures of a report, computed from what nodes wrote down. Pure: the same input gives the same figures.

Everything here ends as JSON in `report.json`, in its own vocabulary; `page` only draws it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pcmoe_operator.report.read import Round
from pcmoe_operator.report.words import TENSORS

FORMAT = "pcmoe-report/1"
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
class RunFacts:
    """All that a report is made of."""

    title: str
    rounds_planned: int
    rounds: Mapping[str, Sequence[Round]]
    """Per participant, by name."""
    whole: Whole
    settings: Mapping[str, str]
    digests: Mapping[str, str]
    software: Mapping[str, str]
    optimizer: str


def figures_of(facts: RunFacts) -> Figures:
    """Every figure of the report, ready to be written as JSON."""
    names = sorted(facts.rounds)
    done = min((rounds[-1].round for rounds in facts.rounds.values() if rounds), default=0)
    done = done if all(facts.rounds.values()) else 0
    return {
        "format": FORMAT,
        "title": facts.title,
        "participants": names,
        "roundsDone": done,
        "roundsPlanned": facts.rounds_planned,
        "seconds": _seconds(facts.rounds),
        "tokens": sum(r.tokens for rounds in facts.rounds.values() for r in rounds),
        "stepsSkipped": max((sum(r.steps_skipped for r in rs) for rs in facts.rounds.values()), default=0),
        "loss": {name: _loss(facts.rounds[name]) for name in names},
        "memory": _memory(facts, names),
        "traffic": _traffic(facts.rounds, names),
        "time": {name: _time(facts.rounds[name]) for name in names},
        "settings": dict(facts.settings),
        "digests": dict(facts.digests),
        "software": dict(facts.software),
    }


def _seconds(rounds: Mapping[str, Sequence[Round]]) -> float:
    """Seconds of training: the slowest participant's, summed over its rounds."""
    return round(max((sum(r.seconds for r in own) for own in rounds.values()), default=0.0), 3)


def _loss(rounds: Sequence[Round]) -> Figures:
    held_out = [r.held_out_loss for r in rounds if r.held_out_loss is not None]
    first, last = (held_out[0], held_out[-1]) if held_out else (None, None)
    return {
        "rounds": [
            {"round": r.round, "step": r.step, "training": r.train_loss, "heldOut": r.held_out_loss}
            for r in rounds
        ],
        "firstHeldOut": first,
        "lastHeldOut": last,
        "change": None if first is None or last is None else round(last - first, 6),
        "changePercent": None if not first or last is None else round(100 * (last - first) / first, 2),
    }


def _memory(facts: RunFacts, names: Sequence[str]) -> Figures:
    whole = sum(facts.whole.tensors.values())
    return {
        "unit": "bytes",
        "whole": {"tensors": ordered(facts.whole.tensors), "total": whole},
        "participants": {name: _own_memory(facts.rounds[name], whole) for name in names},
        "basis": {
            "participants": len(names),
            "parameters": facts.whole.parameters,
            "expertSharePercent": percent(facts.whole.expert_parameters, facts.whole.parameters),
            "sharedOutPercent": percent(facts.whole.shared_expert_parameters, facts.whole.parameters),
            "optimizer": facts.optimizer,
        },
    }


def _own_memory(rounds: Sequence[Round], whole: int) -> Figures | None:
    if not rounds:
        return None
    memory = rounds[-1].memory
    total = sum(memory.tensors.values())
    return {
        "tensors": ordered(memory.tensors),
        "total": total,
        "savingPercent": round(100 - percent(total, whole), 1),
        "peakAboveBaseline": max(0, memory.peak_rss - memory.baseline_rss),
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
    sent = {
        name: {peer: _sum(rounds[name], peer, "bytes_sent") for peer in names if peer != name}
        for name in names
    }
    rows = {
        name: {peer: _sum(rounds[name], peer, "hidden_rows_sent") for peer in names if peer != name}
        for name in names
    }
    total = sum(sum(row.values()) for row in sent.values())
    tokens = sum(r.tokens for own in rounds.values() for r in own)
    return {
        "bytesSent": sent,
        "hiddenRowsSent": rows,
        "messagesSent": {name: sum(_sum(rounds[name], p, "messages_sent") for p in names) for name in names},
        "totalBytes": total,
        "bytesPerTrainedToken": round(total / tokens, 1) if tokens else None,
    }


def _sum(rounds: Sequence[Round], peer: str, what: str) -> int:
    return sum(getattr(r.traffic[peer], what) for r in rounds if peer in r.traffic)


def _time(rounds: Sequence[Round]) -> dict[str, float]:
    phases: dict[str, float] = {}
    for one in rounds:
        for phase, seconds in one.seconds_by_phase.items():
            phases[phase] = phases.get(phase, 0.0) + seconds
    return {phase: round(seconds, 3) for phase, seconds in phases.items()}
