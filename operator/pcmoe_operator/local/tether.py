"""Run a command that can't outlive the process that asked for it.

Started as a script, `tether.py PARENT COMMAND…`: asks Linux to kill this process when its parent dies, then
becomes the command, so that even a runner ended by SIGKILL leaves no node behind. Elsewhere it only becomes
the command. A script rather than a function between fork and exec: the runner has threads.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main(parent: int, command: list[str]) -> None:
    """Tie this process to `parent` and become `command`; ends at once if the parent is gone already."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
        if os.getppid() != parent:  # it died before the request was in place
            sys.exit(128 + signal.SIGKILL)
    os.execv(command[0], command)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
