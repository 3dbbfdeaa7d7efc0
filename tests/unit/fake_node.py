"""A stand-in for a node, or for the coordinator: reads its configuration, serves `/status`, ends as it is told.

`behaviour.json`, all optional: `code` (exit code after the rounds), `rounds` (how many before it), `words` (logged
last), `forever` (then wait until told to stop), `deaf` (ignore SIGTERM), `by_signal` (die by this signal),
`after_peer_fails` (wait until that participant's folder holds a file named `failed`), `after` (wait for a file),
`while_peer_fails` (then be in phase WAITING as long as that file is there), `lives` (all of that holds in so many
first lives, later ones go well), `round_per_life` (each life gets one round further than the one before),
`stops_in_seconds` (so long it takes to heed SIGTERM). Nodes wait for the coordinator, where the run has one.
It counts its lives in a file named `lives`. The coordinator serves until it is told to stop; one that is told
nothing else leaves a file named `well`.
"""

import json
import os
import signal
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NoReturn

DEADLINE_SECONDS = 60.0


def serve(listen: str, status: dict[str, Any]) -> None:
    """Answer every GET with the status, from a thread of its own."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps(status).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            """Nothing: the log is for the node's own words."""

    host, port = listen.rsplit(":", 1)
    server = ThreadingHTTPServer((host, int(port)), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()


def round_record(number: int, peers: list[str]) -> dict[str, Any]:
    """One line of rounds.jsonl, with losses that fall."""
    done = number > 0
    moved: dict[str, float] = {
        "bytesSent": 4096 * 100,
        "bytesReceived": 4096 * 90,
        "messagesSent": 20,
        "messagesReceived": 20,
    }
    moved |= {"replies": 10, "replySeconds": 0.125}
    return {
        "round": number,
        "step": 5 * number,
        "time": 1.7e9 + 10 * number,
        "seconds": 2.0,
        "trainLoss": 3.0 - 0.1 * number if done else None,
        "heldOutLoss": 3.2 - 0.1 * number,
        "tokens": 1280 if done else 0,
        "stepsApplied": 5 if done else 0,
        "stepsSkipped": 0,
        "secondsByPhase": dict.fromkeys(["data", "forward", "backward", "host", "wait", "optimizer"], 0.3)
        | {"evaluation": 0.1, "checkpoint": 0.1},
        "traffic": {peer: moved | {"hiddenRowsSent": 640} for peer in peers},
        "memory": {
            "rssBytes": 300 * 2**20,
            "peakRssBytes": 420 * 2**20,
            "baselineRssBytes": 200 * 2**20,
            "tensorBytes": {
                "backbone": 2**20,
                "experts": 2**21,
                "gradients": 3 * 2**20,
                "moments": 6 * 2**20,
                "masters": 0,
            },
            "gpuPeakBytes": None,
        },
    }


def wait_until(path: Path, *, there: bool = True) -> None:
    """Return when the file exists, or no longer does; ends the stand-in after a deadline."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while path.exists() != there:
        if time.monotonic() > deadline:
            sys.exit(99)
        time.sleep(0.02)


def behaviour_of(folder: Path, life: int) -> dict[str, Any]:
    """How to behave in this life."""
    path = folder / "behaviour.json"
    given: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return given if life <= given.get("lives", life) else {}


def begin_life(folder: Path) -> int:
    """Count this life, and leave what tests look for."""
    path = folder / "lives"
    life = 1 + (int(path.read_text()) if path.exists() else 0)
    path.write_text(str(life))
    (folder / "pid").write_text(str(os.getpid()))
    (folder / "threads").write_text(os.environ.get("OMP_NUM_THREADS", ""))
    return life


def end(folder: Path, behaviour: dict[str, Any]) -> NoReturn:
    """End as told."""
    if "words" in behaviour:
        print(behaviour["words"], file=sys.stderr, flush=True)  # noqa: T201
    if behaviour.get("code") or "by_signal" in behaviour:
        (folder / "failed").touch()
    if "by_signal" in behaviour:
        os.kill(os.getpid(), behaviour["by_signal"])
    os._exit(behaviour.get("code", 0))


def stop(folder: Path, behaviour: dict[str, Any]) -> NoReturn:
    """End because of SIGTERM."""
    (folder / "told_to_stop_at").write_text(str(time.monotonic()))
    time.sleep(behaviour.get("stops_in_seconds", 0))
    os._exit(143)


def coordinate(folder: Path, config: dict[str, Any], behaviour: dict[str, Any]) -> NoReturn:
    """Serve a status until told to stop, or to end."""
    members = [{"name": p["name"], "connected": True, "phase": "TRAINING"} for p in config["participants"]]
    status = {"state": "RUNNING", "view": 1, "round": 0, "reason": "", "members": members, "error": None}
    serve(config["status_listen"], status)
    (folder / "ready").touch()
    if not behaviour:
        (folder / "well").touch()
    if "after" in behaviour:
        wait_until(folder.parent / behaviour["after"])
    if not {"code", "by_signal"} & set(behaviour):
        wait_until(folder / "never")
    end(folder, behaviour)


def main(config_file: Path) -> None:
    """Behave."""
    config = json.loads(config_file.read_text())
    folder = config_file.parent
    life = begin_life(folder)
    behaviour = behaviour_of(folder, life)
    signal.signal(
        signal.SIGTERM, signal.SIG_IGN if behaviour.get("deaf") else lambda *_: stop(folder, behaviour)
    )
    if "participant" not in config:
        coordinate(folder, config, behaviour)
    if (folder.parent / "coordinator").exists():
        wait_until(folder.parent / "coordinator" / "ready")
    me = config["participant"]
    peers = [p["name"] for p in config["participants"] if p["name"] != me]
    rounds = behaviour.get("rounds", config["training"]["rounds"])
    status = {
        "participant": me,
        "phase": "TRAINING",
        "view": 1,
        "round": 0,
        "rounds": config["training"]["rounds"],
        "step": 0,
        "steps": 5 * config["training"]["rounds"],
        "trainLoss": None,
        "heldOutLoss": None,
        "tokensPerSecond": 640.0,
        "bytesSent": 0,
        "bytesReceived": 0,
        "peersConnected": len(peers),
        "peers": len(peers),
        "memory": {"rssBytes": 300 * 2**20},
    }
    serve(config["status_listen"], status)
    log = Path(config["log_directory"])
    log.mkdir(parents=True, exist_ok=True)
    with (log / "rounds.jsonl").open("a") as file:
        for number in range((life if behaviour.get("round_per_life") else rounds) + 1):
            record = round_record(number, peers)
            status |= {"round": number, "step": record["step"], "trainLoss": record["trainLoss"]}
            file.write(json.dumps(record) + "\n")
            file.flush()
    (folder / "failed").unlink(missing_ok=True)
    (folder / "ready").touch()
    if "after" in behaviour:
        wait_until(folder.parent / behaviour["after"])
    if "after_peer_fails" in behaviour:
        wait_until(folder.parent / behaviour["after_peer_fails"] / "failed")
    if "while_peer_fails" in behaviour:
        flag = folder.parent / behaviour["while_peer_fails"] / "failed"
        wait_until(flag)
        status["phase"] = "WAITING"
        wait_until(flag, there=False)
        status["phase"] = "TRAINING"
        time.sleep(1.2)  # so that somebody who asks twice a second sees it
    if behaviour.get("forever"):
        wait_until(folder / "never")
    end(folder, behaviour)


if __name__ == "__main__":
    main(Path(sys.argv[sys.argv.index("--config") + 1]))
