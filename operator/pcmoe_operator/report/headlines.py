"""What the figures say, in a few plain sentences: for the head of the page, and for the terminal. Pure."""

from collections.abc import Sequence
from typing import Any

from pcmoe_operator.report.comparison import ALL, SHARD, TOGETHER, UNION
from pcmoe_operator.units import duration, loss, size

Figures = dict[str, Any]
CHANCE = 0.03
"""A smaller difference of mean losses is called unclear: six runs of the pilot with other secrets, and so with other
documents held out, gave -0.021 to -0.004."""
ONE_RUN = "This is one run with one seed; another one gives other figures."
NOT_COMPARED = (
    "Whether training together beats training alone was not measured: `pcmoe run --baselines` does it."
)
NOT_READ = "How much a partner could read was not measured: `python -m pcmoe_node.leak` does."


def headlines(figures: Figures) -> list[str]:
    """The run in a few sentences."""
    return [
        *_quality(figures),
        *(verdicts(figures)[:1] or [NOT_COMPARED]),
        _cost(figures),
        *([read_of(name, own) for name, own in figures["leak"].items()] or [NOT_READ]),
    ]


def verdicts(figures: Figures) -> list[str]:
    """What the baselines say, whatever that is; none where there are none."""
    compared = figures["baselines"]
    if compared is None:
        return []
    told = [
        sentence(compared)
        for kind, sentence in ((SHARD, _same_memory), (ALL, _all_experts), (UNION, _one_model))
        if kind in compared["against"]
    ]
    return [*told, ONE_RUN] if told else []


def _same_memory(compared: Figures) -> str:
    against = compared["against"][SHARD]
    better, of, difference = against["betterTogether"], against["organisations"], against["difference"]
    if abs(difference) < CHANCE:
        said = f"did not clearly beat training alone in this run (a difference below {CHANCE} may be chance)"
    elif difference > 0:
        said = "did not beat training alone in this run"
    else:
        said = f"beat training alone {'at every organisation' if better == of else 'on average'} in this run"
    return (
        f"Within the same memory, training together {said}: mean held-out loss {loss(against['meanTogether'])} "
        f"against {loss(against['meanOther'])}, lower together at {better} of {_organisations(of)}."
    )


def _all_experts(compared: Figures) -> str:
    against = compared["against"][ALL]
    own = compared["arrangements"][TOGETHER]["tensorBytes"]["most"]
    other = compared["arrangements"][ALL]["tensorBytes"]["most"]
    times = f"takes {other / own:.1f} times the memory for tensors" if own else "takes more memory"
    return (
        f"Alone with all experts, which {times}, an organisation reaches {loss(against['meanOther'])} on average, "
        f"{_beside(against['difference'])}."
    )


def _one_model(compared: Figures) -> str:
    against = compared["against"][UNION]
    return (
        "One model that one process trains on everybody's text, which partners here can't do, reaches "
        f"{loss(against['meanOther'])} on average, {_beside(against['difference'])}."
    )


def _beside(difference: float) -> str:
    """Of the mean together less another one."""
    if round(abs(difference), 3) == 0:
        return "as much as together"
    return f"{abs(difference):.3f} {'better' if difference > 0 else 'worse'} than together"


def _quality(figures: Figures) -> list[str]:
    changes = [own["changePercent"] for own in figures["loss"].values() if own["changePercent"] is not None]
    if not changes:
        return []
    fell = [-change for change in changes if change < 0]
    by = f", by {spread(sorted(fell), '{:.1f}')} %" if fell else ""
    return [f"Held-out loss fell at {len(fell)} of {_organisations(len(changes))}{by}."]


def _cost(figures: Figures) -> str:
    savings = [own["savingPercent"] for own in figures["memory"]["participants"].values() if own]
    memory = (
        f"{spread(savings, '{:.1f}')} % less memory for tensors than one that holds everything; "
        if savings
        else ""
    )
    hours = figures["gpuHours"]["trained"]
    gpus = f", {hours:.1f} GPU-hours" if hours else ""
    return (
        f"{memory}{size(figures['traffic']['totalBytes'])} sent between organisations; "
        f"{duration(figures['seconds'])} of training{gpus}."
    )


def read_of(name: str, leak: Figures) -> str:
    """What one partner could read of a participant's text."""
    own, ahead = own_tokens_read(leak), _next_tokens_read(leak)
    read = (
        f"; a linear probe reads {spread(own, '{:.1f}')} % of those from their hidden states" if own else ""
    )
    told = f"{leak['host']} is sent {leak['sentPercent']:.1f} % of the tokens of {name}{read}"
    return f"{told}{ahead}. {leak['caveat']}"


def _next_tokens_read(leak: Figures) -> str:
    """Of the last layer that leaves."""
    last = [layer for layer in leak["layers"] if layer["leaves"]][-1:]
    for layer in last:
        reads = layer["nextToken"]
        if reads["formula"] and reads["probe"]:
            return (
                f", and from the gradients of the last layer sent {reads['formula']['value']:.1f} % of the next tokens "
                f"are read by a formula, {reads['probe']['value']:.1f} % by a probe"
            )
    return ""


def own_tokens_read(leak: Figures) -> list[float]:
    """Percent that the probe that anybody can teach reads, of each layer that leaves."""
    found = (layer["ownToken"]["probe"] for layer in leak["layers"] if layer["leaves"])
    return [read["value"] for read in found if read is not None]


def spread(values: Sequence[float], form: str) -> str:
    """The least and the greatest, or the one value that all have; a dash of none."""
    if not values:
        return "–"
    low, high = form.format(min(values)), form.format(max(values))
    return low if low == high else f"{low} to {high}"


def _organisations(count: int) -> str:
    return f"{count} organisation{'s' if count != 1 else ''}"
