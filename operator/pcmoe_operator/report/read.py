"""What nodes wrote down during a run, read into types. What is absent or of another type is an error."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pcmoe_operator.errors import UsageError


@dataclass(frozen=True, kw_only=True, slots=True)
class PeerTraffic:
    """What one participant exchanged with one peer in one round; bytes with padding, without TLS."""

    bytes_sent: int
    bytes_received: int
    messages_sent: int
    hidden_rows_sent: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """A participant's memory at the end of a round, bytes."""

    peak_rss: int
    """Largest resident size so far."""
    baseline_rss: int
    """Resident size after the imports, before the model."""
    tensors: Mapping[str, int]
    """Exact bytes of its tensors by kind."""
    gpu_peak: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Round:
    """One line of `rounds.jsonl`."""

    round: int
    step: int
    time: float
    """Unix seconds at its end."""
    seconds: float
    train_loss: float | None
    held_out_loss: float | None
    tokens: int
    steps_skipped: int
    seconds_by_phase: Mapping[str, float]
    traffic: Mapping[str, PeerTraffic]
    memory: Memory


def read_rounds(path: Path) -> list[Round]:
    """The rounds of one participant, ascending, each once: a resumed run repeats what it had not stored.

    A half-written last line is left out. Raises `UsageError` for any other line that can't be read.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: can't be read: {error}") from error
    rounds: dict[int, Round] = {}
    for number, line in enumerate(text[: text.rfind("\n") + 1].splitlines(), 1):
        try:
            found = _round(json.loads(line))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UsageError(f"{path}: line {number} is no round: {type(error).__name__}: {error}") from None
        rounds = {n: r for n, r in rounds.items() if n < found.round} | {found.round: found}
    return list(rounds.values())


def _round(given: dict[str, Any]) -> Round:
    return Round(
        round=int(given["round"]),
        step=int(given["step"]),
        time=float(given["time"]),
        seconds=float(given["seconds"]),
        train_loss=_optional(given["trainLoss"]),
        held_out_loss=_optional(given["heldOutLoss"]),
        tokens=int(given["tokens"]),
        steps_skipped=int(given["stepsSkipped"]),
        seconds_by_phase={str(k): float(v) for k, v in given["secondsByPhase"].items()},
        traffic={str(peer): _traffic(moved) for peer, moved in given["traffic"].items()},
        memory=_memory(given["memory"]),
    )


def _optional(value: object) -> float | None:
    return None if value is None else float(str(value))


def _traffic(given: dict[str, Any]) -> PeerTraffic:
    return PeerTraffic(
        bytes_sent=int(given["bytesSent"]),
        bytes_received=int(given["bytesReceived"]),
        messages_sent=int(given["messagesSent"]),
        hidden_rows_sent=int(given["hiddenRowsSent"]),
    )


def _memory(given: dict[str, Any]) -> Memory:
    return Memory(
        peak_rss=int(given["peakRssBytes"]),
        baseline_rss=int(given["baselineRssBytes"]),
        tensors={str(kind): int(count) for kind, count in given["tensorBytes"].items()},
        gpu_peak=None if given.get("gpuPeakBytes") is None else int(given["gpuPeakBytes"]),
    )
