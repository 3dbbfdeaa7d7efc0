"""Runs one baseline from its first weights to the last step, and writes down what a node would have."""

import json
import logging
import math
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pcmoe_node.accounts import Accounts
from pcmoe_node.baselines.pool import Pool
from pcmoe_node.baselines.settings import Baseline, Kind
from pcmoe_node.baselines.shard import build_shard, by_width
from pcmoe_node.config import NodeConfig
from pcmoe_node.data import Corpus, open_corpus
from pcmoe_node.errors import ConfigError, StorageError
from pcmoe_node.exchange.local import LocalNetwork
from pcmoe_node.figures import Figures
from pcmoe_node.gpu import GpuMeter, meter_of
from pcmoe_node.journal import Journal
from pcmoe_node.model import build
from pcmoe_node.participant import assemble, join, order_secret
from pcmoe_node.protocol.round import evaluation_due, owners
from pcmoe_node.status import resident
from pcmoe_node.step import Participant, Tally, evaluate, run_step
from pcmoe_node.tokenizer import load_tokenizer

log = logging.getLogger("pcmoe")

ROUND_FOLDERS = "round-" + "[0-9]" * 6


@dataclass(kw_only=True)
class Training:
    """A baseline under way."""

    baseline: Baseline
    node: Participant
    corpora: tuple[Corpus, ...]
    """Of each participant it is about."""
    journals: tuple[Journal, ...]
    accounts: Accounts
    baseline_rss: int
    """Resident bytes after imports, before anything was loaded."""
    gpu: GpuMeter | None


def run_baseline(baseline: Baseline, output: Path) -> Training:
    """Train it; `OUTPUT/KIND/NAME/log/rounds.jsonl` gets the lines that NAME's node writes, what was there goes.

    Raises a `NodeError` as a node does.
    """
    baseline_rss = resident()["rssBytes"]
    folders = [output / baseline.kind / config.participant / "log" for config in baseline.of]
    journals = tuple(_new_journal(folder) for folder in folders)
    node, corpora = _assembled(baseline)
    join(node, LocalNetwork((baseline.config,)).transport(0), first_step=0)
    # Nobody waits for an answer here: the weights' gradients are added up at once, and what they need is let go.
    node.conductor.host.deferred.limit = 0
    node.begin(0)
    figures = Figures(participant=baseline.name, rounds=1, steps=baseline.config.total_steps, peers=0)
    accounts = Accounts(figures=figures, names=(baseline.config.participant,))
    accounts.begin(node)
    training = Training(
        baseline=baseline,
        node=node,
        corpora=corpora,
        journals=journals,
        accounts=accounts,
        baseline_rss=baseline_rss,
        gpu=meter_of(node.device),
    )
    log.info("%s: loaded", baseline.name)
    _run_rounds(training)
    return training


