"""A tiny cluster in which consortia want machines: for tests of the rule that all pods of one have some, or none has.

Jobs make pods, a scheduler binds them in any order, pods that go take their time, an operator looks at one consortium
after the other and may die between what it writes and what it does. All by chance, from a seed.
"""

import random
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from pcmoe_operator.gang import Decision, Limits, Mine, Place, Release, Rival, Stage, decide

BEGIN = datetime(2026, 8, 1, tzinfo=UTC)
LIMITS = Limits(unschedulable=20, turn=4, retry=6)
GRACE = 8.0
STEP = 0.25


@dataclass
class Pod:
    """One that wants a machine of a kind."""

    bound: bool = False
    refused_at: datetime | None = None
    gone_at: datetime | None = None
    """When it will be gone; None while it stays."""


@dataclass
class Consortium:
    """What it wants, what there is of it, and what its status says."""

    name: str
    made_at: datetime
    wants: tuple[str, ...]
    """A kind of machine for each participant."""
    work: float
    """Seconds that it trains once all have a machine."""
    jobs: list[bool | None] = field(default_factory=list)
    """Whether each runs; None: not made yet."""
    pods: list[Pod | None] = field(default_factory=list)
    release: Release | None = None
    rival: Rival | None = None
    trained: float = 0.0
    ended: datetime | None = None
    fitted: bool = False
    """Whether it would have found room beside those that train, ever since its try began."""
    disturbed: bool = False
    """Whether somebody else may have stood in the way of its try."""
    run: frozenset[str] = frozenset()
    """Whose Jobs shall run, by the last decision."""

    def __post_init__(self) -> None:
        self.jobs = [None] * len(self.wants)
        self.pods = [None] * len(self.wants)

    @property
    def age(self) -> tuple[str, str]:
        """As others compare it."""
        return self.made_at.isoformat(), self.name

    @property
    def lingers(self) -> bool:
        """Whether it said that it holds nothing, and has a pod whose Job it was to suspend: that may find a machine."""
        left = any(pod is not None and str(number) not in self.run for number, pod in enumerate(self.pods))
        return left and self.rival is not None and self.rival.release.waits and not self.rival.holds

    @property
    def over(self) -> bool:
        """Whether it has trained."""
        return self.trained >= self.work

    @property
    def whole(self) -> bool:
        """Whether all its pods have a machine that they keep."""
        return all(pod is not None and pod.bound and pod.gone_at is None for pod in self.pods)

    def places(self) -> dict[str, Place]:
        """What the operator sees."""
        found = {}
        for number, (job, pod) in enumerate(zip(self.jobs, self.pods, strict=True)):
            here = pod is not None and pod.gone_at is None
            found[str(number)] = Place(
                over=self.over,
                released=job is True,
                placed=job is True and here and pod is not None and pod.bound,
                holds=pod is not None and pod.bound,
                lacking_since=pod.refused_at if pod and here and job is True and not pod.bound else None,
            )
        return found


