"""What several dashboards ask for in the same words."""

from tools.dashboards.board import BAD, FAIR, GOOD

NODES = '{__name__=~"pcmoe_node_view|pcmoe_coordinator_view"}'
"""Something that every training pod has."""
PHASES = {
    "FAILED": BAD,
    "LOADING": "purple",
    "WAITING": FAIR,
    "CONNECTING": "yellow",
    "TRAINING": GOOD,
    "EVALUATING": "blue",
    "CHECKPOINT": "light-blue",
    "COMMITTING": "super-light-blue",
    "DONE": "text",
}
"""Phases of a node and their colours."""
PHASE_NAMES = {str(number): (name, colour) for number, (name, colour) in enumerate(PHASES.items())}
UP = {"0": ("no", BAD), "1": ("yes", GOOD)}


def phase(selector: str) -> str:
    """The number of each participant's phase among `PHASES`."""
    each = (f'{number} * pcmoe_node_phase{{{selector},phase="{name}"}}' for number, name in enumerate(PHASES))
    return f"sum by (participant) ({' or '.join(each)})"


def newest(metric: str, selector: str) -> str:
    """A gauge by participant, whatever the pod is called."""
    return f"max by (participant) ({metric}{{{selector}}})"


def speed(counter: str, selector: str, by: str = "participant", over: str = "$__rate_interval") -> str:
    """How fast a counter rises, per second."""
    return f"sum by ({by}) (rate({counter}{{{selector}}}[{over}]))"
