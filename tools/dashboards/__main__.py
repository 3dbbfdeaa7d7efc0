"""Writes the chart's Grafana dashboards.

python -m tools.dashboards            write charts/pcmoe/dashboards/*.json
python -m tools.dashboards --check    end with 1 if one of them is not what would be written
"""

import argparse
import json
import sys
from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder
from tools.dashboards.consortium import consortium
from tools.dashboards.operator import operator
from tools.dashboards.participant import participant

FOLDER = Path(__file__).parents[2] / "charts" / "pcmoe" / "dashboards"
BOARDS = {"consortium.json": consortium, "participant.json": participant, "operator.json": operator}


def rendered() -> dict[str, str]:
    """Every file and its text."""
    return {
        name: json.dumps(make(), cls=JSONEncoder, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
        for name, make in BOARDS.items()
    }


def write() -> None:
    """Write every file."""
    for name, text in rendered().items():
        (FOLDER / name).write_text(text)


def stale() -> list[str]:
    """Files that are not what would be written, that are missing, or that nobody writes."""
    there = {path.name: path.read_text() for path in FOLDER.glob("*")}
    made = rendered()
    return sorted(name for name in there.keys() | made.keys() if there.get(name) != made.get(name))


def main() -> int:
    """The command line above."""
    parser = argparse.ArgumentParser(prog="python -m tools.dashboards", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing, say whether all is up to date")
    if parser.parse_args().check:
        for name in (old := stale()):
            print(f"{FOLDER / name}: not up to date; run: python -m tools.dashboards", file=sys.stderr)
        return 1 if old else 0
    write()
    return 0


if __name__ == "__main__":
    sys.exit(main())
