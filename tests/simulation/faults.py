"""What goes wrong in a run: drawn before it starts, from its seed alone."""

import random
from dataclasses import dataclass
from enum import StrEnum

POINTS = (
    "loading",
    "accepted",
    "persisted",
    "dropped",
    "entered",
    "linked",
    "storing",
    "stored",
    "committing",
    "committed",
    "done",
    "finishing",
    "marked",
)
"""Places in a process between which everything else may happen: it can end at each of them."""

LIKELY = (*POINTS, *(4 * ("storing",)), *(4 * ("accepted",)))
"""Who stores no more while others do leads back the farthest; who enters unheard is the longest misunderstood."""

PEER_TIMEOUT = 60.0
"""A peer that was not heard of for so long is lost."""


class Kind(StrEnum):
    """What can go wrong."""

    CRASH = "crash"
    CRASH_AT = "crash at a point"
    STOP = "planned stop"
    FAILURE = "own failure"
    LOST_DISK = "lost disk"
    ZOMBIE = "second process"
    PARTITION = "partition"
    SESSION = "broken session"
    SESSION_AT = "broken session at a point"
    COORDINATOR = "coordinator crash"
    COORDINATOR_AT = "coordinator crash while telling"
    OVERLAP = "overlap"
    BLACKOUT = "blackout"


COORDINATOR_ONLY = (Kind.SESSION, Kind.SESSION_AT, Kind.COORDINATOR, Kind.COORDINATOR_AT, Kind.OVERLAP)
"""Faults of the coordinator and of the way to it alone: they end no view."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One stroke of bad luck."""

    time: float
    kind: Kind
    member: int
    other: int
    """The other end of a partition."""
    duration: float
    """Until the process starts again, the partition is over, the next coordinator starts, the old one ends."""
    point: str
    """Where a crash, or the break of a session, waits for its member."""


def draw(seed: int, members: int) -> tuple[Fault, ...]:
    """The faults of a seed; two runs in five have none."""
    luck = random.Random(f"faults {seed}")
    if luck.random() < 0.4:
        return ()
    kinds = list(COORDINATOR_ONLY) if luck.random() < 0.25 else [*Kind, Kind.CRASH_AT, Kind.CRASH_AT]
    # Two processes on two disks of one name are a mistake of people that nothing here repairs.
    left_out = [luck.choice((Kind.LOST_DISK, Kind.ZOMBIE))]
    if luck.random() < 0.8:
        left_out.append(Kind.FAILURE)
    if members == 1:
        left_out += [Kind.LOST_DISK, Kind.PARTITION]
    kinds = [kind for kind in kinds if kind not in left_out]
    faults = []
    for _ in range(luck.choice((1, 2, 2, 3, 3, 4, 6, 8))):
        kind = luck.choice(kinds)
        if kind in (Kind.LOST_DISK, Kind.ZOMBIE, Kind.FAILURE):
            kinds.remove(kind)
        member, other = luck.sample(range(members), 2) if members > 1 else (0, 0)
        faults.append(Fault(_time(luck), kind, member, other, _duration(luck, kind), luck.choice(LIKELY)))
    return tuple(sorted(faults, key=lambda fault: fault.time))


def _time(luck: random.Random) -> float:
    return luck.uniform(1.0, luck.choice((50.0, 150.0, 400.0)))


def _duration(luck: random.Random, kind: Kind) -> float:
    if kind is Kind.PARTITION:
        return luck.choice((luck.uniform(5.0, 0.9 * PEER_TIMEOUT), luck.uniform(1.1, 3.0) * PEER_TIMEOUT))
    if kind is Kind.STOP:
        return luck.uniform(100.0, 300.0)
    return luck.choice((luck.uniform(1.0, 20.0), luck.uniform(20.0, 150.0)))
