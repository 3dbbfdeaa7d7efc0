"""Ends a node that hangs: a kernel that never returns, a file system that doesn't answer.

Its I/O thread beats on, so its peers give it up only at the progress deadline; and then it would sit there, holding a
GPU, while they wait for a return that never comes. Ended, it is started again like any node that was lost.
"""

import faulthandler
import logging
import os
import sys
import threading
import time
from collections.abc import Callable

from pcmoe_node.errors import PeerLostError
from pcmoe_node.exchange.base import Transport
from pcmoe_node.patience import Patience

log = logging.getLogger("pcmoe")

PAUSED_SECONDS = 10.0
"""A watchdog that itself was not run for so long has been stopped with its whole process."""


def end_process() -> None:
    """Say where every thread is, and end at once: whoever hangs can't be asked to clean up."""
    faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
    logging.shutdown()
    os._exit(PeerLostError.exit_code)


class Watchdog:
    """Watches one transport's own progress while a view lasts. Use as a `with`."""

    def __init__(
        self,
        transport: Transport,
        patience: Patience,
        grace: float,
        end: Callable[[], None] = end_process,
    ) -> None:
        """`grace`: seconds beyond the peers' own patience, so that they are the first to say it."""
        self._transport = transport
        self._patience = patience
        self._grace = grace
        self._end = end
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="pcmoe-watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        every = min(1.0, self._grace / 2)
        counter, still, looked = -1, 0.0, time.monotonic()
        while not self._over.wait(every):
            own, now = self._transport.pulse(), time.monotonic()
            # Only time in which this thread ran counts: a process that was stopped for a while doesn't hang.
            passed, looked = now - looked, now
            if own.counter != counter or own.waiting or passed > PAUSED_SECONDS:
                counter, still = own.counter, 0.0
                continue
            still += passed
            if still - self._grace >= self._patience.limit(own.phase):
                log.error(
                    "nothing has moved here for %.0f s (in %s), and nobody is waited for: this process hangs, and "
                    "ends so that it can be started again",
                    still,
                    own.phase,
                )
                self._end()
                return
