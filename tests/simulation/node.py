"""A node around the machine under test: an owner, a host that serves one at a time, and their conductor."""

import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from tests.simulation.invariants import InvariantError, Watch
from tests.simulation.network import Message, Wire
from tests.simulation.scenario import Scenario

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
from pcmoe_node.protocol.round import Farewell
from pcmoe_node.protocol.step import StepMachine


@dataclass(slots=True)
class Work:
    """An owner's micro-batches of one step or one evaluation, several in flight."""

    step: int
    stages: list[tuple[Phase, int]]
    """What each micro-batch does, one after the other: a phase and a layer."""
    batches: int
    over: Callable[[], None]
    """Called once, when nothing is left to do and nothing unanswered."""
    fails_at: tuple[int, int] | None = None
    """Micro-batch and stage at which own numbers overflow; nothing is begun after that."""
    failed: bool = False
    begun: int = 0
    running: int = 0
    rows: dict[tuple[int, int, int], int] = field(default_factory=dict)
    unanswered: dict[int, tuple[int, int, int]] = field(default_factory=dict)
    """Request id to host, micro-batch and stage."""
    waits: dict[int, int] = field(default_factory=dict)
    """Replies that each micro-batch still waits for."""


class Keeper(Protocol):
    """The process around a node: what outlives a view is its business."""

    def checkpoint(self, round_number: int, history: int, then: Callable[[], None]) -> None:
        """Store a round, call `then` once it is durable."""

    def trained(self) -> None:
        """No step is left."""

    def peer_done(self) -> None:
        """A peer said DONE."""

    def everybody_done(self) -> None:
        """All have said DONE, this node included."""