class World:
    """All of it; `step` lets some time pass."""

    def __init__(self, seed: int, room: dict[str, int], consortia: list[Consortium]) -> None:
        self.random = random.Random(seed)
        self.room, self.consortia = room, consortia
        self.now = BEGIN
        self.wrong: list[str] = []
        """What must not happen and did."""

    def there(self) -> list[Consortium]:
        """Those that are made by now and have not ended."""
        return [each for each in self.consortia if each.made_at <= self.now and not each.over]

    def free(self, kind: str) -> int:
        """Machines of a kind that nobody holds."""
        return self.room.get(kind, 0) - sum(
            want == kind and pod is not None and pod.bound
            for each in self.there()
            for want, pod in zip(each.wants, each.pods, strict=True)
        )

    def fits(self, one: Consortium) -> bool:
        """Whether it would find room beside those that train."""
        taken = [want for each in self.there() if each is not one and each.whole for want in each.wants]
        return all(one.wants.count(k) + taken.count(k) <= self.room.get(k, 0) for k in set(one.wants))

    def step(self) -> None:
        """A moment in which everybody does something, in any order."""
        self.now += timedelta(seconds=STEP)
        turns = [self._pods, self._bind, self._train, self._look, self._pods, self._bind]
        self.random.shuffle(turns)
        for turn in turns:
            turn()
        for each in self.there():
            each.fitted = each.fitted and self.fits(each)

    def run(self, seconds: float) -> bool:
        """Whether all have trained in time."""
        for _ in range(int(seconds / STEP)):
            self.step()
            if all(each.over for each in self.consortia):
                return True
        return False

    def _pods(self) -> None:
        for each in self.there():
            for number, job in enumerate(each.jobs):
                pod = each.pods[number]
                if pod is None:
                    each.pods[number] = Pod() if job and self.random.random() < 0.8 else None
                elif pod.gone_at is not None:
                    each.pods[number] = None if pod.gone_at <= self.now else pod
                elif not job:
                    grace = self.random.uniform(0, GRACE) if pod.bound else 0.0
                    pod.gone_at = self.now + timedelta(seconds=grace)

    def _bind(self) -> None:
        waiting = [
            (each, want, pod)
            for each in self.there()
            for want, pod in zip(each.wants, each.pods, strict=True)
            if pod is not None and not pod.bound and pod.gone_at is None
        ]
        self.random.shuffle(waiting)
        for _each, want, pod in waiting:
            if self.free(want) > 0:
                pod.bound = True
            elif pod.refused_at is None:
                pod.refused_at = self.now

    def _train(self) -> None:
        for each in self.there():
            if each.whole:
                each.trained += STEP
                each.ended = self.now if each.over else None

    def _look(self) -> None:
        for each in self.random.sample(self.there(), len(self.there())):
            if self.random.random() < 0.5:
                rivals = [other.rival for other in self.there() if other is not each and other.rival]
                mine = Mine(age=each.age, release=each.release, places=each.places())
                self._follow(each, decide(mine, rivals, self.now, LIMITS))

    def _follow(self, one: Consortium, decision: Decision) -> None:
        """Write, then do; or die in between."""
        before, after = one.release, decision.release
        self._judge(one, before, after)
        places = one.places()
        lacking = [place.lacking_since for place in places.values() if place.lacking_since]
        one.release, one.run = after, decision.run
        one.rival = Rival(
            age=one.age,
            release=after,
            placed=all(place.placed for place in places.values()),
            lacking_since=min(lacking, default=None),
            holds=any(place.holds for place in places.values()),
        )
        for number in range(len(one.jobs)):
            if self.random.random() < 0.05:
                return
            one.jobs[number] = str(number) in decision.run

    def _judge(self, one: Consortium, before: Release | None, after: Release) -> None:
        begins = not after.waits and (before is None or before.waits)
        trying = [
            each
            for each in self.there()
            if each is not one and each.release and not each.release.waits and not each.whole
        ]
        if begins:
            one.fitted = True
            one.disturbed = any(each.release and each.release.tries == 0 for each in trying)
            one.disturbed = one.disturbed or any(each.lingers for each in self.there() if each is not one)
            for each in trying:
                each.disturbed = each.disturbed or before is None
            tries = [each for each in trying if self.now - _since(each) < timedelta(seconds=LIMITS.turn)]
            if before is not None and tries and not one.whole:
                self.wrong.append(f"{self.now.time()}: {one.name} tries beside {tries[0].name}")
        gave_up = after.stage is Stage.GIVEN_BACK and before is not None and not before.waits
        if gave_up and before is not None and before.tries and not one.disturbed and one.fitted:
            self.wrong.append(f"{self.now.time()}: {one.name} gave back, and there was room for it")


def _since(one: Consortium) -> datetime:
    assert one.release is not None
    return one.release.since


def consortium(name: str, wants: str, at: float = 0.0, work: float = 10.0) -> Consortium:
    """One that is made so many seconds after the beginning; each letter of `wants` is a kind of machine."""
    return Consortium(name=name, made_at=BEGIN + timedelta(seconds=at), wants=tuple(wants), work=work)


def by_chance(seed: int) -> World:
    """A few consortia that each fit alone, and now and then one before them that fits nowhere."""
    chance = random.Random(seed)
    room = {"a": chance.randint(1, 5), "b": chance.randint(0, 3)}
    kinds = [kind for kind, count in room.items() for _ in range(count)]
    made = []
    for number in range(chance.randint(1, 5)):
        wants = "".join(chance.sample(kinds, chance.randint(1, len(kinds))))
        made.append(consortium(f"c{number}", wants, chance.choice((0, 1, 10, 40)), chance.uniform(1, 30)))
    return World(seed, room, made)
