"""`python -m pcmoe_node.wiretap DIR [--ledger]`: account for every byte that was recorded there.

Exit code 0: all of it is explained (and the ledgers say the same); 1: it is not; 64: DIR holds no recording.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from pcmoe_node.errors import NodeError
from pcmoe_node.ledger_book import FILE
from pcmoe_node.wiretap.account import Account, account_of
from pcmoe_node.wiretap.against import compared, read_ledger
from pcmoe_node.wiretap.tape import about_of


def main() -> None:
    """Parse, add up, tell."""
    parser = argparse.ArgumentParser(prog="python -m pcmoe_node.wiretap", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="DIR", help="what PCMOE_WIRETAP named")
    parser.add_argument(
        "--ledger", action="store_true", help="compare with each participant's exposure.jsonl, too"
    )
    given = parser.parse_args()
    try:
        figures = figures_of(given.folder, with_ledgers=given.ledger)
    except NodeError as error:
        sys.stderr.write(f"wiretap: {error}\n")
        sys.exit(error.exit_code)
    sys.stdout.write(json.dumps(figures, indent=2, ensure_ascii=False) + "\n")
    sys.exit(0 if figures["explained"] else 1)


def figures_of(folder: Path, *, with_ledgers: bool) -> dict[str, Any]:
    """All figures, ready to be written as JSON. Raises `ConfigError`."""
    account = account_of(folder)
    figures: dict[str, Any] = {
        "recordedBytes": account.recorded,
        "cutShortBytes": account.cut_short,
        "residueBytes": account.residue,
        "faults": account.faults,
        "sent": _sent(account),
    }
    differences: list[str] = []
    if with_ledgers:
        figures["ledgers"] = {}
        for name, about in sorted(about_of(folder).items()):
            found = compared(account, name, read_ledger(about.log / FILE))
            differences += found.differences
            figures["ledgers"][name] = {"equalSums": found.equal, "unsentBytes": found.unsent}
        figures["differences"] = differences
    figures["explained"] = not (account.residue or account.faults or differences)
    return figures


def _sent(account: Account) -> list[dict[str, Any]]:
    """Everything that was sent, by sender, receiver and kind, over all layers and views."""
    rows: dict[tuple[str, str, str], dict[str, Any]] = {}
    for sums, again in ((account.sums, False), (account.repeated, True)):
        for key, total in sums.items():
            if key.out:
                place = (key.participant, key.peer, key.kind)
                row = rows.setdefault(place, {"frames": 0, "repeated": 0, "rows": 0, "bytes": {}})
                row["repeated" if again else "frames"] += total.frames
                row["rows"] += 0 if again else total.rows
                for name, count in total.bytes.items():
                    row["bytes"][name] = row["bytes"].get(name, 0) + count
    return [
        {"from": sender, "to": receiver, "kind": kind, **row}
        for (sender, receiver, kind), row in sorted(rows.items())
    ]


if __name__ == "__main__":
    main()
