"""A local run of stand-ins: three participants and their coordinator, and what tests ask about their processes."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from io import StringIO
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from pcmoe_operator.local.ports import free_ports
from pcmoe_operator.local.processes import Crew, Member
from pcmoe_operator.local.supervise import Outcome, supervise
from pcmoe_operator.local.view import PlainView

FAKE_NODE = str(Path(__file__).with_name("fake_node.py"))
DEADLINE_SECONDS = 20.0
NAMES = ("berlin", "lyon", "porto")


def make_crew(
    folder: Path, on_peer_loss: Literal["Fail", "Wait"] = "Fail", **behaviours: dict[str, Any]
) -> Crew:
    """Three participants and a coordinator whose stand-ins behave as told."""
    everybody = (*NAMES, "coordinator")
    members = [
        _member(folder / name, port, behaviours.get(name, {}))
        for name, port in zip(everybody, free_ports(len(everybody)), strict=True)
    ]
    return Crew(members=tuple(members[:-1]), coordinator=members[-1], on_peer_loss=on_peer_loss)


def _member(own: Path, port: int, behaviour: dict[str, Any]) -> Member:
    own.mkdir()
    listen = f"127.0.0.1:{port}"
    config: dict[str, Any] = {"participants": [{"name": n} for n in NAMES], "status_listen": listen}
    if own.name in NAMES:
        config |= {
            "participant": own.name,
            "training": {"rounds": 2},
            "log_directory": str(own / "log"),
        }
    (own / "config.json").write_text(json.dumps(config))
    (own / "behaviour.json").write_text(json.dumps(behaviour))
    command = (sys.executable, FAKE_NODE, "--config", str(own / "config.json"))
    return Member(name=own.name, folder=own, status_url=f"http://{listen}", command=command, threads=1)


def run_plainly(crew: Crew) -> tuple[Outcome, str]:
    """Run with the plain view; what it printed comes back too."""
    out = StringIO()
    return supervise(crew, PlainView(Console(file=out, width=200))), out.getvalue()


def everybody_in(crew: Crew) -> Sequence[Member]:
    return (*crew.members, crew.coordinator)


def lives(crew: Crew) -> dict[str, int]:
    """How often each process was started, as it writes down; 0 where the end of another came before."""
    found = {m.name: m.folder / "lives" for m in everybody_in(crew)}
    return {name: int(file.read_text()) if file.exists() else 0 for name, file in found.items()}


def left_running(crew: Crew) -> list[str]:
    """Who still has a process."""
    files = {m.name: m.folder / "pid" for m in everybody_in(crew)}
    return [name for name, file in files.items() if file.exists() and is_running(int(file.read_text()))]


def is_running(pid: int) -> bool:
    """Whether a process exists and is not a zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def wait_for(condition: Callable[[], bool], what: str) -> None:
    """Poll until it holds, or fail at the deadline."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"waited too long for {what}"
        time.sleep(0.02)


RUNNER = """
import json, sys
from pathlib import Path
from rich.console import Console
from pcmoe_operator.local import restarts
from pcmoe_operator.local.processes import Crew, Member
from pcmoe_operator.local.supervise import supervise
from pcmoe_operator.local.view import PlainView
def member(m):
    folder, command = Path(m["folder"]), tuple(m["command"])
    return Member(name=m["name"], folder=folder, status_url=m["url"], command=command, threads=1)
restarts.BACK_OFF_SECONDS = (60.0, 60.0, 60.0)
*members, coordinator = [member(m) for m in json.loads(sys.argv[1])]
crew = Crew(members=tuple(members), coordinator=coordinator, on_peer_loss=sys.argv[2])
sys.exit(supervise(crew, PlainView(Console())).exit_code)
"""


def start_runner(crew: Crew) -> subprocess.Popen[bytes]:
    """A runner in its own process, as `pcmoe run` is; returns once everybody is ready."""
    given = [
        {"name": m.name, "folder": str(m.folder), "url": m.status_url, "command": m.command}
        for m in everybody_in(crew)
    ]
    runner = subprocess.Popen(
        [sys.executable, "-c", RUNNER, json.dumps(given), crew.on_peer_loss],
        stdout=subprocess.DEVNULL,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    wait_for(lambda: all((m.folder / "ready").exists() for m in everybody_in(crew)), "all to be ready")
    return runner
