"""`python -m pcmoe_node.baselines`: train one baseline, as a process that talks to nobody.

`pcmoe run --baselines` starts it. The union needs every participant's configuration and data on this machine: it exists
for local runs only.
"""

import argparse
import logging
import os
import signal
import sys
from pathlib import Path
from types import FrameType

from pcmoe_node.baselines.settings import Kind, baseline_of
from pcmoe_node.config import NodeConfig
from pcmoe_node.errors import EXIT_INTERRUPTED, EXIT_TERMINATED, NodeError, places_of

log = logging.getLogger("pcmoe")


class _Told(BaseException):
    """A signal told this process to stop."""

    def __init__(self, exit_code: int) -> None:
        self.exit_code = exit_code


def main() -> None:
    """Read the configurations, train, and end with the exit code that says why (errors.py)."""
    parser = argparse.ArgumentParser(prog="python -m pcmoe_node.baselines", description=__doc__)
    parser.add_argument("--kind", type=Kind, choices=tuple(Kind), required=True)
    parser.add_argument(
        "--config",
        type=Path,
        action="append",
        required=True,
        help="NodeConfig of the participant, as JSON; for the union again and again, one of each",
    )
    parser.add_argument(
        "--output", type=Path, required=True, help="folder; KIND/NAME/log/rounds.jsonl is written below it"
    )
    given = parser.parse_args()
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s", force=True
    )
    signal.signal(signal.SIGTERM, _told_to_stop)
    signal.signal(signal.SIGINT, _told_to_stop)
    exit_code = _run(given.kind, given.config, given.output)
    logging.shutdown()
    os._exit(exit_code)  # as a node does: taking torch apart takes seconds


def _run(kind: Kind, paths: list[Path], output: Path) -> int:
    """Train it and return the exit code."""
    try:
        baseline = baseline_of(kind, [NodeConfig.load(path) for path in paths])
        # Seconds of torch, which a bad argument needn't cost.
        from pcmoe_node.__main__ import use_one_arena
        from pcmoe_node.baselines.training import run_baseline

        use_one_arena()
        run_baseline(baseline, output)
    except NodeError as error:
        log.error("%s: %s", type(error).__name__, error)
        return error.exit_code
    except _Told as told:
        log.info("told to stop before it was done")
        return told.exit_code
    except Exception as error:
        log.error("a fault of the program itself; please report it: %s", places_of(error))
        return NodeError.exit_code
    return 0


def _told_to_stop(number: int, _frame: FrameType | None) -> None:
    raise _Told(EXIT_TERMINATED if number == signal.SIGTERM else EXIT_INTERRUPTED)


if __name__ == "__main__":
    main()
