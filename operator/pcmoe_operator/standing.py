"""From what was observed to how each participant stands, what holds the run up, and whom a failure is about. Pure."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Literal

from pcmoe_operator.answers import MAX_NUMBER, CoordinatorSeen, NodeSeen
from pcmoe_operator.diagnosis import EXIT_REASONS, Trouble, final
from pcmoe_operator.gang import LACKING, Release, Stage
from pcmoe_operator.observe import ParticipantSeen, Seen
from pcmoe_operator.reasons import Reason
from pcmoe_operator.schema import Consortium

Truth = Literal["True", "False", "Unknown"]
State = Literal["Pending", "Loading", "Running", "Waiting", "Suspended", "Completed", "Failed"]

NAMES_SHOWN = 5
RELAYED = re.compile(r"(?:\w+: )?([a-z0-9-]{1,28}) ended the run: (.*)")
"""Last words of a node that ends only because a peer told it that it ends."""
PEER_LOST = 75
HOLDING = ("WAITING", "CONNECTING", "FAILED")
"""Phases of a node that has loaded and is in no view."""
LOADING = ("STARTING", "LOADING")


class Intent(Enum):
    """What the operator wants of a consortium's Jobs."""

    RUN = auto()
    SUSPEND = auto()
    """`spec.suspend` is true."""
    YIELD = auto()
    """Not all pods found a machine, so those that did have given it back; or it is not this consortium's turn yet."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Settled:
    """That all objects but Jobs were applied, as a status tells it; all empty: they were not."""

    digest: str = ""
    """Of what they were applied for."""
    renewal: str = ""
    """When the first certificate among them needs a successor, RFC 3339; empty where none is needed here."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Observation:
    """All that a status is made of, but for the one before."""

    generation: int
    consortium: Consortium
    plan_digest: str
    seen: Seen
    coordinator: CoordinatorSeen | None
    """None where it runs elsewhere or doesn't answer."""
    nodes: Mapping[str, NodeSeen]
    """Those of the participants here that answer."""
    intent: Intent
    release: Release | None
    """Whether its pods may have machines; None where it wants none."""
    restarts_allowed: int
    """So often a participant may crash with no round committed in between."""
    applied: Settled = Settled()
    """Whether all but Jobs has been applied."""
    refused: tuple[str, ...] = ()
    """Objects that the API server refuses, and why."""
    holding: tuple[str, ...] = ()
    """Participants with a pod that has not ended, or a Job that may make one; also those of another attempt, and that
    aren't to run here any more."""

    @property
    def yields(self) -> Reason:
        """Why not all Jobs run, where that is so."""
        queued = self.release is not None and self.release.stage is Stage.QUEUED
        return Reason.Queued if queued else Reason.GpusReleased

    @property
    def rounds(self) -> int:
        """How many there are in all."""
        return self.consortium.agreement.training.rounds

    @property
    def attempt(self) -> int:
        """Number of this start."""
        return self.consortium.spec.attempt

    @property
    def committed(self) -> int:
        """The newest round that anybody here knows to be committed."""
        known = [self.coordinator.round if self.coordinator else 0]
        heard = [self.heard(name) for name in self.seen.participants]
        known += [self.rounds if n.finished(self.rounds) else n.committed for n in heard if n is not None]
        return min(self.rounds, max(known))

    @property
    def complete(self) -> bool:
        """Whether the last round is committed, as the coordinator or all nodes here say; no Job's success is."""
        if self.coordinator is not None and self.coordinator.round >= self.rounds:
            return True
        heard = [self.heard(name) for name in self.seen.participants]
        return bool(heard) and all(node is not None and node.finished(self.rounds) for node in heard)

    def heard(self, name: str) -> NodeSeen | None:
        """A node's answer, or else what it left when it ended."""
        pod = self.seen.participants[name].pod
        return self.nodes.get(name) or (pod.last if pod else None)


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """How one participant that runs here stands."""

    name: str
    state: State
    ready: bool
    """Whether it is in a view."""
    machine: str
    """Where its pod is; empty if nowhere yet."""
    restarts: int
    node: NodeSeen | None
    answers: bool
    """Whether its node answers now."""
    trouble: Trouble | None
    gone: bool
    """Whether it has no pod."""

    @property
    def words(self) -> str:
        """What there is to tell of it: its trouble, or whom it waits for."""
        if self.trouble:
            return self.trouble.message or self.trouble.reason.meaning
        return self.node.waiting_for if self.node and self.state == "Waiting" else ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """Why a run has failed."""

    reason: Reason
    sentence: str


