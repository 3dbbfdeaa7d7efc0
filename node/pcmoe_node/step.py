"""One step, as a transaction: owners do their micro-batches, hosts vote, then all apply it or all skip it."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pcmoe_node.conductor import Conductor
from pcmoe_node.config import NodeConfig
from pcmoe_node.cut import MicroBatch, auxiliary_loss, sum_loss
from pcmoe_node.data import Corpus
from pcmoe_node.errors import DivergedError
from pcmoe_node.ledger import Ledger
from pcmoe_node.model import NodeModel
from pcmoe_node.moe import Owner
from pcmoe_node.optimizer import ParameterSet
from pcmoe_node.packing import Batch
from pcmoe_node.protocol import round as rounds
from pcmoe_node.protocol.effects import Decision, Phase

MAX_OVERFLOWS = 10
"""Steps in a row in which one's own numbers may overflow before the run ends."""


@dataclass(slots=True)
class Tally:
    """Sums over the own micro-batches of a round so far, or of an evaluation."""

    loss: float = 0.0
    """Cross-entropy, summed over supervised tokens."""
    tokens: int = 0
    applied: int = 0
    skipped: int = 0
    overflowed: bool = False
    """The own numbers of the last step were not finite or beyond bounds: it has no loss."""

    @property
    def mean(self) -> float | None:
        """Loss per supervised token of all that had one; None where there was none."""
        return self.loss / self.tokens if self.tokens else None

    @property
    def latest(self) -> float | None:
        """The mean, but NaN while the own numbers overflow."""
        return math.nan if self.overflowed else self.mean


@dataclass(kw_only=True)
class Participant:
    """Everything one node trains with."""

    config: NodeConfig
    built: NodeModel
    owner: Owner
    corpus: Corpus
    backbone: ParameterSet
    experts: ParameterSet
    device: torch.device
    auxiliary: Callable[..., Tensor] | None
    conductor: Conductor = field(init=False)
    """Of the view that the node is in."""
    ledger: Ledger = field(default_factory=Ledger)
    """What is handed to peers, in any view."""
    tally: Tally = field(default_factory=Tally)
    overflows: int = 0
    """Steps in a row in which the own numbers overflowed."""

    def owners(self, step: int) -> frozenset[int]:
        """Who are owners in a step."""
        return rounds.owners(
            self.config.training.schedule, step, len(self.config.participants), self.config.model.seed
        )

    def begin(self, step: int) -> None:
        """Make ready for the requests of `step`: they may come before this node enters it."""
        self.backbone.zero()
        self.experts.zero()
        self.conductor.begin_step(self.owners(step), self.config.training.micro_batches_per_step)


def run_step(node: Participant, step: int) -> Decision:
    """Do this node's part of one step and apply or skip it with everybody else."""
    conductor, machine = node.conductor, node.conductor.machine
    owners = node.owners(step)
    conductor.decision = conductor.vote_due = None
    conductor.carry_out(machine.enter(step, owners))

    ok, is_owner = True, node.config.index in owners
    if is_owner:
        tokens, ok = _train_micro_batches(node, step)
        _count_overflow(node, step, ok, is_owner=False)
        conductor.carry_out(machine.owner_done(tokens, ok))

    conductor.wait_until(lambda: conductor.vote_due is not None, "vote")
    with conductor.clock.phase("vote"):
        finite = _vote(node)
    if ok:
        _count_overflow(node, step, finite, is_owner=is_owner)
    conductor.wait_until(lambda: conductor.decision is not None, "vote")
    decision = conductor.decision
    assert decision is not None
    with conductor.clock.phase("optimizer"):
        if decision.apply:
            _apply(node, step, decision, is_owner=is_owner)
        node.tally.applied += decision.apply
        node.tally.skipped += not decision.apply
        node.begin(step + 1)
    conductor.carry_out(machine.applied())
    return decision


def evaluate(node: Participant) -> float | None:
    """Mean loss per token on the own held-out documents, at the version everybody has reached; NaN: it overflowed."""
    training = node.config.training
    version = node.conductor.machine.version
    batches = node.corpus.held_out_batches(training.evaluation_sequences, training.sequences_per_micro_batch)
    result = Tally()

    def work(number: int, batch: Batch) -> None:
        micro_batch = MicroBatch(Phase.EVALUATE, version, number)
        with torch.no_grad(), _Running(node, micro_batch, batch):
            # Other lanes add to the same tally while this one waits: compute first, then add.
            loss = float(sum_loss(_logits(node, batch), batch.labels_BS.to(node.device)))
            result.loss += loss if micro_batch.ok else math.nan
            result.tokens += batch.tokens

    works = [lambda n=number, b=batch: work(n, b) for number, batch in enumerate(batches)]
    node.built.model.eval()
    try:
        node.conductor.run(works, training.in_flight, "evaluation")
    finally:
        node.built.model.train()  # also when somebody was lost: the same model trains on in the next view
    return result.mean


