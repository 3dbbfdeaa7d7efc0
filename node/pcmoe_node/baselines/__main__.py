"""`python -m pcmoe_node.baselines`: train one baseline, as a process that talks to nobody.

`pcmoe run --baselines` starts it. The union needs every participant's configuration and data on this machine: it exists
for local runs only.
"""

import argparse
from pathlib import Path

from pcmoe_node.baselines.settings import Kind, baseline_of
from pcmoe_node.config import NodeConfig
from pcmoe_node.process import run_process, use_one_arena


def main() -> None:
    """Read the configurations, train, and end with the exit code that says why (errors.py)."""
    parser = argparse.ArgumentParser(prog="python -m pcmoe_node.baselines", description=__doc__)
    parser.add_argument("--kind", type=Kind, choices=tuple(Kind), required=True)
    parser.add_argument(
        "--config",
        type=Path,
        action="append",
        required=True,
        help="NodeConfig of the participant, as JSON; for the union again and again, one of each",
    )
    parser.add_argument(
        "--output", type=Path, required=True, help="folder; KIND/NAME/log/rounds.jsonl is written below it"
    )
    given = parser.parse_args()
    run_process(lambda: _train(given.kind, given.config, given.output))


def _train(kind: Kind, paths: list[Path], output: Path) -> None:
    baseline = baseline_of(kind, [NodeConfig.load(path) for path in paths])
    # Seconds of torch, which a bad argument needn't cost.
    from pcmoe_node.baselines.training import run_baseline

    use_one_arena()
    run_baseline(baseline, output)


if __name__ == "__main__":
    main()