def secret_of(config: NodeConfig) -> bytes:
    """What ordered the participant's data and chose its held-out documents when its node trained.

    Reads only; a node that trains at the same time isn't disturbed. `ConfigError` where no node has drawn one yet.
    """
    if config.order_secret_file is not None:
        return order_secret(config, None)
    folder = Path(config.checkpoint_directory)
    stored = sorted(folder.glob(f"{ROUND_FOLDERS}/state.json"))
    if not stored:
        raise ConfigError(
            f"checkpoint_directory: {folder} has no stored round: the order of the data is in it, and is needed to "
            "train on the same"
        )
    try:
        return order_secret(config, json.loads(stored[-1].read_text("utf-8"))["secret"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{stored[-1]}: can't be used: {type(error).__name__}") from None


def _new_journal(folder: Path) -> Journal:
    try:
        for name in ("rounds.jsonl", "events.jsonl"):
            (folder / name).unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"{folder}: can't be used for logs: {error.strerror}") from error
    return Journal(folder)


def _assembled(baseline: Baseline) -> tuple[Participant, tuple[Corpus, ...]]:
    """The node, and the corpus of each participant it is about."""
    first = baseline.of[0]
    alone = baseline.kind is Kind.ALONE_SHARD
    node = assemble(
        baseline.config,
        secret_of(first),
        (lambda _config, device: build_shard(first, device)) if alone else build,
    )
    if alone and node.auxiliary is not None:
        node.auxiliary = by_width(node.auxiliary)
    if baseline.kind is not Kind.UNION:
        return node, (node.corpus,)
    tokenizer = load_tokenizer(first.model.tokenizer, first.model.checkpoint)
    length = first.training.sequence_length
    others = (open_corpus(c.dataset, tokenizer, secret_of(c), length) for c in baseline.of[1:])
    corpora = (node.corpus, *others)
    node.corpus = Pool(corpora, partial(_owners, first), first.training.micro_batches_per_step)
    return node, corpora


def _owners(config: NodeConfig, step: int) -> list[int]:
    """Whose data the consortium trains on in a step, in participant order."""
    return sorted(
        owners(config.training.schedule, step, len(config.participants), config.model.seed),
    )


def _run_rounds(training: Training) -> None:
    baseline, node, step = training.baseline, training.node, 0
    rounds = len(baseline.steps_of_rounds)
    _record(training, 0, _held_out(training, 0))
    for number, steps in enumerate(baseline.steps_of_rounds, 1):
        for _ in range(steps):
            decision = run_step(node, step)
            if not decision.apply:
                log.warning("step %d was skipped: %s", step, decision.reason)
            training.accounts.step(node.conductor, node.tally)
            step += 1
        held_out = _held_out(training, number)
        _record(training, number, held_out)
    log.info("%s: all %d rounds are done", baseline.name, rounds)


def _held_out(training: Training, number: int) -> list[float | None]:
    """The loss on each participant's held-out documents, where it is time for it."""
    node, baseline = training.node, training.baseline
    rounds = len(baseline.steps_of_rounds)
    if not baseline.config.training.evaluation_sequences or not evaluation_due(
        number, baseline.evaluate_every, rounds
    ):
        return [None] * len(training.corpora)
    trained_on, losses = node.corpus, []
    for corpus in training.corpora:
        node.corpus = corpus
        losses.append(evaluate(node))
    node.corpus = trained_on
    return losses


def _record(training: Training, number: int, held_out: list[float | None]) -> None:
    """A line per participant. What a union trained on is in each: there is one model, and all data are its own."""
    node, tally = training.node, training.node.tally
    settled = training.accounts.settle(node, counts=number > 0)
    line = {
        "round": number,
        "step": number * training.baseline.of[0].training.steps_per_round,
        "time": time.time(),
        "seconds": settled.seconds,
        "trainLoss": _finite(tally.mean),
        "tokens": tally.tokens,
        "stepsApplied": tally.applied,
        "stepsSkipped": tally.skipped,
        "secondsByPhase": settled.seconds_by_phase,
        "traffic": {},
        "remoteTokenShare": None,
        "memory": _memory(training),
        "gpus": 0 if training.gpu is None else 1,
        "checkpointBytes": None,
        "checkpointSeconds": None,
    }
    for config, journal, loss in zip(training.baseline.of, training.journals, held_out, strict=True):
        journal.round({**line, "heldOutLoss": _finite(loss)})
        log.info(
            "%s: round %d: training loss %s, held-out loss of %s %s, %.1f s",
            training.baseline.name,
            number,
            tally.mean,
            config.participant,
            loss,
            settled.seconds,
        )
    node.tally = Tally()


def _memory(training: Training) -> dict[str, object]:
    groups = {"backbone": training.node.backbone.bytes(), "experts": training.node.experts.bytes()}
    held = {name: sizes["weights"] for name, sizes in groups.items()}
    held |= {k: sum(sizes[k] for sizes in groups.values()) for k in ("gradients", "moments", "masters")}
    return {
        **resident(),
        "baselineRssBytes": training.baseline_rss,
        "tensorBytes": held,
        "gpuPeakBytes": None if training.gpu is None else training.gpu.peak(),
    }


def _finite(loss: float | None) -> float | None:
    """JSON has no NaN."""
    return loss if loss is not None and math.isfinite(loss) else None
