"""After a local run: how each participant's prompt goes on, before training and after it.

One process of `pcmoe_node.continuation` puts each participant's whole model together from everybody's checkpoints. That
is possible only because all of them lie on this machine: in a cluster no organisation has the others' experts.
"""

import sys
from collections.abc import Callable

from pcmoe_operator.local.failure import Failure, last_error_line
from pcmoe_operator.local.folder import PRIVATE_FOLDER
from pcmoe_operator.local.prepare import PreparedRun
from pcmoe_operator.local.processes import Member, MemberProcess, stop_all
from pcmoe_operator.local.signals import stop_signals

COMMAND = (sys.executable, "-m", "pcmoe_node.continuation")
FILE = "continuations.json"
FOLDER = "continuations"
"""Of the process's log."""
TICK_SECONDS = 0.25


def run_continuations(prepared: PreparedRun, say: Callable[[str], None]) -> int | None:
    """Go on with the prompts and tell how it went, without a prompt's text; the signal that stopped it, if one did.

    That it fails is told like any end of it. No process is left when this returns.
    """
    member = _member(prepared)
    member.folder.mkdir(mode=PRIVATE_FOLDER, exist_ok=True)
    number = len(prepared.prompts)
    counted = "one prompt" if number == 1 else f"{number} prompts"
    say(f"Going on with {counted}, before and after training: {member.log_file}")
    with stop_signals() as request:
        process = MemberProcess(member)
        try:
            while process.poll() is None and request.signal is None:
                request.wait(TICK_SECONDS)
        finally:
            stop_all([process])
        if request.signal is None:
            say(_told(prepared, process))
        return request.signal


def _told(prepared: PreparedRun, process: MemberProcess) -> str:
    code, log = process.poll(), process.member.log_file
    if not code:
        return f"Continuations: {prepared.folder.path / FILE}"
    words = last_error_line(log, process.log_start)
    return Failure(participant=FOLDER, exit_code=code, last_line=words, log_file=log).sentence()


def _member(prepared: PreparedRun) -> Member:
    folder = prepared.folder
    configs = [part for each in prepared.crew.members for part in ("--config", str(folder.config(each.name)))]
    prompts = [part for name, text in prepared.prompts.items() for part in ("--prompt", f"{name}={text}")]
    return Member(
        name=FOLDER,
        folder=folder.path / FOLDER,
        status_url="",
        command=(*COMMAND, *configs, *prompts, "--output", str(folder.path / FILE)),
        threads=folder.load().cores,
    )
