"""How long Prometheus waits for a page of metrics.

    python benchmarks/scrape.py [--repeats 50] [--participants 3] [--output FILE]

Nodes and their coordinator as processes that train meanwhile, and an operator on a control plane of its own with one
consortium. Each page is read so many times, over a new connection each time, as after a restart of Prometheus.

Prints JSON: seconds (median and worst), bytes and series of each page.
"""

import argparse
import http.client
import json
import os
import statistics
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from party import ROOT

sys.path.insert(0, str(ROOT))

from tests.cluster.plane import ControlPlane
from tests.faults.consortium import running
from tests.integration.operating import Operated, operated
from tests.monitoring.trained import configs_of


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=50, help="how often each page is read (default 50)")
    parser.add_argument("--participants", type=int, default=3, help="nodes that train (default 3)")
    parser.add_argument("--output", type=Path, help="write the JSON here too")
    options = parser.parse_args()
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        with running(configs_of(folder, options.participants)) as consortium:
            consortium.round(3)
            pages = {
                "node": read(consortium.configs[0].status_listen, options.repeats),
                "coordinator": read(consortium.coordinator_status, options.repeats),
            }
        pages["operator"] = of_operator(folder, options.repeats)
    result = {
        "repeats": options.repeats,
        "participants": options.participants,
        "pages": pages,
        "cores": os.cpu_count(),
    }
    text = json.dumps(result, indent=1)
    print(text)
    if options.output is not None:
        options.output.write_text(text + "\n")


def of_operator(folder: Path, repeats: int) -> Mapping[str, float]:
    """The operator's page, with one consortium looked after."""
    with (
        ControlPlane(folder / "plane", fake_nodes=1) as plane,
        plane.namespace() as namespace,
        operated(plane, namespace, folder, Operated) as operator,
    ):
        operator.until_looked()
        operator.apply()
        operator.all_pods()
        return read(f"127.0.0.1:{operator.settings()['metricsPort']}", repeats)


def read(listen: str, repeats: int) -> Mapping[str, float]:
    """Read one page so many times."""
    seconds, page = [], b""
    for _ in range(repeats):
        began = time.perf_counter()
        connection = http.client.HTTPConnection(listen, timeout=10)
        connection.request("GET", "/metrics")
        page = connection.getresponse().read()
        connection.close()
        seconds.append(time.perf_counter() - began)
    return {
        "seconds": round(statistics.median(seconds), 5),
        "worstSeconds": round(max(seconds), 5),
        "bytes": len(page),
        "series": sum(not line.startswith(b"#") for line in page.splitlines()),
    }


if __name__ == "__main__":
    main()
