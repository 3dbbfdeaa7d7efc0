"""`pcmoe-coordinator --config FILE`: keep view and commits of one consortium until told to stop."""

import argparse
import logging
import signal
import sys
import threading
from pathlib import Path

from pcmoe_node.config import CoordinatorConfig
from pcmoe_node.coordination.server import CoordinatorServer
from pcmoe_node.errors import EXIT_INTERRUPTED, EXIT_TERMINATED, NodeError
from pcmoe_node.journal import Journal
from pcmoe_node.status import StatusServer

log = logging.getLogger("pcmoe")

LOOK_SECONDS = 0.5


def main() -> None:
    """Read the configuration, serve, and end with the exit code that says why (errors.py)."""
    parser = argparse.ArgumentParser(prog="pcmoe-coordinator", description=__doc__)
    parser.add_argument(
        "--config", type=Path, required=True, help="CoordinatorConfig as JSON, written by the operator"
    )
    path: Path = parser.parse_args().config
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s", force=True
    )
    sys.exit(_run(path))


def _run(path: Path) -> int:
    """Serve until told to stop; returns the exit code."""
    told = threading.Event()
    codes = {signal.SIGTERM: EXIT_TERMINATED, signal.SIGINT: EXIT_INTERRUPTED}
    exit_code = EXIT_TERMINATED

    def stop(number: int, _frame: object) -> None:
        nonlocal exit_code
        exit_code = codes[signal.Signals(number)]
        told.set()

    for number in codes:
        signal.signal(number, stop)
    try:
        config = CoordinatorConfig.load(path)
        journal, name = Journal(Path(config.log_directory)), config.coordinator.name
        coordinator = CoordinatorServer(config, journal)
        try:
            status = StatusServer(config.status_listen, coordinator.page, lambda: journal.report(name))
            log.info("listening on %s", config.identity.listen)
            while not told.wait(LOOK_SECONDS) and not coordinator.ending:
                pass
            status.close()
        finally:
            coordinator.stop()
    except NodeError as error:
        log.error("%s: %s", type(error).__name__, error)
        return error.exit_code
    except Exception:
        log.exception("a fault of the program itself; please report it")
        return NodeError.exit_code
    return exit_code if told.is_set() else NodeError.exit_code


if __name__ == "__main__":
    main()
