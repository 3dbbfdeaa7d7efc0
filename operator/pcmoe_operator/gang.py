"""All pods of a consortium or none: who may ask for machines, and who gives them back. Pure; `now` is given.

A consortium trains with all its pods here, so one that lacks a machine for one pod holds the others' GPUs for nothing.
What it knows is its `Release`, kept in `status.release`, its own pods, and what other consortia's statuses say:

- RELEASED: all Jobs run. When a pod has waited for a machine too long, it gives the others' back.
- GIVEN_BACK: whoever has a machine is suspended; whoever has none may wait for one, which shows the scheduler's words
  and drives an autoscaler. Once it has rested, and one of them has found a machine or none waits, all are released:
  a try.
- QUEUED: it came when an older one waited already, and has not begun.

Tries never overlap, and while more than one consortium waits, nobody but the one that tries has pods without a machine.
So a try fails only if a consortium doesn't fit beside those that train. The turn is with the fewest tries, then with
the older; each failure adds one, so everybody has a turn in every round. Hence who fits alone trains at the latest
when the others have ended. docs/design/0010-gang.md has the whole argument.
"""

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import Enum
from typing import Any

from pcmoe_operator.answers import items, part, text_at, whole
from pcmoe_operator.constants import OPERATOR
from pcmoe_operator.objects.jobs import GRACE_SECONDS
from pcmoe_operator.observe import ParticipantSeen, Seen
from pcmoe_operator.reasons import Reason
from pcmoe_operator.times import moment, time_of

LACKING = frozenset(
    reason.name
    for reason in (
        Reason.Unschedulable,
        Reason.VolumeUnbound,
        Reason.SchedulingGated,
        Reason.QuotaExceeded,
        Reason.PodSecurityRefused,
        Reason.AdmissionRefused,
    )
)
"""Why a participant has no machine, other than that its pod is on its way."""
CONTENDED = frozenset((Reason.Unschedulable.name, Reason.QuotaExceeded.name))
"""Those of them where it may help that another consortium has less."""
JITTER = 0.2
"""So much longer than it must may a consortium rest, by chance."""
Age = tuple[str, str]
"""When a consortium was made, and its uid: the smaller is the older."""


class Stage(Enum):
    """Whether a consortium's pods may have machines. The values are part of the API."""

    RELEASED = "Released"
    GIVEN_BACK = "GivenBack"
    QUEUED = "Queued"


