"""A process beside a run, which talks to nobody: how it logs, is told to stop, and ends."""

import logging
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

from pcmoe_node.errors import EXIT_INTERRUPTED, EXIT_TERMINATED, NodeError, places_of

log = logging.getLogger("pcmoe")


class _Told(BaseException):
    """A signal told this process to stop."""

    def __init__(self, exit_code: int) -> None:
        self.exit_code = exit_code


def run_aside(work: Callable[[], object]) -> NoReturn:
    """Do the work and end the process with the exit code that says why (errors.py)."""
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s", force=True
    )
    signal.signal(signal.SIGTERM, _told_to_stop)
    signal.signal(signal.SIGINT, _told_to_stop)
    exit_code = exit_code_of(work)
    logging.shutdown()
    os._exit(exit_code)  # as a node does: taking torch apart takes seconds


def exit_code_of(work: Callable[[], object]) -> int:
    """Do the work; how it ended, with a line in the log where it didn't end well. No message of a fault is logged."""
    try:
        work()
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
