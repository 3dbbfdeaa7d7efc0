"""A node with one fault planted: `python broken_node.py WHERE@COUNT=WHAT --config FILE`.

WHERE is a place in the node's life, COUNT which of its visits there (from 1; `*` is every one), WHAT happens then:
`kill` (SIGKILL to itself), `stop` (SIGSTOP), `ENOSPC` and the like (the operation fails with that errno), `sleep:N` (it
takes N seconds longer). Everything else is the real node.
"""

import errno
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Call = Callable[..., Any]

WHERE: dict[str, tuple[str, str]] = {
    "load": ("pcmoe_node.participant", "build"),
    "forward": ("pcmoe_node.step", "_train_micro_batch"),
    "backward": ("pcmoe_node.cut.MicroBatch", "backward"),
    "vote": ("pcmoe_node.step", "_vote"),
    "apply": ("pcmoe_node.step", "_apply"),
    "evaluation": ("pcmoe_node.rounds", "evaluate"),
    "store": ("pcmoe_node.checkpoint", "save_file"),
    "fsync": ("pcmoe_node.checkpoint", "_fsync"),
    "rename": ("pathlib.Path", "rename"),
    "stored": ("pcmoe_node.coordination.seat.Seat", "stored"),
    "commit": ("pcmoe_node.rounds", "_remember_commit"),
    "leave": ("pcmoe_node.rounds", "_take_leave"),
    "entered": ("pcmoe_node.coordination.seat.Seat", "entered"),
    "restore": ("pcmoe_node.views", "restore"),
}
"""Place in a node's life to (module or class, function)."""


def plant(fault: str) -> None:
    """Put the fault in its place."""
    place, _, what = fault.partition("=")
    where, _, count = place.partition("@")
    owner, name = WHERE[where]
    target = _resolved(owner)
    visits = 0
    real: Call = getattr(target, name)

    def visited(*args: Any, **kwargs: Any) -> Any:
        nonlocal visits
        visits += 1
        if count == "*" or visits == int(count or 1):
            _happen(what, where)
        return real(*args, **kwargs)

    setattr(target, name, visited)


def _happen(what: str, where: str) -> None:
    if what.startswith("sleep:"):
        time.sleep(float(what.removeprefix("sleep:")))
        return
    print(f"planted: {what} at {where}", file=sys.stderr, flush=True)  # noqa: T201
    if what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    else:
        raise OSError(getattr(errno, what), os.strerror(getattr(errno, what)))


def _resolved(path: str) -> Any:
    """A module or a class by its dotted path."""
    import importlib

    head, _, tail = path.rpartition(".")
    if tail[:1].isupper():
        return getattr(importlib.import_module(head), tail)
    return importlib.import_module(path)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    planted = sys.argv.pop(1)
    from pcmoe_node.__main__ import main

    plant(planted)
    main()
