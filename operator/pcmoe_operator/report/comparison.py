"""The run beside its baselines: what each participant reaches alone, and one model on everybody's data.

`pcmoe run --baselines` leaves a journal for each, as nodes write them. Only what was finished and stands at the same
round as the run is compared.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pcmoe_operator.report.read import Round, finite, own_tensors, peak_above_imports, read_rounds

FOLDER = "baselines"
DONE = "done.json"
"""Stands beside the journal of a baseline that was finished."""
TOGETHER, SHARD, ALL, UNION = "together", "alone-shard", "alone-all", "union"
BASELINES = (SHARD, ALL, UNION)
Baselines = Mapping[str, Mapping[str, Sequence[Round]]]
"""By kind and participant."""


def baselines_in(folder: Path, names: Sequence[str]) -> Baselines:
    """The finished baselines in a run's folder; `UsageError` names the line of a journal that can't be read."""
    found = {
        kind: {
            name: read_rounds(folder / FOLDER / kind / name / "log" / "rounds.jsonl")
            for name in names
            if _is_done(folder / FOLDER / kind, name)
        }
        for kind in BASELINES
    }
    return {kind: own for kind, own in found.items() if own}


def _is_done(folder: Path, name: str) -> bool:
    """One of the union holds everybody's."""
    own = folder if folder.name == UNION else folder / name
    return (own / DONE).is_file()


def comparison_of(rounds: Mapping[str, Sequence[Round]], baselines: Baselines) -> dict[str, Any] | None:
    """Last held-out loss, tensors and measured peak of each; None where there is no baseline to compare with."""
    last = {name: own[-1] for name, own in rounds.items() if own}
    compared = {
        kind: {name: own[-1] for name, own in each.items() if own and _comparable(own[-1], last.get(name))}
        for kind, each in baselines.items()
    }
    compared = {kind: each for kind, each in compared.items() if each}
    if not compared:
        return None
    return {
        "round": min(own.round for own in last.values()),
        "arrangements": {
            kind: _arrangement(each) for kind, each in {TOGETHER: last, **compared}.items() if each
        },
        "against": {
            kind: against for kind, each in compared.items() if (against := _against(last, each)) is not None
        },
    }


def _comparable(baseline: Round, run: Round | None) -> bool:
    return run is not None and baseline.round == run.round


def _arrangement(last: Mapping[str, Round]) -> dict[str, Any]:
    tensors = [own_tensors(own) for own in last.values()]
    peaks = [peak_above_imports(own) for own in last.values()]
    losses = {name: finite(own.held_out_loss) for name, own in sorted(last.items())}
    known = [loss for loss in losses.values() if loss is not None]
    return {
        "heldOut": losses,
        "meanHeldOut": _mean(known) if len(known) == len(losses) else None,
        "tensorBytes": {"least": min(tensors), "most": max(tensors)},
        "peakBytes": {"least": min(peaks), "most": max(peaks)},
    }


def _against(together: Mapping[str, Round], other: Mapping[str, Round]) -> dict[str, Any] | None:
    """Over the participants of whom both losses are known: how many are better off together, and both means."""
    pairs = [
        (mine, theirs)
        for name, own in sorted(other.items())
        if (mine := finite(together[name].held_out_loss)) is not None
        and (theirs := finite(own.held_out_loss)) is not None
    ]
    if not pairs:
        return None
    together_mean, other_mean = _mean([mine for mine, _ in pairs]), _mean([theirs for _, theirs in pairs])
    return {
        "organisations": len(pairs),
        "betterTogether": sum(mine < theirs for mine, theirs in pairs),
        "meanTogether": together_mean,
        "meanOther": other_mean,
        "difference": round(together_mean - other_mean, 6),
    }


def _mean(values: Sequence[float]) -> float:
    return round(sum(values) / len(values), 6)
