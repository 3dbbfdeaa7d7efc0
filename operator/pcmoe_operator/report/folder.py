"""The facts of a local run, from its folder."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pcmoe_operator import spec
from pcmoe_operator.constants import COORDINATOR
from pcmoe_operator.errors import UsageError
from pcmoe_operator.report.comparison import baselines_in
from pcmoe_operator.report.continuations import continuations_in
from pcmoe_operator.report.facts import facts_of
from pcmoe_operator.report.figures import Beside, Gathered, RunFacts
from pcmoe_operator.report.leaks import leaks_in
from pcmoe_operator.report.parts import part_in


def read_facts(folder: Path) -> RunFacts:
    """All that a report is made of.

    Raises `UsageError` if the folder holds no run or something in it can't be read.
    """
    record = _record(folder)
    consortium = spec.load(folder / "manifest.yaml")
    gathered = Gathered(
        parts={name: part_in(folder / name / "log", name) for name in consortium.names},
        events=part_in(folder / COORDINATOR / "log", COORDINATOR).events,
        settings={"CPU": f"{record['cores']} cores, {record['threads']} threads per node"},
        software=record["software"],
        beside=Beside(
            baselines=baselines_in(folder, consortium.names),
            leaks=leaks_in(folder, consortium.names),
            continuations=continuations_in(folder, consortium.names),
        ),
    )
    return facts_of(consortium, gathered)


def _record(folder: Path) -> Mapping[str, Any]:
    path = folder / "run.json"
    try:
        record = json.loads(path.read_text())
        return {key: record[key] for key in ("cores", "threads", "software")}
    except FileNotFoundError:
        raise UsageError(f"{folder} holds no run: there is no run.json in it") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} can't be used: {type(error).__name__}: {error}") from None