def sentence(who: str, reason: Reason, words: str = "") -> str:
    """What is wrong, in whose words, and what to do."""
    text = f"{who}: {reason.meaning}" if who else reason.meaning
    if words and words != reason.meaning:
        text += f": {words.rstrip(' .')}"
    return f"{text}; {reason.remedy}" if reason.remedy else text


def refusals(refused: Sequence[str]) -> str:
    """What the API server refuses, to stand behind a sentence; empty where that is nothing."""
    return f" ({Reason.ApplyRefused.meaning}: {'; '.join(refused)})" if refused else ""


def listed(names: Sequence[str]) -> str:
    """Names, the first few of them."""
    more = len(names) - NAMES_SHOWN
    return ", ".join(names[:NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")


# Each participant


def standing_of(name: str, observation: Observation) -> Standing:
    """How a participant stands."""
    seen = observation.seen.participants[name]
    pod = seen.pod
    state = _state_of(name, seen, observation)
    return Standing(
        name=name,
        state=state,
        ready=pod is not None and pod.ready,
        machine=pod.node if pod else "",
        restarts=_restarts(seen),
        node=observation.heard(name),
        answers=name in observation.nodes,
        trouble=None if state == "Completed" else _trouble_of(seen, observation.intent),
        gone=pod is None,
    )


def _state_of(name: str, seen: ParticipantSeen, observation: Observation) -> State:
    job, pod, heard = seen.job, seen.pod, observation.heard(name)
    if job and (job.succeeded or (heard is not None and heard.finished(observation.rounds))):
        return "Completed"
    if job and job.failure:
        return "Failed"
    if pod is None:
        suspended = observation.intent is Intent.SUSPEND or (job is not None and job.suspended)
        return "Suspended" if suspended else "Pending"
    if pod.phase != "Running":
        return "Pending"
    if pod.ready:
        return "Running"
    node = observation.nodes.get(name)
    return "Waiting" if node is not None and node.phase in HOLDING else "Loading"


def _restarts(seen: ParticipantSeen) -> int:
    """In the pod, and by pods that took the place of failed ones; the last to fail has had no successor yet."""
    job, pod = seen.job, seen.pod
    last = (job is not None and job.failure is not None) or (pod is not None and pod.phase == "Failed")
    pods = max(0, job.failed - last) if job else 0
    return min(MAX_NUMBER, pods + (pod.restarts if pod else 0))


def _trouble_of(seen: ParticipantSeen, intent: Intent) -> Trouble | None:
    job, pod = seen.job, seen.pod
    if job and job.failure:
        return Trouble(reason=_failed_by(seen), message=_last_words(seen))
    if pod is None:
        return job.refusal if job and not job.suspended and intent is not Intent.SUSPEND else None
    meant = intent is not Intent.RUN and pod.trouble is not None and pod.trouble.reason is Reason.Stopped
    return None if meant else pod.trouble


# The end


def failure_of(observation: Observation) -> Failure | None:
    """Whom a failed run is about: who failed by itself, the earliest; who lost a peer, or passes words on, is last."""
    participants = observation.seen.participants
    if not any(seen.job and seen.job.failure for seen in participants.values()):
        return None
    causes = [
        _cause(name, seen, observation.consortium.names) for name, seen in participants.items() if _over(seen)
    ]
    return min(causes, key=lambda cause: cause[0])[1]


def _over(seen: ParticipantSeen) -> bool:
    """Whether a participant has failed for good; the Job may not have noticed yet."""
    if seen.job and seen.job.failure:
        return True
    return seen.pod is not None and seen.pod.phase == "Failed" and final(seen.pod.exit_code)


def _cause(name: str, seen: ParticipantSeen, names: Sequence[str]) -> tuple[tuple[int, str, str], Failure]:
    """How far from the first cause an end is, and what it tells of that cause."""
    words, code, reason = _last_words(seen), _exit_code(seen), _failed_by(seen)
    failure = seen.job.failure if seen.job else None
    at = (seen.pod.ended_at if seen.pod else "") or (failure.since if failure else "")
    relay = RELAYED.match(words)
    if relay and relay[1] in names:
        told = sentence(relay[1], reason, f"{relay[2]} (as {name} was told)")
        return (3, at, name), Failure(reason=reason, sentence=told)
    rank = 2 if code == PEER_LOST else 0 if final(code) else 1
    return (rank, at, name), Failure(reason=reason, sentence=sentence(name, reason, words))


def _exit_code(seen: ParticipantSeen) -> int | None:
    code = seen.pod.exit_code if seen.pod else None
    return seen.job.exit_code if code is None and seen.job else code


def _failed_by(seen: ParticipantSeen) -> Reason:
    code, failure = _exit_code(seen), seen.job.failure if seen.job else None
    if failure is not None and failure.reason == Reason.BackoffLimitExceeded.name and not final(code):
        return Reason.BackoffLimitExceeded
    return EXIT_REASONS.get(code, Reason.NodeError) if code else Reason.JobFailed


def _last_words(seen: ParticipantSeen) -> str:
    pod, failure = seen.pod, seen.job.failure if seen.job else None
    if pod is not None and pod.last is not None and pod.last.error:
        return pod.last.error
    if pod is not None and pod.trouble is not None and pod.trouble.message:
        return pod.trouble.message
    return failure.message if failure else ""


# The whole, while it goes on


def state_of(observation: Observation, rows: Sequence[Standing]) -> State:
    """One word for a consortium that has not ended."""
    states = {row.state for row in rows}
    if observation.intent is Intent.SUSPEND:
        return "Suspended"
    if rows and all(row.ready for row in rows):
        return "Running"
    began = any(row.answers and row.node is not None and row.node.view > 0 for row in rows)
    if began and observation.intent is Intent.RUN:
        return "Waiting"
    if not rows or states & {"Pending", "Suspended"}:
        return "Pending"
    return "Loading" if "Loading" in states else "Waiting"


def held_up(observation: Observation, rows: Sequence[Standing]) -> tuple[Truth, Reason, str]:
    """Whether a consortium gets on, why or why not, and a sentence."""
    truth, reason, text = _held_up(observation, rows)
    return truth, reason, text if reason is Reason.ApplyRefused else text + refusals(observation.refused)


def _held_up(observation: Observation, rows: Sequence[Standing]) -> tuple[Truth, Reason, str]:
    troubled = troubles(rows)
    if observation.intent is Intent.SUSPEND:
        return "False", Reason.SuspendRequested, sentence("", Reason.SuspendRequested)
    if observation.intent is Intent.YIELD:
        lacking = [row for row in troubled if row.trouble and row.trouble.reason.name in LACKING]
        words = "; ".join(f"{row.name}: {row.words.rstrip(' .')}" for row in lacking[:NAMES_SHOWN])
        return "False", observation.yields, sentence("", observation.yields, words)
    if not rows:
        return "False", Reason.NothingHere, sentence("", Reason.NothingHere)
    if troubled and troubled[0].trouble:
        return "False", troubled[0].trouble.reason, about(troubled)
    if observation.refused and not all(row.ready or row.state == "Completed" for row in rows):
        return "False", Reason.ApplyRefused, sentence("", Reason.ApplyRefused, "; ".join(observation.refused))
    return _on_the_way(observation, rows)


def _on_the_way(observation: Observation, rows: Sequence[Standing]) -> tuple[Truth, Reason, str]:
    for states, reason in ((("Pending", "Suspended"), Reason.Starting), (("Loading",), Reason.Loading)):
        names = [row.name for row in rows if row.state in states]
        if names:
            return "True", reason, sentence(listed(names), reason)
    if not all(row.ready or row.state == "Completed" for row in rows):
        words = _missing(observation, rows)
        reason = Reason.WaitingForParticipants
        return "False", reason, sentence("", reason, words)
    if observation.coordinator is None and not observation.nodes:
        return "Unknown", Reason.StatusUnavailable, sentence("", Reason.StatusUnavailable)
    return "True", Reason.Training, Reason.Training.meaning


def troubles(rows: Sequence[Standing]) -> list[Standing]:
    """Those in trouble: causes first, who only lost a peer last."""
    found = [row for row in rows if row.trouble]
    return sorted(found, key=lambda row: row.trouble is not None and row.trouble.reason is Reason.PeerLost)


def about(troubled: Sequence[Standing]) -> str:
    """A sentence about the first, and who else."""
    first = troubled[0]
    if first.trouble is None:
        return ""
    text = sentence(first.name, first.trouble.reason, first.words)
    others = [row.name for row in troubled[1:]]
    return f"{text} (in trouble too: {listed(others)})" if others else text


def _missing(observation: Observation, rows: Sequence[Standing]) -> str:
    """Who keeps a view from forming; the coordinator knows best."""
    coordinator = observation.coordinator
    if coordinator is None:
        return next((row.node.waiting_for for row in rows if row.node and row.node.waiting_for), "")
    members = [member for member in coordinator.members if member.name in observation.consortium.names]
    absent = listed([member.name for member in members if not member.connected])
    loading = listed([member.name for member in members if member.connected and member.phase in LOADING])
    said = [f"not connected: {absent}" if absent else "", f"loading: {loading}" if loading else ""]
    return "; ".join(filter(None, said)) or coordinator.error or coordinator.reason
