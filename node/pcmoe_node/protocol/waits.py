"""Who waits for whom, and whose turn it really is. Pure.

A node that waits names those it waits for; so does each of them. Following the names leads to whoever is at work,
or to a circle. Only they can be to blame when nothing moves: everybody else passes on what came to them.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Cause:
    """Where a wait leads to."""

    roots: tuple[int, ...]
    """Those who wait for nobody; in a circle, all who are in it. Ascending."""
    circle: bool


def cause(me: int, waited_for: Collection[int], waiting: Mapping[int, Collection[int]]) -> Cause:
    """Who keeps `me` waiting in the end. `waiting` has whom each other participant says to wait for."""
    seen = {me}
    ahead, roots = list(waited_for), set()
    while ahead:
        participant = ahead.pop()
        if participant in seen:
            continue
        seen.add(participant)
        further = waiting.get(participant, ())
        if further:
            ahead.extend(further)
        else:
            roots.add(participant)
    if roots:
        return Cause(tuple(sorted(roots)), circle=False)
    return Cause(tuple(sorted(seen - {me})), circle=True)


def graph(names: Mapping[int, str] | tuple[str, ...], waiting: Mapping[int, Collection[int]]) -> str:
    """Every edge in one line: `amsterdam → berlin, lyon; berlin → lyon`."""
    edges = [
        f"{names[participant]} → {', '.join(names[other] for other in sorted(others))}"
        for participant, others in sorted(waiting.items())
        if others
    ]
    return "; ".join(edges) or "nobody waits"
