"""Writes the tables of docs/operator.md that follow from the code: reasons, rights. Metrics: `metric_tables`.

    python tools/operator_tables.py

Each stands between `<!-- table: NAME -->` and `<!-- end -->`; a test fails when one is not what this would write.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pcmoe_operator.reasons import Reason

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "operator.md"
RBAC = ROOT / "charts" / "pcmoe" / "templates" / "rbac.yaml"
TABLE = re.compile(r"(<!-- table: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
LEASES = "leases"


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """One rule of a Role."""

    group: str
    resources: str
    verbs: str
    named: bool
    """Whether it is for an object of one name."""


def rendered(page: str) -> str:
    """The page with its tables written anew; KeyError for a table that nobody makes."""
    made = {name: text for name, text in _tables()}
    return TABLE.sub(lambda found: f"{found[1]}{made[found[2]]}{found[3]}", page)


def _tables() -> Iterator[tuple[str, str]]:
    yield "reasons", _table(("reason", "means", "what to do"), map(_reason_row, Reason))
    rules = list(_rules(RBAC.read_text()))
    head = ("API group", "resources", "verbs")
    watched = [rule for rule in rules if rule.resources != LEASES]
    yield "rights-watched", _table(head, map(_rights_row, watched))
    yield "rights-own", _table(head, [_rights_row(rule) for rule in rules if rule.resources == LEASES])


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _reason_row(reason: Reason) -> Sequence[str]:
    return (f"`{reason.name}`", reason.meaning, reason.remedy or "–")


def _rules(template: str) -> Iterator[Rule]:
    """The rules of the chart's Roles, which are written out in its template."""
    pattern = r"- apiGroups: \[(.*)\]\n\s+resources: \[(.*)\]\n(\s+resourceNames: .*\n)?\s+verbs: \[(.*)\]"
    for group, resources, named, verbs in re.findall(pattern, template):
        yield Rule(group=group.strip('"') or "core", resources=resources, verbs=verbs, named=bool(named))


def _rights_row(rule: Rule) -> Sequence[str]:
    return (rule.group, rule.resources + (" (the operator's own)" if rule.named else ""), rule.verbs)


if __name__ == "__main__":
    PAGE.write_text(rendered(PAGE.read_text()))
