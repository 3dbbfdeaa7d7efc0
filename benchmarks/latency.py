"""What a distant partner costs, and what micro-batches in flight win back.

    python benchmarks/latency.py [--delay 10] [--repeats 5] [--output FILE]

Two processes, three MoE layers (H=64, I=256, top-2 of 8), micro-batches of 256 rows, mutual TLS through a proxy that
adds `delay` milliseconds each way. The same work with 1, 2, 4 and 8 micro-batches in flight, and with 8 and no delay.

Prints JSON: milliseconds per step of eight micro-batches (median), and the two ratios that matter.
"""

import argparse
import json
import os
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from party import make_configs, measure, median, our_step, run_workers

SHAPE = {"hidden": 64, "intermediate": 256, "experts": 8, "top_k": 2, "layers": 3}
MICRO_BATCHES, ROWS = 8, 256


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--delay", type=float, default=10.0, help="milliseconds each way (default 10)")
    parser.add_argument("--repeats", type=int, default=5, help="measured steps each (default 5)")
    parser.add_argument("--output", type=Path, help="write the JSON here too")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        measure(json.loads(options.worker), our_step)
    delay = options.delay / 1000
    seconds = {str(n): median(_seconds(n, delay, options.repeats)) for n in (1, 2, 4, 8)}
    undelayed = median(_seconds(8, 0.0, options.repeats))
    result = {
        **SHAPE,
        "delayMilliseconds": options.delay,
        "rowsPerMicroBatch": ROWS,
        "microBatches": MICRO_BATCHES,
        "millisecondsPerStep": {key: round(1000 * value, 1) for key, value in seconds.items()},
        "millisecondsPerStepUndelayed": round(1000 * undelayed, 1),
        "eightToOne": round(seconds["1"] / seconds["8"], 2),
        "eightToUndelayed": round(undelayed / seconds["8"], 3),
        "cores": os.cpu_count(),
    }
    text = json.dumps(result, indent=1)
    print(text)
    if options.output:
        options.output.write_text(text + "\n")


def _seconds(in_flight: int, delay: float, repeats: int) -> list[float]:
    """Seconds of each measured step."""
    from tests.faults.proxy import FaultProxy

    spec: dict[str, Any] = {**SHAPE, "rows": MICRO_BATCHES * ROWS, "micro_batches": MICRO_BATCHES}
    spec |= {"in_flight": in_flight, "repeats": repeats}
    with TemporaryDirectory() as name, ExitStack() as stack:
        configs = make_configs(spec, 2, Path(name))
        if delay:
            # The smaller name dials: it finds the other behind the proxy.
            proxy = stack.enter_context(FaultProxy(configs[1].participants[1].endpoint, delay))
            there = configs[0].participants[1].model_copy(update={"endpoint": proxy.endpoint})
            peers = (configs[0].participants[0], there)
            configs[0] = configs[0].model_copy(update={"participants": peers})
        specs = []
        for rank, config in enumerate(configs):
            path = Path(name) / f"config-{rank}.json"
            path.write_text(config.model_dump_json())
            specs.append({**spec, "rank": rank, "processes": 2, "folder": name, "config": str(path)})
        return run_workers(__file__, specs)


if __name__ == "__main__":
    main()
