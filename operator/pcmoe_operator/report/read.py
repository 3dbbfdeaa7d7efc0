"""What nodes wrote down during a run, read into types. What is absent or of another type is an error.

Lines may come from a pod, and nobody says what runs there: types are strict, numbers bounded, text printable.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pcmoe_operator.answers import printable
from pcmoe_operator.errors import UsageError

MAX_COUNT = 2**63 - 1
MAX_SECONDS = 1e12
MAX_KINDS = 64
"""Phases, kinds of tensors or peers in one record."""
MAX_NAME = 40
LARGEST_LOSS = 1e12
"""A loss beyond it is none: it overflows what is computed from it."""
Line = str | bytes | dict[str, Any]
"""A line of a journal, as text or read already."""
Read = TypeVar("Read")


@dataclass(frozen=True, kw_only=True, slots=True)
class PeerTraffic:
    """What one participant exchanged with one peer in one round; bytes with padding, without TLS."""

    bytes_sent: int
    bytes_received: int
    messages_sent: int
    hidden_rows_sent: int
    replies: int
    reply_seconds: float
    """From sending each request to taking up the peer's answer, summed; many are under way at a time."""


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
    """One line of `rounds.jsonl`. What older nodes don't write down is None."""

    round: int
    step: int
    time: float
    """Unix seconds at its end."""
    seconds: float
    train_loss: float | None
    """May be NaN or infinite, as a node that diverges finds it."""
    held_out_loss: float | None
    """The same."""
    tokens: int
    steps_skipped: int
    seconds_by_phase: Mapping[str, float]
    traffic: Mapping[str, PeerTraffic]
    memory: Memory
    gpus: int | None
    """How many it computed on."""
    checkpoint_bytes: int | None
    checkpoint_seconds: float | None
    remote_token_share: float | None
    """Share of its rows, one per token and layer, of which a peer computed a part; 0 to 1."""


def read_lines(path: Path) -> list[str]:
    """The whole lines of a journal, none where there is no file; a half-written last line is left out.

    Raises `UsageError` if it can't be read.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: can't be read: {error}") from error
    return text[: text.rfind("\n") + 1].splitlines()


def read_rounds(path: Path) -> list[Round]:
    """The rounds in a file, as `rounds_of` finds them."""
    return rounds_of(read_lines(path), str(path))


def rounds_of(lines: Iterable[Line], where: str) -> list[Round]:
    """The rounds of one participant, ascending, each once: a resumed run repeats what it had not stored.

    Raises `UsageError` that names `where` and the line for one that can't be read.
    """
    rounds: list[Round] = []
    for found in read_each(lines, _round, where, "round"):
        while rounds and rounds[-1].round >= found.round:
            rounds.pop()
        rounds.append(found)
    return rounds


def read_each(
    lines: Iterable[Line], read: Callable[[dict[str, Any]], Read], where: str, what: str
) -> Iterable[Read]:
    """Every line as `read` finds it. Raises `UsageError` with `where` and the line's number; never with its text."""
    for number, line in enumerate(lines, 1):
        try:
            given = line if isinstance(line, dict) else json.loads(line)
            found = read(given)
        except KeyError as error:
            raise UsageError(f"{where}: line {number} is no {what}: it has no {error.args[0]}") from None
        except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            kind = "not valid JSON" if isinstance(error, json.JSONDecodeError) else str(error)
            raise UsageError(f"{where}: line {number} is no {what}: {printable(kind)}") from None
        yield found


def count(given: Mapping[str, Any], key: str) -> int:
    """A count; raises KeyError or ValueError."""
    value = given[key]
    if type(value) is not int or not 0 <= value <= MAX_COUNT:
        raise ValueError(f"{key} must be a whole number from 0 on")
    return value


def seconds(given: Mapping[str, Any], key: str) -> float:
    """Seconds, a length or a Unix time; raises KeyError or ValueError."""
    value = given[key]
    if type(value) not in (int, float) or not 0 <= value <= MAX_SECONDS:
        raise ValueError(f"{key} must be seconds from 0 on")
    return float(value)


