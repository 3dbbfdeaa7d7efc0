"""The step as a transaction: everybody applies it, or everybody skips it. A pure state machine.

The caller feeds what arrives and what it has done, and carries out the effects that come back, in order.
One step, seen from one node (version = steps decided so far; this is step `version`):

    enter ─► own micro-batches ─► owner_done ─► STEP_END to all
    entered, and STEP_END of every owner     ─► CastVote ─► ballot ─► VOTE to all
    voted, and VOTE of every member          ─► Decide ─► applied: version + 1

Meanwhile requests of other owners are served as soon as the version is theirs, entered or not: a node that
still evaluates or stores a checkpoint holds nobody up. What makes this safe is that a node votes only after
entering: until its evaluation at a version is over its vote is missing, so no host can leave that version.

For the same reason nobody is ever more than one step ahead: what comes one step early is checked, then held;
what is further ahead is an error; what belongs to a step that is over is dropped, as a late copy.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

from pcmoe_node.errors import ProtocolError
from pcmoe_node.protocol.effects import (
    BroadcastStepEnd,
    BroadcastVote,
    CastVote,
    Decide,
    Decision,
    Drop,
    Effect,
    Phase,
    Request,
    Serve,
)
from pcmoe_node.protocol.quota import Allowance, Quota
from pcmoe_node.protocol.vote import Pool, Tally, Vote


class End(NamedTuple):
    """The content of a STEP_END."""

    tokens: int
    ok: bool


@dataclass(slots=True)
class StepState:
    """All that is known of one step: of the current one, or of the next one before its time."""

    tally: Tally
    owners: frozenset[int] | None = None
    """None until this node enters the step."""
    quotas: dict[int, Quota] = field(default_factory=dict)
    ends: dict[int, End] = field(default_factory=dict)
    held: list[Serve] = field(default_factory=list)
    """Admitted requests whose version this node has not reached, in order of arrival."""
    cast: bool = False
    decided: bool = False


@dataclass(slots=True)
class StepMachine:
    """One node's part in the steps of a run. Every `ProtocolError` names the peer, what it sent and the rule.

    A call that doesn't fit this node's own state (a second `applied`, a `ballot` nobody asked for) is a
    `RuntimeError`: a mistake of the caller, not of a peer.
    """

    me: int
    members: int
    micro_batches: int
    in_flight: int
    served_layers: tuple[int, ...]
    """Layers with experts that this node hosts for others; may be empty."""
    first_step: int = 0
    names: tuple[str, ...] = ()
    """Names for messages; without them peers are numbers."""
    evaluation_batches: int | None = None
    """Agreed number of micro-batches of an evaluation; None: not checked."""
    tokens_per_step: int | None = None
    """Most supervised tokens that one owner may have in a step; None: not checked."""
    version: int = field(init=False)
    """Steps decided so far, applied or skipped: the version of this node's weights."""
    entered_step: int | None = field(init=False, default=None)
    """The step entered last; the current one if it equals `version`."""
    _allowance: Allowance = field(init=False, repr=False)
    _now: StepState = field(init=False, repr=False)
    _next: StepState = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.names = self.names or tuple(f"participant {peer}" for peer in range(self.members))
        self.version = self.first_step
        self._allowance = Allowance(
            self.micro_batches, self.in_flight, frozenset(self.served_layers), self.evaluation_batches
        )
        self._now, self._next = self._blank(), self._blank()

    # What this node does

    def enter(self, step: int, owners: frozenset[int]) -> list[Effect]:
        """This node begins `step`; its evaluation and checkpoint before it are behind it."""
        if step != self.version or self.entered_step == step:
            raise RuntimeError(
                f"step {step} can't be entered at version {self.version}, after {self.entered_step}"
            )
        self.entered_step = step
        self._now.owners = owners
        for peer, quota in self._now.quotas.items():
            if peer not in owners and quota.trained:
                raise self._not_an_owner(peer, step, "a FORWARD")
        for peer in self._now.ends:
            if peer not in owners:
                raise self._not_an_owner(peer, step, "STEP_END")
        return self._cast_if_ready()

    def served(self, peer: int, request: Request) -> list[Effect]:
        """A request is answered. Call this before the reply is sent, else the owner may seem to run ahead."""
        if request.step != self.version:
            raise RuntimeError(f"{request} of {self.names[peer]} served at version {self.version}")
        self._now.quotas[peer].serve(request)
        return []

    def owner_done(self, tokens: int, ok: bool) -> list[Effect]:
        """Own micro-batches are over and every request was answered. Not `ok`: own numbers overflowed."""
        now = self._now
        if now.owners is None or self.me not in now.owners or self.me in now.ends:
            raise RuntimeError(f"no own micro-batches were expected to end in step {self.version}")
        now.ends[self.me] = End(tokens, ok)
        return [BroadcastStepEnd(self.version, tokens, ok), *self._cast_if_ready()]

    def ballot(self, squared_norm: float, finite: bool) -> list[Effect]:
        """This node's own vote, asked for by `CastVote`."""
        now = self._now
        if not now.cast or now.tally.has(self.me):
            raise RuntimeError(f"no vote was expected in step {self.version}")
        vote = Vote.of(squared_norm, finite)
        now.tally.add(self.me, vote)
        return [BroadcastVote(self.version, vote.squared_norm, vote.finite), *self._decide_if_ready()]

    def applied(self) -> list[Effect]:
        """The step was applied or skipped as `Decide` said. Serves what was held for the new version."""
        if not self._now.decided:
            raise RuntimeError(f"step {self.version} was not decided")
        self.version += 1
        self._now, self._next = self._next, self._blank()
        held, self._now.held = self._now.held, []
        return list(held)

    # What arrives

    def request(self, peer: int, request: Request, item: object) -> list[Effect]:
        """A FORWARD, BACKWARD or EVALUATE arrived. `item` comes back in `Serve` or `Drop`."""
        state = self._state(peer, request.step, request.phase.name)
        if state is None:
            return [Drop(peer, item, f"{request} is older than version {self.version}")]
        if request.phase is not Phase.EVALUATE and state.owners is not None and peer not in state.owners:
            raise self._not_an_owner(peer, request.step, request.phase.name)
        if not self._quota(state, peer).admit(request):
            return [Drop(peer, item, f"{request} is a copy of one that was seen")]
        serve = Serve(peer, request, item)
        if state is self._now:
            return [serve]
        state.held.append(serve)
        return []

    def step_end(self, peer: int, step: int, tokens: int, ok: bool) -> list[Effect]:
        """STEP_END arrived. If `ok`, all that the owner owes this host must have been asked and answered."""
        state = self._state(peer, step, "STEP_END")
        if state is None:
            return [Drop(peer, None, f"STEP_END of step {step} is older than version {self.version}")]
        end = End(tokens, ok)
        earlier = state.ends.get(peer)
        if earlier == end:
            return [Drop(peer, None, f"STEP_END of step {step} is a copy of one that was seen")]
        if earlier is not None:
            raise ProtocolError(f"{self.names[peer]} sent STEP_END of step {step} with {end} after {earlier}")
        if state.owners is not None and peer not in state.owners:
            raise self._not_an_owner(peer, step, "STEP_END")
        if self.tokens_per_step is not None and tokens > self.tokens_per_step:
            raise ProtocolError(
                f"{self.names[peer]} sent STEP_END of step {step} with {tokens} supervised tokens; "
                f"an owner has at most {self.tokens_per_step}"
            )
        self._quota(state, peer).close("STEP_END", complete=ok)
        state.ends[peer] = end
        return self._cast_if_ready()

    def vote(self, peer: int, step: int, squared_norm: float, finite: bool) -> list[Effect]:
        """VOTE arrived."""
        state = self._state(peer, step, "VOTE")
        if state is None:
            return [Drop(peer, None, f"VOTE of step {step} is older than version {self.version}")]
        vote = Vote.of(squared_norm, finite)
        if vote.finite != finite:
            raise ProtocolError(
                f"{self.names[peer]} sent VOTE of step {step} with squared norm {squared_norm} as finite; "
                "it must be a finite number of at least 0"
            )
        try:
            new = state.tally.add(peer, vote)
        except ValueError as error:
            raise ProtocolError(f"{self.names[peer]} sent two votes in step {step}: {error}") from None
        if not new:
            return [Drop(peer, None, f"VOTE of step {step} is a copy of one that was seen")]
        self._quota(state, peer).close("VOTE", complete=False)
        return self._decide_if_ready()

    # What is missing

    def waiting_for(self) -> list[tuple[int, str]]:
        """Who else keeps this node from going on, and what they owe; empty: it is this node's own turn."""
        now = self._now
        if now.owners is None or now.decided:
            return []
        if not now.cast:
            owing = sorted(now.owners - now.ends.keys() - {self.me})
            return [(peer, f"STEP_END of step {self.version}") for peer in owing]
        return [(peer, f"VOTE of step {self.version}") for peer in now.tally.missing if peer != self.me]

    def __str__(self) -> str:
        now = self._now
        steps = ("not entered", "entered", "all owners done", "voted", "decided")
        voted = now.tally.has(self.me)
        stage = steps[(now.owners is not None) + now.cast + voted + now.decided]
        waiting = ", ".join(f"{what} from {self.names[peer]}" for peer, what in self.waiting_for())
        return f"step {self.version} ({stage})" + (f", waiting for {waiting}" if waiting else "")

    # Inside

    def _blank(self) -> StepState:
        return StepState(Tally(self.names))

    def _state(self, peer: int, step: int, what: str) -> StepState | None:
        """The state of the step that a message belongs to; None if that step is over."""
        if step == self.version:
            return self._now
        if step == self.version + 1:
            return self._next
        if step < self.version:
            return None
        raise ProtocolError(
            f"{self.names[peer]} sent {what} of step {step} while this node is at {self.version}; "
            "nobody can be more than one step ahead"
        )

    def _quota(self, state: StepState, peer: int) -> Quota:
        quota = state.quotas.get(peer)
        if quota is None:
            quota = state.quotas[peer] = Quota(self.names[peer], self._allowance)
        return quota

    def _cast_if_ready(self) -> list[Effect]:
        now = self._now
        if now.owners is None or now.cast or not now.owners <= now.ends.keys():
            return []
        now.cast = True
        tokens = sum(end.tokens for end in now.ends.values())
        skipped = tokens == 0 or not all(end.ok for end in now.ends.values())
        return [CastVote(self.version, tokens, skipped)]

    def _decide_if_ready(self) -> list[Effect]:
        now = self._now
        if now.decided or not now.tally.complete:
            return []
        now.decided = True
        return [Decide(self.version, self._decision(now.tally.result()))]

    def _decision(self, pool: Pool) -> Decision:
        ends = sorted(self._now.ends.items())
        tokens = sum(end.tokens for _, end in ends)
        reasons = [f"owner {self.names[peer]} was not ok" for peer, end in ends if not end.ok]
        if tokens == 0:
            reasons.append("no supervised token")
        reasons += pool.reasons
        return Decision(not reasons, tokens, pool.squared_norm, "; ".join(reasons) or None)

    def _not_an_owner(self, peer: int, step: int, what: str) -> ProtocolError:
        names = ", ".join(self.names[owner] for owner in sorted(self._now.owners or ()))
        return ProtocolError(f"{self.names[peer]} sent {what} of step {step}, whose owners are: {names}")