def _train_micro_batches(node: Participant, step: int) -> tuple[int, bool]:
    """(supervised tokens, whether every own number was finite and in bounds) of this node's micro-batches."""
    training = node.config.training
    turn = step if training.schedule == "Concurrent" else step // len(node.config.participants)
    with node.conductor.clock.phase("data"):
        first = turn * training.micro_batches_per_step
        count = training.sequences_per_micro_batch
        batches = [
            node.corpus.training_batch((first + number) * count, count)
            for number in range(training.micro_batches_per_step)
        ]
    done: list[MicroBatch] = []
    node.tally.overflowed = False

    def work(number: int, batch: Batch) -> None:
        micro_batch = MicroBatch(Phase.FORWARD, step, number)
        with _Running(node, micro_batch, batch):
            _train_micro_batch(node, micro_batch, batch)
        done.append(micro_batch)

    works = [lambda n=number, b=batch: work(n, b) for number, batch in enumerate(batches)]
    node.conductor.run(works, training.in_flight)
    ok = all(m.ok for m in done) and math.isfinite(node.backbone.squared_norm())
    return sum(batch.tokens for batch in batches), ok


def _count_overflow(node: Participant, step: int, fine: bool, *, is_owner: bool) -> None:
    """Count steps in which own numbers overflowed; only a step with own data that was fine ends the row."""
    if not fine:
        node.overflows += 1
    elif is_owner:
        node.overflows = 0
    if node.overflows >= MAX_OVERFLOWS:
        raise DivergedError(
            f"own losses, outputs or gradients were not finite, or beyond the agreed bound, in {MAX_OVERFLOWS} steps "
            f"in a row, the last is {step}"
        )


def _train_micro_batch(node: Participant, micro_batch: MicroBatch, batch: Batch) -> None:
    """Forward, loss of the sum, backward; on a lane."""
    labels_BS = batch.labels_BS.to(node.device)
    loss = sum_loss(_logits(node, batch), labels_BS)
    total = loss
    if node.auxiliary is not None:
        coefficient = node.config.training.auxiliary_loss_coefficient * batch.tokens
        total = loss + coefficient * auxiliary_loss(micro_batch.layers, node.auxiliary, node.built.top_k)
    value = float(loss.detach())
    micro_batch.ok = micro_batch.ok and math.isfinite(float(total.detach()))
    node.tally.overflowed |= not micro_batch.ok
    node.conductor.enter("backward")
    if micro_batch.ok:
        node.tally.loss += value
        node.tally.tokens += batch.tokens
        total.backward()  # type: ignore[no-untyped-call]
    micro_batch.backward()


def _logits(node: Participant, batch: Batch) -> Tensor:
    """The model's logits [B, S, V]. Restarting positions keep documents apart: no attention across them."""
    output = node.built.model(
        input_ids=batch.ids_BS.to(node.device),
        position_ids=batch.positions_BS.to(node.device),
        use_cache=False,
    )
    logits_BSV: Tensor = output.logits
    return logits_BSV


class _Running:
    """Ties a micro-batch to the lane it runs on, so that the hook finds it, and opens its account in the ledger."""

    def __init__(self, node: Participant, micro_batch: MicroBatch, batch: Batch) -> None:
        self._owner, self._micro_batch = node.owner, micro_batch
        self._exposed = node.ledger.open(batch, held_out=micro_batch.phase is Phase.EVALUATE)
        micro_batch.exposed = self._exposed

    def __enter__(self) -> None:
        self._key = id(self._owner.conductor.lane)
        self._owner.running[self._key] = self._micro_batch

    def __exit__(self, *_: object) -> None:
        self._exposed.close()
        del self._owner.running[self._key]


def _vote(node: Participant) -> bool:
    """Say how large the own shard's gradient is, once all of it is added up; whether the own numbers were fine."""
    due = node.conductor.vote_due
    assert due is not None
    squared_norm = 0.0
    if not due.skipped:
        with node.conductor.clock.phase("host_compute"):
            node.conductor.host.deferred.play_all()
            squared_norm = node.experts.squared_norm() / due.tokens**2
    finite = math.isfinite(squared_norm) and not node.conductor.host.overflowed
    node.conductor.carry_out(node.conductor.machine.ballot(squared_norm if finite else 0.0, finite))
    return finite


def _apply(node: Participant, step: int, decision: Decision, *, is_owner: bool) -> None:
    """Step the hosted experts and, where this node was an owner, its backbone."""
    optimizer = node.config.training.optimizer
    factor = rounds.schedule_factor(step, optimizer.warmup_steps, node.config.total_steps, optimizer.decay)
    node.experts.apply(tokens=decision.tokens, squared_norm=decision.squared_norm, factor=factor)
    if is_owner:
        own = node.backbone.squared_norm() / decision.tokens**2
        node.backbone.apply(tokens=decision.tokens, squared_norm=own, factor=factor)
