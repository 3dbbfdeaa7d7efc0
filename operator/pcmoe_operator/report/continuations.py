"""How the starting and the trained models go on from a prompt: `continuations.json`, as `pcmoe run --prompt` leaves it.

The only file of a run with text in it that a report shows: somebody typed the prompts, and wanted to see the answers.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pcmoe_operator.answers import printable
from pcmoe_operator.errors import UsageError
from pcmoe_operator.report.read import count, few

FILE = "continuations.json"
MAX_CHARACTERS = 4000
"""Of a prompt or a continuation; the rest is left out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Continuation:
    """One organisation's."""

    prompt: str
    base: str
    """Of the model that all started from."""
    consortium: str
    """Of the organisation's trained model."""
    round: int | None
    """After which it was trained so far, where that is told."""


def continuations_in(folder: Path, names: Sequence[str]) -> dict[str, Continuation]:
    """By participant; none where there is no such file. `UsageError` says what is wrong with it, and quotes nothing."""
    path = folder / FILE
    try:
        given = json.loads(path.read_text("utf-8"))
        organisations = few(given, "organisations")
        at = None if given.get("round") is None else count(given, "round")
        return {name: _continuation(organisations[name], name, at) for name in names if name in organisations}
    except FileNotFoundError:
        return {}
    except KeyError as error:
        raise UsageError(f"{path}: can't be used: it has no {printable(error.args[0])}") from None
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        told = str(error) if type(error) is ValueError else type(error).__name__
        raise UsageError(f"{path}: can't be used: {printable(told)}") from None


def _continuation(given: Mapping[str, Any], name: str, at: int | None) -> Continuation:
    return Continuation(
        prompt=_text(given, "prompt", name),
        base=_text(given, "base", name),
        consortium=_text(given, "consortium", name),
        round=at,
    )


def _text(given: Mapping[str, Any], key: str, name: str) -> str:
    """Text with its lines, without other characters that don't print."""
    value = given[key]
    if not isinstance(value, str):
        raise ValueError(f"organisations.{name}.{key} must be text")
    shown = value[:MAX_CHARACTERS].replace("\t", " ")
    return "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in shown)