def word(given: Mapping[str, Any], key: str, limit: int = MAX_NAME) -> str:
    """One line of printable text; raises KeyError or ValueError."""
    value = given[key]
    if not isinstance(value, str) or printable(value, limit) != value:
        raise ValueError(f"{key} must be printable text of at most {limit} characters")
    return value


def finite(value: float | None) -> float | None:
    """A number that JSON has; what overflowed is none."""
    usable = value is not None and math.isfinite(value) and abs(value) <= LARGEST_LOSS
    return value if usable else None


def own_tensors(one: Round) -> int:
    """Bytes of all tensors at its end."""
    return sum(one.memory.tensors.values())


def peak_above_imports(one: Round) -> int:
    """Largest resident bytes so far, less those after the imports."""
    return max(0, one.memory.peak_rss - one.memory.baseline_rss)


def _round(given: dict[str, Any]) -> Round:
    return Round(
        round=count(given, "round"),
        step=count(given, "step"),
        time=seconds(given, "time"),
        seconds=seconds(given, "seconds"),
        train_loss=_loss(given, "trainLoss"),
        held_out_loss=_loss(given, "heldOutLoss"),
        tokens=count(given, "tokens"),
        steps_skipped=count(given, "stepsSkipped"),
        seconds_by_phase=_by_kind(given, "secondsByPhase", seconds),
        traffic={peer: _traffic(moved) for peer, moved in few(given, "traffic").items()},
        memory=_memory(given["memory"]),
        gpus=_optional(given, "gpus", count),
        checkpoint_bytes=_optional(given, "checkpointBytes", count),
        checkpoint_seconds=_optional(given, "checkpointSeconds", seconds),
        remote_token_share=_optional(given, "remoteTokenShare", _share),
    )


def _loss(given: Mapping[str, Any], key: str) -> float | None:
    value = given[key]
    if value is not None and type(value) not in (int, float):
        raise ValueError(f"{key} must be a number or null")
    return None if value is None else float(value)


def _share(given: Mapping[str, Any], key: str) -> float:
    value = given[key]
    if type(value) not in (int, float) or not 0 <= value <= 1:
        raise ValueError(f"{key} must be a number from 0 to 1")
    return float(value)


def _optional(
    given: Mapping[str, Any], key: str, read: Callable[[Mapping[str, Any], str], Read]
) -> Read | None:
    return None if given.get(key) is None else read(given, key)


def few(given: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """An object with not too many keys, each of them a short word."""
    found = given[key]
    if not isinstance(found, dict) or len(found) > MAX_KINDS:
        raise ValueError(f"{key} must be an object with at most {MAX_KINDS} keys")
    if any(printable(name, MAX_NAME) != name for name in found):
        raise ValueError(f"{key}: a key must be printable text of at most {MAX_NAME} characters")
    return found


def _by_kind(
    given: Mapping[str, Any], key: str, read: Callable[[Mapping[str, Any], str], Read]
) -> dict[str, Read]:
    found = few(given, key)
    return {kind: read(found, kind) for kind in found}


def _traffic(given: Mapping[str, Any]) -> PeerTraffic:
    return PeerTraffic(
        bytes_sent=count(given, "bytesSent"),
        bytes_received=count(given, "bytesReceived"),
        messages_sent=count(given, "messagesSent"),
        hidden_rows_sent=count(given, "hiddenRowsSent"),
        replies=count(given, "replies"),
        reply_seconds=seconds(given, "replySeconds"),
    )


def _memory(given: Mapping[str, Any]) -> Memory:
    return Memory(
        peak_rss=count(given, "peakRssBytes"),
        baseline_rss=count(given, "baselineRssBytes"),
        tensors=_by_kind(given, "tensorBytes", count),
        gpu_peak=_optional(given, "gpuPeakBytes", count),
    )
