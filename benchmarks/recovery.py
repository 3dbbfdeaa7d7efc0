"""What a lost node and a cut network cost.

    python benchmarks/recovery.py [--repeats 5] [--cut 10] [--output FILE]

Three nodes and a coordinator as processes, mutual TLS, `onPeerLoss: Wait`, 30 s of silence agreed. A node is killed and
started again at once: seconds from its start to the others' next step, and how many of those it took to start and load
(until its log says "loaded"). Then the network between all of them is cut for `cut` seconds: the longest pause between
two steps that follows.

Prints JSON: every repeat, and the medians.
"""

import argparse
import json
import os
import statistics
import time
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from party import ROOT

TRANSPORT = {
    "on_peer_loss": "Wait",
    "peer_timeout_seconds": 30,
    "progress_timeout_seconds": 600,
    "rejoin_timeout_seconds": 600,
}
LOOK_SECONDS = 0.01


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5, help="kills, and cuts (default 5)")
    parser.add_argument("--cut", type=float, default=10.0, help="seconds without a network (default 10)")
    parser.add_argument("--output", type=Path, help="write the JSON here too")
    options = parser.parse_args()
    with ExitStack() as stack:
        consortium, proxies = _started(stack)
        kills = [_killed(consortium) for _ in range(options.repeats)]
        pauses = [_cut(consortium, proxies, options.cut) for _ in range(options.repeats)]
    beyond = [kill["toNextStep"] - kill["startAndLoad"] for kill in kills]
    result = {
        "participants": 3,
        "peerTimeoutSeconds": TRANSPORT["peer_timeout_seconds"],
        "kills": kills,
        "secondsBeyondStartAndLoad": round(statistics.median(beyond), 2),
        "secondsBeyondStartAndLoadWorst": round(max(beyond), 2),
        "cutSeconds": options.cut,
        "longestPauses": pauses,
        "longestPauseSeconds": round(statistics.median(pauses), 2),
        "cores": os.cpu_count(),
    }
    text = json.dumps(result, indent=1)
    print(text)
    if options.output:
        options.output.write_text(text + "\n")


def _started(stack: ExitStack) -> tuple[Any, list[Any]]:
    """A consortium that has stored two rounds, and the proxies that its network goes through."""
    from tests.faults.consortium import Consortium, through_proxies
    from tests.faults.nursery import interpreter
    from tests.training.runs import QWEN3_MOE, Case, configs_of

    case = Case(
        n=3,
        rounds=100_000,
        steps_per_round=10,
        architecture=dict(QWEN3_MOE),
        overrides={"transport": TRANSPORT},
    )
    configs = configs_of(case, Path(stack.enter_context(TemporaryDirectory(prefix="pcmoe-recovery-"))))
    rerouted, proxies = through_proxies(configs, stack)
    listen = configs[0].coordinator.endpoint
    consortium = stack.enter_context(Consortium(rerouted, listen, interpreter))
    os.chdir(ROOT)
    consortium.start()
    consortium.round(2)
    return consortium, proxies


def _killed(consortium: Any) -> dict[str, float]:
    """Kill the second node in the middle of a round and start it again."""
    view, step = consortium.status(0)["view"], consortium.status(0)["step"]
    consortium.step(step + 13)
    consortium.nodes[1].kill()
    began_wall, began = time.time(), time.monotonic()
    consortium.nodes[1].start()
    consortium.until(0, lambda status: status["view"] > view)
    step = consortium.status(0)["step"]
    consortium.until(0, lambda status: status["phase"] == "TRAINING" and status["step"] != step)
    seconds = time.monotonic() - began
    loaded = [line for line in consortium.nodes[1].log.splitlines() if line.endswith("INFO loaded")][-1]
    at = datetime.strptime(loaded[:23], "%Y-%m-%d %H:%M:%S,%f").timestamp()
    return {"toNextStep": round(seconds, 2), "startAndLoad": round(at - began_wall, 2)}


def _cut(consortium: Any, proxies: list[Any], seconds: float) -> float:
    """The longest pause between two steps, from a cut until five steps after it."""
    view = consortium.status(0)["view"]
    for proxy in proxies:
        proxy.cut()
    heal_at = time.monotonic() + seconds
    last, moved, longest, healed_at_step = consortium.status(0)["step"], time.monotonic(), 0.0, None
    while healed_at_step is None or last < healed_at_step + 5:
        if healed_at_step is None and time.monotonic() >= heal_at:
            for proxy in proxies:
                proxy.heal()
            healed_at_step = last
        status = consortium.status(0)
        if status and status["step"] != last:
            longest = max(longest, time.monotonic() - moved)
            last, moved = status["step"], time.monotonic()
        if time.monotonic() > heal_at + 60:
            raise TimeoutError(f"no step within 60 s of the cut's end\n{consortium.everything()}")
        time.sleep(LOOK_SECONDS)
    if consortium.status(0)["view"] != view:
        raise RuntimeError(f"the cut ended the view\n{consortium.everything()}")
    return round(longest, 2)


if __name__ == "__main__":
    main()
