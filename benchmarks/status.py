"""How long `pcmoe status` takes, from the shell to the last line, over many consortia.

    python benchmarks/status.py [--consortia 100] [--repeats 20] [--output FILE]

A real control plane with a namespace of consortia that have a status as an operator writes it, of four participants
each; every third has something wrong. Each command is a new process on a pseudo-terminal of 120 columns, as somebody
has it who looks: so the table is drawn too. Measured: all consortia; one; what of that is imports; the interpreter's
start; and how much of each is processor time of the command itself. Another process of the same machine makes all of it
slower, processor time least: say how busy it was.

Prints JSON: the medians, and every repeat. Needs the control plane's programs (`make cluster`).
"""

import argparse
import fcntl
import json
import os
import pty
import resource
import statistics
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the control plane is the tests'

from tests.builders import manifest  # noqa: E402 - see above
from tests.cluster.plane import ControlPlane  # noqa: E402

NAMES = ("berlin", "lyon", "oslo", "turin")
PROGRAM = [sys.executable, "-c", "from pcmoe_operator.cli import main; main()"]
IMPORTS = "import pcmoe_operator.cli.cluster_commands, pcmoe_operator.remote.tables"
COLUMNS = 120


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--consortia", type=int, default=100, help="how many (default 100)")
    parser.add_argument("--repeats", type=int, default=20, help="of each command (default 20)")
    parser.add_argument("--output", type=Path, help="write the JSON here too")
    options = parser.parse_args()
    with (
        TemporaryDirectory(prefix="pcmoe-status-") as folder,
        ControlPlane(Path(folder)) as plane,
        plane.namespace("status") as namespace,
    ):
        _fill(plane, namespace, options.consortia)
        where = ["--namespace", namespace]
        commands = {
            "all": [*PROGRAM, "status", *where],
            "one": [*PROGRAM, "status", "c-0", *where],
            "imports": [sys.executable, "-c", IMPORTS],
            "interpreter": [sys.executable, "-c", "pass"],
        }
        seconds: dict[str, list[float]] = {name: [] for name in commands}
        processor: dict[str, list[float]] = {name: [] for name in commands}
        load = os.getloadavg()[0]
        for _ in range(options.repeats):
            for name, command in commands.items():
                took, used = _timed(command, plane.kubeconfig)
                seconds[name].append(took)
                processor[name].append(used)
    result: dict[str, Any] = {
        "consortia": options.consortia,
        "seconds": {name: round(statistics.median(each), 3) for name, each in seconds.items()},
        "processorSeconds": {name: round(statistics.median(each), 3) for name, each in processor.items()},
        "worstSeconds": {name: round(max(each), 3) for name, each in seconds.items()},
        "repeats": {name: [round(each, 3) for each in found] for name, found in seconds.items()},
        "cores": os.cpu_count(),
        "loadBefore": round(load, 2),
        "loadAfter": round(os.getloadavg()[0], 2),
    }
    text = json.dumps(result, indent=1)
    print(text)
    if options.output:
        options.output.write_text(text + "\n")


def _fill(plane: ControlPlane, namespace: str, count: int) -> None:
    plane.define(yaml.safe_load((ROOT / "manifests" / "crd.yaml").read_text()))
    items = [manifest(NAMES, {"metadata.name": f"c-{number}"}) for number in range(count)]
    plane.kubectl(
        "create",
        "--namespace",
        namespace,
        "-f",
        "-",
        given={"apiVersion": "v1", "kind": "List", "items": items},
    )
    written = [
        {**item, "metadata": {"name": item["metadata"]["name"]}, "status": _status(number)}
        for number, item in enumerate(items)
    ]
    plane.kubectl(
        *(
            "apply",
            "--server-side",
            "--subresource=status",
            "--force-conflicts",
            "--namespace",
            namespace,
            "-f",
            "-",
        ),
        given={"apiVersion": "v1", "kind": "List", "items": written},
    )


def _status(number: int) -> dict[str, Any]:
    wrong = number % 3 == 0
    reason = "Unschedulable" if wrong else "Training"
    message = (
        "lyon: no machine has room for its pod: 0/4 nodes are available: 4 Insufficient nvidia.com/gpu; add a machine, "
        "free one, or ask for less in spec.local"
        if wrong
        else "rounds go on"
    )
    moment = "2026-01-01T12:00:00Z"
    conditions = [
        ("Accepted", "True", "Accepted", "the manifest keeps all rules"),
        ("Suspended", "False", "NotSuspended", "spec.suspend is not true"),
        ("Scheduled", "False" if wrong else "True", reason if wrong else "AllScheduled", message),
        ("Ready", "False" if wrong else "True", reason if wrong else "InView", message),
        ("Progressing", "False" if wrong else "True", reason, message),
        ("Completed", "False", "RoundsLeft", "12 of 20 rounds are committed"),
        ("Failed", "False", "NoFailure", "no participant has failed for good"),
    ]
    return {
        "observedGeneration": 1,
        "state": "Pending" if wrong else "Running",
        "round": "12/20",
        "ready": "3/4" if wrong else "4/4",
        "loss": "1.68",
        "attempt": 1,
        "participants": [
            {"name": name, "state": "Running", "round": 12, "phase": "TRAINING", "restarts": 0, "node": "machine-1"}
            for name in NAMES
        ],
        "conditions": [
            {"type": kind, "status": status, "reason": why, "message": words, "observedGeneration": 1,
             "lastTransitionTime": moment}
            for kind, status, why, words in conditions
        ],
    }  # fmt: skip


def _timed(command: list[str], kubeconfig: Path) -> tuple[float, float]:
    """Seconds of a whole command on a terminal, and its processor time; it must end well."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, COLUMNS, 0, 0))
    environment = {
        **os.environ,
        "KUBECONFIG": str(kubeconfig),
        "TERM": "xterm-256color",
        "PYTHONPATH": os.pathsep.join(str(ROOT / part) for part in ("operator", "node")),
    }
    began, used = time.perf_counter(), _processor()
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment) as process:
        os.close(theirs)
        shown = _all_of(ours)
        code = process.wait(60)
    seconds = time.perf_counter() - began
    os.close(ours)
    if code:
        raise SystemExit(f"{command}: ended with {code}: {shown.decode(errors='replace')}")
    return seconds, _processor() - used


def _processor() -> float:
    """Processor seconds of all children that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _all_of(terminal: int) -> bytes:
    shown = b""
    while True:
        try:
            piece = os.read(terminal, 65536)
        except OSError:  # how a terminal says that nobody writes to it any more
            return shown
        if not piece:
            return shown
        shown += piece


if __name__ == "__main__":
    main()