@dataclass(frozen=True, kw_only=True, slots=True)
class Release:
    """What is kept in `status.release`."""

    stage: Stage
    since: datetime
    tries: int
    """How often it gave back since all last had machines. Who joins those that wait begins where they are."""

    @property
    def waits(self) -> bool:
        """Whether not all of its Jobs may run."""
        return self.stage is not Stage.RELEASED

    def written(self) -> dict[str, Any]:
        """As the API has it."""
        return {"state": self.stage.value, "since": moment(self.since, "milliseconds"), "tries": self.tries}

    @staticmethod
    def read(status: Mapping[str, Any], attempt: int) -> "Release | None":
        """What a status says of an attempt; None if it says nothing that can be understood."""
        written, since = part(dict(status), "release"), time_of(text_at(dict(status), "release", "since"))
        stage = next((each for each in Stage if each.value == written.get("state")), None)
        if stage is None or since is None or whole(status.get("attempt")) != attempt:
            return None
        return Release(stage=stage, since=since, tries=whole(written.get("tries")))


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """Seconds; see the settings of the same names."""

    unschedulable: float
    turn: float
    retry: float
    crowd: int = 0
    """How many others want machines."""

    @property
    def overdue(self) -> float:
        """A consortium that has not done what it should for so long is passed over: its looks may all fail. All others
        may have had their turn meanwhile.
        """
        return self.unschedulable + (1 + self.crowd) * (2 * self.turn + GRACE_SECONDS)


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """A participant's Job and pod, as far as machines go."""

    over: bool = False
    """Its Job has ended: it needs no machine any more."""
    released: bool = False
    """Its Job is there and not suspended."""
    placed: bool = False
    """It has a pod with a machine, which stays."""
    holds: bool = False
    """A pod of it takes up room on a machine, going or not."""
    lacking_since: datetime | None = None
    """Since when it has been known to find no machine."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Mine:
    """The consortium that is looked at."""

    age: Age
    release: Release | None
    places: Mapping[str, Place]


@dataclass(frozen=True, kw_only=True, slots=True)
class Rival:
    """Another consortium, by its status."""

    age: Age
    release: Release
    placed: bool
    lacking_since: datetime | None
    holds: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """What follows for a consortium."""

    release: Release
    run: frozenset[str]
    """Participants whose Job is not suspended."""
    look_in: float | None = None
    """Seconds after which time alone may change the decision."""


def decide(mine: Mine, rivals: Sequence[Rival], now: datetime, limits: Limits) -> Decision:
    """Whether all may have machines, and which Jobs run."""
    limits = replace(limits, crowd=len(rivals))
    going = {name: place for name, place in mine.places.items() if not place.over}
    if all(place.placed for place in going.values()):
        return _decision(_whole(mine, rivals, now, limits), going, rivals, now, limits)
    release, look_in = mine.release, None
    if release is None:
        release = _first(mine, going.values(), rivals, now, limits)
    if not release.waits:
        release, look_in = _on_trial(mine, release, going.values(), rivals, now, limits)
    elif _due(mine.age, release, limits) > now:
        look_in = (_due(mine.age, release, limits) - now).total_seconds()
    elif not _waits_on(mine, release, going.values(), rivals, now, limits):
        release, look_in = replace(release, stage=Stage.RELEASED, since=now), limits.turn
    else:
        look_in = limits.turn / 2
    return replace(_decision(release, going, rivals, now, limits), look_in=look_in)


def _decision(
    release: Release, going: Mapping[str, Place], rivals: Iterable[Rival], now: datetime, limits: Limits
) -> Decision:
    run = frozenset(going)
    if release.stage is Stage.QUEUED:
        run = frozenset()
    elif release.waits:
        alone = not any(_short(rival, now, limits) for rival in rivals)
        waiting = {name for name, place in going.items() if place.released and not place.holds}
        run = frozenset(waiting) if alone else frozenset()
    return Decision(release=release, run=run)


def _whole(mine: Mine, rivals: Iterable[Rival], now: datetime, limits: Limits) -> Release:
    """One whose pods all have machines keeps them, unless it was faster than an older one that came with it."""
    if mine.release is None:  # it runs since before there was a status; who has run for a while keeps all
        since = now - timedelta(seconds=limits.unschedulable + limits.overdue)
        return Release(stage=Stage.RELEASED, since=since, tries=0)
    # Also one that is just giving back, if the last machine came at that moment.
    since = now if mine.release.waits else mine.release.since
    if any(_came_with(rival, mine.age, since, limits) and _lacks(rival, now, limits) for rival in rivals):
        return Release(stage=Stage.GIVEN_BACK, since=now, tries=max(1, _fewest(rivals)))
    return Release(stage=Stage.RELEASED, since=since, tries=0)


def _came_with(rival: Rival, age: Age, since: datetime, limits: Limits) -> bool:
    """Whether an older one lacks machines in its first try, and asked for them at the same time as we or before."""
    if rival.lacking_since is None or rival.release.tries or rival.age >= age:
        return False
    return max(rival.release.since, rival.lacking_since) < since + timedelta(seconds=limits.turn)


def _first(
    mine: Mine, going: Iterable[Place], rivals: Sequence[Rival], now: datetime, limits: Limits
) -> Release:
    """Where one begins that has no release yet: at once, unless an older one wants machines now."""
    begun = any(place.released for place in going)
    if begun or not _older_wants(mine.age, rivals, now, limits):
        return Release(stage=Stage.RELEASED, since=now, tries=0)
    return Release(stage=Stage.QUEUED, since=now, tries=_fewest(rivals))


def _on_trial(
    mine: Mine,
    release: Release,
    going: Iterable[Place],
    rivals: Sequence[Rival],
    now: datetime,
    limits: Limits,
) -> tuple[Release, float | None]:
    """Whether one whose Jobs all run gives its machines back, and otherwise when to ask again."""
    lacking = [place.lacking_since for place in going if place.lacking_since is not None]
    if not lacking:
        return release, None
    waited = (now - max(release.since, min(lacking))).total_seconds()
    first = release.tries == 0 and not _older_wants(mine.age, rivals, now, limits)
    patience = limits.unschedulable if first else min(limits.turn, limits.unschedulable)
    if waited < patience:
        return release, min(patience - waited, limits.turn)  # an older one may come
    tries = max(release.tries + 1, _fewest(rivals))
    return Release(stage=Stage.GIVEN_BACK, since=now, tries=tries), limits.retry


def _waits_on(
    mine: Mine,
    release: Release,
    going: Collection[Place],
    rivals: Sequence[Rival],
    now: datetime,
    limits: Limits,
) -> bool:
    """Whether one that has rested may not try yet."""
    if any(_has_turn(rival, now, limits) for rival in rivals):
        return True
    if any(_before(rival, mine.age, release, now, limits) for rival in rivals):
        return True
    if _leaving(release, any(place.holds and not place.released for place in going), now, limits):
        return True
    alone, probes = not any(_short(rival, now, limits) for rival in rivals), [p for p in going if p.released]
    return alone and bool(probes) and not any(place.placed for place in probes)


def _due(age: Age, release: Release, limits: Limits) -> datetime:
    """When one that waits may try; what chance adds is the same after a restart of the operator."""
    digest = hashlib.sha256(f"{age[1]} {release.tries}".encode()).digest()
    return release.since + timedelta(seconds=limits.retry * (1 + JITTER * digest[0] / 255))


def _fewest(rivals: Iterable[Rival]) -> int:
    return min((rival.release.tries for rival in rivals if rival.release.waits), default=0)


def _older_wants(age: Age, rivals: Iterable[Rival], now: datetime, limits: Limits) -> bool:
    """Whether an older one lacks a machine now, or would try now."""
    return any(
        rival.age < age
        and (_lacks(rival, now, limits) or (_expected(rival, now, limits) and now >= _due_of(rival, limits)))
        for rival in rivals
    )


def _due_of(rival: Rival, limits: Limits) -> datetime:
    return _due(rival.age, rival.release, limits)


def _expected(rival: Rival, now: datetime, limits: Limits) -> bool:
    """Whether a rival waits, and will try when it is its turn."""
    return rival.release.waits and now < _due_of(rival, limits) + timedelta(seconds=limits.overdue)


def _lacks(rival: Rival, now: datetime, limits: Limits) -> bool:
    """Whether a rival's Jobs all run, and one finds no machine."""
    if rival.release.waits or rival.lacking_since is None:
        return False
    begun = max(rival.release.since, rival.lacking_since)
    return now < begun + timedelta(seconds=limits.unschedulable + limits.overdue)