class Node:
    """One participant from the beginning of a view to its end."""

    def __init__(
        self, me: int, scenario: Scenario, network: Wire, watch: Watch, machine: StepMachine, keeper: Keeper
    ) -> None:
        """`machine` is what is tested; the rest is the plainest shell that keeps its rules."""
        self.me = me
        self.machine = machine
        self.history = 0
        """Digest of all that the weights were computed from; set it to that of the round taken up."""
        self._keeper = keeper
        self._scenario = scenario
        self._network = network
        self._watch = watch
        self._luck = network.luck
        self._others = [peer for peer in range(scenario.members) if peer != me]
        self._farewell = Farewell(me, scenario.members)
        self._queue: list[Serve] = []
        self._serving = False
        self._work: Work | None = None
        self._requests = 0
        self.left = False

    def __str__(self) -> str:
        waiting = dict(self._work.unanswered) if self._work else {}
        return (
            f"node {self.me}: {self.machine}; request id: (host, micro-batch, stage) unanswered: {waiting}; "
            f"to be served: {len(self._queue)}; not done: {self._farewell.waiting_for}"
        )

    # The round loop

    def start(self) -> None:
        """Begin as after loading a checkpoint: with an evaluation if one is due at this version."""
        self._evaluate()

    def _evaluate(self) -> None:
        version = self.machine.version
        if not self._scenario.evaluates(version):
            self._keep()
            return
        stages = [(Phase.EVALUATE, layer) for layer in range(len(self._scenario.hosts))]
        self._begin(Work(version, stages, self._scenario.evaluation_batches, self._evaluated))

    def _evaluated(self) -> None:
        self._watch.evaluated(self.me, self.machine.version)
        self._note("evaluated at", self.machine.version)
        self._keep()

    def _keep(self) -> None:
        passed, within = divmod(self.machine.version, self._scenario.steps_per_round)
        if within or passed == self._scenario.first_round:
            self._enter()
        else:
            self._keeper.checkpoint(passed, self.history, self._enter)

    def _enter(self) -> None:
        step = self.machine.version
        if step == self._scenario.total_steps:
            self._keeper.trained()
            return
        owners = self._scenario.owners(step)
        self._watch.entered(self.me, step)
        self._note("enters", step)
        self._carry_out(self.machine.enter(step, owners))
        if self.me in owners:
            layers = range(len(self._scenario.hosts))
            stages = [(Phase.FORWARD, layer) for layer in layers]
            stages += [(Phase.BACKWARD, layer) for layer in reversed(layers)]
            work = Work(step, stages, self._scenario.micro_batches, self._trained)
            if self._luck.random() < self._scenario.not_ok:
                work.fails_at = (self._luck.randrange(work.batches), self._luck.randrange(len(stages)))
            self._begin(work)

    def _trained(self) -> None:
        work, self._work = self._work, None
        assert work is not None
        # The same at everybody, so that a whole step has no token.
        empty = hash((self._scenario.seed, work.step)) % 1000 < 1000 * self._scenario.no_tokens
        tokens = 0 if empty else self._luck.randint(0, 9)
        self._watch.ended(self.me, work.step, tokens, not work.failed)
        self._carry_out(self.machine.owner_done(tokens, not work.failed))

    def say_done(self) -> None:
        """The last round is committed, and this process has it on disk: tell everybody, once."""
        if self._farewell.done():
            self._watch.done(self.me)
            self._note("is done")
            self._broadcast(Message(self.me, "DONE"))
            self._leave_if_possible()

    def said_done(self, peer: int) -> bool:
        """Whether a peer may go away without being missed."""
        return self._farewell.said_done(peer)

    def _leave_if_possible(self) -> None:
        if self._farewell.may_leave and not self.left:
            self._watch.left(self.me)
            self.left = True
            self._keeper.everybody_done()

    # The owner

    def _begin(self, work: Work) -> None:
        self._work = work
        for _ in range(min(self._scenario.in_flight, work.batches)):
            self._begin_micro_batch(work)

    def _begin_micro_batch(self, work: Work) -> None:
        micro_batch = work.begun
        work.begun += 1
        work.running += 1
        self._network.later(self._stage, work, micro_batch, 0)

    def _stage(self, work: Work, micro_batch: int, stage: int) -> None:
        """A micro-batch goes on with this stage: sends its requests, or ends."""
        if work.fails_at == (micro_batch, stage):
            work.failed = True
        if work.failed or stage == len(work.stages):
            work.running -= 1
            if not work.failed and work.begun < work.batches:
                self._begin_micro_batch(work)
            elif not work.running:
                work.over()
            return
        phase, layer = work.stages[stage]
        remote = [host for host in self._scenario.hosts[layer] if host != self.me]
        work.waits[micro_batch] = len(remote)
        for host in remote:
            self._ask(work, host, micro_batch, stage)
        if not remote:
            self._network.later(self._stage, work, micro_batch, stage + 1)

    def _ask(self, work: Work, host: int, micro_batch: int, stage: int) -> None:
        phase, layer = work.stages[stage]
        if phase is not Phase.BACKWARD:
            work.rows[host, micro_batch, layer] = self._luck.randrange(5)
        self._requests += 1
        work.unanswered[self._requests] = (host, micro_batch, stage)
        rows = work.rows[host, micro_batch, layer]
        request = Request(phase, work.step, micro_batch, layer, self._requests, rows)
        self._network.send(host, Message(self.me, "REQUEST", request))

    def _answered(self, host: int, request: Request) -> None:
        work = self._work
        waiting = work.unanswered.pop(request.request_id, None) if work else None
        if work is None or waiting is None:
            self._watch.seen["late reply"] += 1
            return
        asked_host, micro_batch, stage = waiting
        if asked_host != host:
            raise InvariantError(f"{host} answered {request}, which went to {asked_host}")
        work.waits[micro_batch] -= 1
        if not work.waits[micro_batch]:
            self._network.later(self._stage, work, micro_batch, stage + 1)

    # The host

    def _serve_next(self) -> None:
        if self._queue and not self._serving:
            self._serving = True
            chosen = self._queue.pop(self._luck.randrange(len(self._queue)))
            self._network.later(self._serve, chosen)

    def _serve(self, serve: Serve) -> None:
        self._serving = False
        self._note("served", serve.request, "of", serve.peer)
        self._watch.served(self.me, serve.peer, serve.request)
        early = serve.request.phase is Phase.FORWARD and self.machine.entered_step != serve.request.step
        self._watch.seen["served before entering"] += early
        self._carry_out(self.machine.served(serve.peer, serve.request))
        self._network.send(serve.peer, Message(self.me, "REPLY", serve.request))
        self._serve_next()

    # The conductor

    def receive(self, message: Message) -> None:
        """A message arrived."""
        self._note("receives", *message[1:], "from", message.sender)
        peer, kind, request, content = message
        machine = self.machine
        if kind == "REPLY":
            assert request is not None
            self._answered(peer, request)
        elif kind == "REQUEST":
            assert request is not None
            if self.left and not self._watch.was_served(self.me, peer, request):
                raise InvariantError(f"farewell: {self.me} had left when {peer} sent {request}")
            effects = machine.request(peer, request, message)
            self._watch.seen["held"] += not effects
            self._carry_out(effects)
        elif kind == "STEP_END":
            self._carry_out(machine.step_end(peer, int(content[0]), int(content[1]), bool(content[2])))
        elif kind == "VOTE":
            self._carry_out(machine.vote(peer, int(content[0]), content[1], bool(content[2])))
        else:
            self._farewell.peer_done(peer)
            self._keeper.peer_done()
            self._leave_if_possible()

    def _carry_out(self, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Serve):
                self._queue.append(effect)
                self._serve_next()
            elif isinstance(effect, Drop):
                self._watch.seen["copy dropped"] += 1
            elif isinstance(effect, BroadcastStepEnd):
                self._broadcast(Message(self.me, "STEP_END", None, (effect.step, effect.tokens, effect.ok)))
            elif isinstance(effect, CastVote):
                self._network.later(self._vote)
            elif isinstance(effect, BroadcastVote):
                content = (effect.step, effect.squared_norm, effect.finite)
                self._watch.voted(self.me, *content)
                self._broadcast(Message(self.me, "VOTE", None, content))
            else:
                self._decide(effect)

    def _vote(self) -> None:
        finite = self._luck.random() >= self._scenario.not_finite
        norm = self._luck.random() * 10 if self._scenario.layers_of(self.me) else 0.0
        self._carry_out(self.machine.ballot(norm if finite else float("nan"), finite))

    def _decide(self, decide: Decide) -> None:
        self._note("decides", decide.step, decide.outcome)
        self._watch.decided(self.me, decide.step, decide.outcome, len(self._queue) + self._serving)
        self._network.later(self._apply, decide.step, decide.outcome)

    def _apply(self, step: int, outcome: Decision) -> None:
        self._watch.applied(self.me, step)
        self._note("applied" if outcome.apply else "skipped", step)
        self.history = zlib.crc32(f"{self._watch.mark} {step} {outcome}".encode(), self.history)
        self._carry_out(self.machine.applied())
        self._evaluate()

    def _broadcast(self, message: Message) -> None:
        for peer in self._others:
            self._network.send(peer, message)

    def _note(self, what: str, *details: object) -> None:
        if self._watch.journal.trace is not None:
            self._watch.journal.note(self._network.now, f"{self.me} {what}", *details)
