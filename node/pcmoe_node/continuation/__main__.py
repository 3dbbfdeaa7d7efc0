"""`python -m pcmoe_node.continuation`: go on with prompts, as a process that talks to nobody.

Greedily, once with the model of the start and once with that of the last committed round: a participant's own backbone
and router, and everybody's experts. It needs every participant's configuration and checkpoint on this machine, so it
exists for local runs only; `pcmoe run --prompt` starts it. What follows a prompt may repeat text that was trained on.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from pcmoe_node.config import NodeConfig
from pcmoe_node.continuation.prompts import prompts_of
from pcmoe_node.errors import ConfigError
from pcmoe_node.process import run_process, use_one_arena


def main() -> None:
    """Read configurations and prompts, go on, and end with the exit code that says why (errors.py)."""
    parser = argparse.ArgumentParser(
        prog="python -m pcmoe_node.continuation", description=__doc__, allow_abbrev=False
    )
    parser.add_argument(
        "--config",
        type=Path,
        action="append",
        required=True,
        help="NodeConfig as JSON; again and again, one of each participant",
    )
    parser.add_argument(
        "--prompt",
        action="append",
        required=True,
        metavar="NAME=TEXT",
        help="what NAME's model is to go on with; may be given again for another NAME",
    )
    parser.add_argument("--output", type=Path, required=True, help="the JSON file to write")
    given = parser.parse_args()
    run_process(lambda: _continue(given.config, given.prompt, given.output))


def _continue(paths: Sequence[Path], prompts: Sequence[str], output: Path) -> None:
    configs = everybody([NodeConfig.load(path) for path in paths])
    texts = prompts_of(prompts, [config.participant for config in configs])
    # Seconds of torch, which a bad argument needn't cost.
    from pcmoe_node.continuation.generate import write_continuations

    use_one_arena()
    write_continuations(configs, texts, output)


def everybody(configs: Sequence[NodeConfig]) -> tuple[NodeConfig, ...]:
    """The configurations in participant order; `ConfigError` unless they are all of one consortium's."""
    own = sorted(configs, key=lambda config: config.index)
    names = [config.participant for config in own]
    wanted = [peer.name for peer in own[0].participants]
    if names != wanted:
        raise ConfigError(
            f"--config: every participant's is needed once, {', '.join(wanted)}; given: {', '.join(names)}"
        )
    if len({config.identity.agreement_digest for config in own}) != 1:
        raise ConfigError("--config: must be of one agreement; their digests differ")
    return tuple(own)


if __name__ == "__main__":
    main()
