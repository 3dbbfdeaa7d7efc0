"""A stand-in for a node: reads its configuration, serves `/status`, writes rounds, ends as it is told.

`behaviour.json`, all optional: `code` (exit code after the rounds), `rounds` (how many before it),
`words` (logged last), `forever` (then wait until told to stop), `deaf` (ignore SIGTERM), `by_signal` (die
by this signal), `after_peer_fails` (wait until that participant's folder holds a file named `failed`).
"""

import json
import os
import signal
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

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
    moved = {"bytesSent": 4096 * 100, "bytesReceived": 4096 * 90, "messagesSent": 20, "messagesReceived": 20}
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


def wait_until(path: Path) -> None:
    """Return when the file exists; a missing one ends the stand-in after a deadline."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not path.exists():
        if time.monotonic() > deadline:
            sys.exit(99)
        time.sleep(0.02)


def main(config_file: Path) -> None:
    """Behave."""
    config = json.loads(config_file.read_text())
    folder = config_file.parent
    behaviour = (
        json.loads((folder / "behaviour.json").read_text()) if (folder / "behaviour.json").exists() else {}
    )
    signal.signal(signal.SIGTERM, signal.SIG_IGN if behaviour.get("deaf") else lambda *_: os._exit(143))
    (folder / "pid").write_text(str(os.getpid()))
    (folder / "threads").write_text(os.environ.get("OMP_NUM_THREADS", ""))
    me = config["participant"]
    peers = [p["name"] for p in config["participants"] if p["name"] != me]
    rounds = behaviour.get("rounds", config["training"]["rounds"])
    status = {
        "participant": me,
        "phase": "TRAINING",
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
        for number in range(rounds + 1):
            record = round_record(number, peers)
            status |= {"round": number, "step": record["step"], "trainLoss": record["trainLoss"]}
            file.write(json.dumps(record) + "\n")
            file.flush()
    (folder / "ready").touch()
    if "after_peer_fails" in behaviour:
        wait_until(folder.parent / behaviour["after_peer_fails"] / "failed")
    if behaviour.get("forever"):
        wait_until(folder / "never")
    if "words" in behaviour:
        print(behaviour["words"], file=sys.stderr, flush=True)  # noqa: T201
    if behaviour.get("code") or "by_signal" in behaviour:
        (folder / "failed").touch()
    if "by_signal" in behaviour:
        os.kill(os.getpid(), behaviour["by_signal"])
    os._exit(behaviour.get("code", 0))


if __name__ == "__main__":
    main(Path(sys.argv[sys.argv.index("--config") + 1]))