def _short(rival: Rival, now: datetime, limits: Limits) -> bool:
    return _lacks(rival, now, limits) or _expected(rival, now, limits)


def _has_turn(rival: Rival, now: datetime, limits: Limits) -> bool:
    """Whether a rival tries, or what it had in its try is not free yet."""
    if rival.release.waits:
        return _leaving(rival.release, rival.holds, now, limits)
    begins = not rival.placed and now < rival.release.since + timedelta(seconds=limits.turn)
    return begins or _lacks(rival, now, limits)


def _leaving(release: Release, holds: bool, now: datetime, limits: Limits) -> bool:
    """Whether pods of one that gave back still take up room; on a machine that is away they would for ever."""
    return holds and now < release.since + timedelta(seconds=GRACE_SECONDS + limits.turn)


def _before(rival: Rival, age: Age, release: Release, now: datetime, limits: Limits) -> bool:
    """Whether it is a rival's turn before ours."""
    return _expected(rival, now, limits) and (rival.release.tries, rival.age) < (release.tries, age)


# From what is seen


def mine_of(raw: Mapping[str, Any], seen: Seen, attempt: int) -> Mine:
    """A consortium and what there is of it."""
    places = {name: _place(found) for name, found in seen.participants.items()}
    return Mine(age=_age(raw), release=Release.read(part(dict(raw), "status"), attempt), places=places)


def _place(found: ParticipantSeen) -> Place:
    job, pod = found.job, found.pod
    released = job is not None and not job.suspended
    lacking = ""
    if pod is not None and released:
        lacking = pod.unplaced_since
    elif job is not None and released and job.refusal is not None:
        lacking = job.refused_since
    has = pod is not None and bool(pod.node)
    return Place(
        over=job is not None and (job.succeeded > 0 or job.failure is not None),
        released=released,
        placed=pod is not None and has and released and not pod.going,
        holds=pod is not None and has and pod.phase not in ("Succeeded", "Failed"),
        lacking_since=time_of(lacking),
    )


def rival_of(raw: Mapping[str, Any]) -> Rival | None:
    """Another consortium as it counts for others; None if it wants no machines, or does not say."""
    spec, status = part(dict(raw), "spec"), part(dict(raw), "status")
    release = Release.read(status, whole(spec.get("attempt", 1)))
    if release is None or spec.get("managedBy", OPERATOR) != OPERATOR or spec.get("suspend") is True:
        return None
    if "deletionTimestamp" in part(dict(raw), "metadata"):
        return None
    scheduled = next((each for each in items(status, "conditions") if each.get("type") == "Scheduled"), {})
    lacks = scheduled.get("status") == "False" and scheduled.get("reason") in CONTENDED
    return Rival(
        age=_age(raw),
        release=release,
        placed=scheduled.get("status") == "True",
        lacking_since=time_of(text_at(scheduled, "lastTransitionTime")) if lacks else None,
        holds=any(text_at(each, "node") for each in items(status, "participants")),
    )


def _age(raw: Mapping[str, Any]) -> Age:
    metadata = part(dict(raw), "metadata")
    return text_at(metadata, "creationTimestamp"), text_at(metadata, "uid")
