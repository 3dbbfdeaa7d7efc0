"""`--prompt NAME=TEXT`, as a run and the process that goes on with it read it. No torch."""

from collections.abc import Sequence

from pcmoe_node.errors import ConfigError


def prompts_of(given: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """Text by participant. `ConfigError` names who is meant and the rule, never the text."""
    found: dict[str, str] = {}
    for number, one in enumerate(given, 1):
        name, _, text = one.partition("=")
        if not (name and text):
            raise ConfigError(f"--prompt, number {number}: must be NAME=TEXT, and neither may be empty")
        if name not in names:
            raise ConfigError(f"--prompt: {name[:64]!r} is no participant, must be one of {', '.join(names)}")
        if name in found:
            raise ConfigError(f"--prompt {name}: must be given once")
        found[name] = text
    return found
