"""The round loop: steps, then an evaluation at its turn, then a stored round. The unit of progress and of recovery."""

import logging
import math
import time
from dataclasses import dataclass

from pcmoe_node.accounts import Accounts
from pcmoe_node.checkpoint import Checkpoints
from pcmoe_node.coordination.seat import Seat
from pcmoe_node.exchange.base import Kind
from pcmoe_node.gpu import GpuMeter
from pcmoe_node.journal import Journal
from pcmoe_node.ledger_book import Book
from pcmoe_node.participant import position, tensors
from pcmoe_node.protocol.round import evaluation_due
from pcmoe_node.status import State, resident
from pcmoe_node.step import Participant, Tally, evaluate, run_step

log = logging.getLogger("pcmoe")


@dataclass(kw_only=True)
class Run:
    """What a run keeps beside the participant itself."""

    node: Participant
    seat: Seat
    state: State
    accounts: Accounts
    journal: Journal
    book: Book
    checkpoints: Checkpoints
    baseline_rss: int
    """Resident bytes after imports, before anything was loaded."""
    gpu: GpuMeter | None = None
    tokens: int = 0
    """Supervised tokens trained on, over all runs."""
    standing: int | None = 0
    """The round whose end the weights in memory are; None: somewhere after it."""


def run_rounds(run: Run, first_round: int) -> None:
    """From the round after `first_round` to the last; every round is stored before the next one begins."""
    node, training = run.node, run.node.config.training
    held_out = None
    if first_round == 0 and training.evaluation_sequences:
        held_out = _evaluate(run)
    if first_round == 0:
        _record(run, 0, held_out)

    for round_number in range(first_round + 1, training.rounds + 1):
        # ---- the steps
        run.state.phase = "TRAINING"
        first = (round_number - 1) * training.steps_per_round
        for step in range(first, first + training.steps_per_round):
            run.standing = None
            decision = run_step(node, step)
            if not decision.apply:
                run.state.steps_skipped += 1
                log.warning("step %d was skipped by all: %s", step, decision.reason)
            _progress(run)

        # ---- once in a while: how well does it do on documents it never trained on?
        held_out = None
        if training.evaluation_sequences and evaluation_due(
            round_number, training.evaluation_every_rounds, training.rounds
        ):
            held_out = _evaluate(run)

        # ---- make the round durable, and say so
        _store(run, round_number)
        _record(run, round_number, held_out)

    # ---- nobody leaves before everybody knows that the last round is committed
    _take_leave(run)


def _store(run: Run, round_number: int) -> None:
    node = run.node
    run.state.phase = "CHECKPOINT"
    node.conductor.transport.progress("CHECKPOINT")
    run.tokens += node.tally.tokens
    began = time.monotonic()
    with node.conductor.clock.phase("checkpoint"):
        size = run.checkpoints.save(position(node, round_number, run.tokens), tensors(node))
    run.state.checkpoint_bytes, run.state.checkpoint_seconds = size, time.monotonic() - began
    run.standing = round_number
    run.seat.stored(run.checkpoints.rounds())


def _take_leave(run: Run) -> None:
    """Wait for the last commit, pass it on, and wait until everybody has it: only then is nobody needed any more."""
    conductor, last = run.node.conductor, run.node.config.training.rounds
    run.state.phase = "COMMITTING"
    conductor.transport.progress("COMMITTING")
    conductor.wait_until(lambda: run.seat.committed >= last or conductor.farewell.vouched, "other")
    run.seat.commit(last)
    _remember_commit(run)
    if conductor.farewell.done():
        conductor.broadcast(Kind.DONE, conductor.machine.version)
    conductor.wait_until(lambda: conductor.farewell.may_leave, "other")


def _remember_commit(run: Run) -> None:
    """Write down what is committed, so that older rounds may go and nobody ever begins before it."""
    if run.seat.committed > run.checkpoints.membership.committed:
        run.checkpoints.remember(committed=run.seat.committed)
        run.seat.stored(run.checkpoints.rounds())
        run.state.committed, run.state.last_commit = run.seat.committed, time.time()


def _evaluate(run: Run) -> float | None:
    run.state.phase = "EVALUATING"
    run.node.conductor.transport.progress("EVALUATING")
    loss = evaluate(run.node)
    run.state.held_out_loss = loss
    return loss


def _progress(run: Run) -> None:
    """Show where the run stands; cheap, once a step."""
    node, state = run.node, run.state
    node.conductor.transport.progress("TRAINING")
    _remember_commit(run)
    state.step = node.conductor.machine.version
    state.tokens = run.tokens + node.tally.tokens
    _show_loss(run)
    run.accounts.step(node.conductor, node.tally)


def _show_loss(run: Run) -> None:
    """That of the round before stays until this one has one: not everybody is an owner in every step."""
    if run.node.tally.latest is not None:
        run.state.train_loss = run.node.tally.latest


def _record(run: Run, round_number: int, held_out: float | None) -> None:
    """One line of `rounds.jsonl`; the same figures in the log."""
    node, state, tally = run.node, run.state, run.node.tally
    state.round, state.step, state.tokens = round_number, node.conductor.machine.version, run.tokens
    _show_loss(run)
    settled = run.accounts.settle(node, counts=round_number > 0)
    state.tokens_per_second = tally.tokens / settled.seconds if tally.tokens else None
    stored = round_number > 0
    run.book.round(
        round_number, node.ledger.take(), run.state.refused(), node.conductor.transport.presented()
    )
    run.journal.round(
        {
            "round": round_number,
            "step": state.step,
            "time": time.time(),
            "seconds": settled.seconds,
            "trainLoss": _finite(tally.mean),
            "heldOutLoss": _finite(held_out),
            "tokens": tally.tokens,
            "stepsApplied": tally.applied,
            "stepsSkipped": tally.skipped,
            "secondsByPhase": settled.seconds_by_phase,
            "traffic": settled.traffic,
            "remoteTokenShare": settled.remote_share,
            "memory": _memory(run),
            "gpus": 0 if run.gpu is None else 1,
            "checkpointBytes": state.checkpoint_bytes if stored else None,
            "checkpointSeconds": state.checkpoint_seconds if stored else None,
        }
    )
    log.info(
        "round %d/%d: step %d, training loss %s, held-out loss %s, %d tokens in %.1f s",
        round_number,
        state.rounds,
        state.step,
        _shown(tally.mean),
        _shown(held_out),
        tally.tokens,
        settled.seconds,
    )
    node.tally = Tally()


def _memory(run: Run) -> dict[str, object]:
    backbone, experts = run.node.backbone.bytes(), run.node.experts.bytes()
    peak = None if run.gpu is None else run.gpu.peak()
    tensor_bytes = {"backbone": backbone["weights"], "experts": experts["weights"]}
    for kind in ("gradients", "moments", "masters"):
        tensor_bytes[kind] = backbone[kind] + experts[kind]
    run.state.tensor_bytes = sum(tensor_bytes.values())
    return {
        **resident(),
        "baselineRssBytes": run.baseline_rss,
        "tensorBytes": tensor_bytes,
        "gpuPeakBytes": peak,
    }


def _finite(loss: float | None) -> float | None:
    """JSON has no NaN."""
    return loss if loss is not None and math.isfinite(loss) else None


def _shown(loss: float | None) -> str:
    return "–" if loss is None else f"{loss:.4f}"
