"""The report of a run: `report.json` with every figure, and `report.html`, one page that loads nothing.

`read`, `timeline` and `parts` read what nodes wrote; `folder` gathers it from a local run, `remote.report` from a
cluster; `figures` computes, `charts` and `page` draw. A report can be made at any time, also of a run that goes on or
failed, and where parts are missing; it then shows what is there and says what isn't.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from pcmoe_operator.errors import UsageError
from pcmoe_operator.report.figures import Figures, RunFacts, figures_of
from pcmoe_operator.report.folder import read_facts
from pcmoe_operator.report.page import page_of


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """Where a report was written, and its figures."""

    page: Path
    data: Path
    figures: Figures


def write_report(folder: Path) -> Report:
    """Read the folder of a run and write both files into it.

    Raises `UsageError` if the folder holds no run or something in it can't be read.
    """
    return write_facts(read_facts(folder), folder)


def write_facts(facts: RunFacts, folder: Path) -> Report:
    """Write both files into a folder, which is made if it isn't there; `UsageError` where that can't be done."""
    figures = figures_of(facts)
    page, data = folder / "report.html", folder / "report.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        data.write_text(as_text(figures) + "\n", encoding="utf-8")
        page.write_text(page_of(figures), encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{folder}: the report can't be written there: {error.strerror}") from error
    return Report(page=page, data=data, figures=figures)


def as_text(figures: Figures) -> str:
    """Figures as JSON."""
    return json.dumps(figures, indent=2, ensure_ascii=False, allow_nan=False)
