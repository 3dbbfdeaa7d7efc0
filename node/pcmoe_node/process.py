"""A process of its own: how it logs, shares its memory, is told to stop, and ends."""

import ctypes
import logging
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

from pcmoe_node.errors import EXIT_INTERRUPTED, EXIT_TERMINATED, NodeError, places_of

log = logging.getLogger("pcmoe")
_CODES = {signal.SIGTERM: EXIT_TERMINATED, signal.SIGINT: EXIT_INTERRUPTED}
_M_ARENA_MAX = -8  # malloc.h


class _Told(BaseException):
    """A signal told this process to stop."""

    def __init__(self, exit_code: int) -> None:
        self.exit_code = exit_code


def run_process(work: Callable[[], object], stopped: str = "told to stop before it was done") -> NoReturn:
    """Do the work and end the process with the exit code that says why (errors.py)."""
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s", force=True
    )
    for number in _CODES:
        signal.signal(number, _told_to_stop)
    exit_code = exit_code_of(work, stopped)
    # Taking a process with torch and transformers apart object by object takes seconds, and frees nothing that the
    # end of the process doesn't.
    logging.shutdown()
    os._exit(exit_code)


def exit_code_of(work: Callable[[], object], stopped: str = "told to stop before it was done") -> int:
    """Do the work; how it ended, with a line in the log where it didn't end well. No message of a fault is logged."""
    try:
        work()
    except NodeError as error:
        log.error("%s: %s", type(error).__name__, error)
        return error.exit_code
    except _Told as told:
        log.info("%s", stopped)
        return told.exit_code
    except Exception as error:
        log.error("a fault of the program itself; please report it: %s", places_of(error))
        return NodeError.exit_code
    return 0


def use_one_arena() -> None:
    """Let all threads share one malloc arena, where the C library is glibc.

    By default each lane's thread has its own, and memory freed in one is of no use to the others: measured on the
    pilot, 515 MB of peak against 386 MB, at the same speed, because only one lane runs at a time anyway.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)


def _told_to_stop(number: int, _frame: FrameType | None) -> None:
    raise _Told(_CODES[signal.Signals(number)])
