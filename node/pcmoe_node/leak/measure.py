"""Every attack on every layer, as one host could try it on what it is sent.

The last layer's rows are recorded whether or not they leave: a table tells what `localLayers.atEnd` 0 would add.
"""

import logging
from dataclasses import dataclass

import torch
from torch import Tensor

from pcmoe_node.config import NodeConfig
from pcmoe_node.errors import ConfigError, DataError, DivergedError
from pcmoe_node.leak.attacks import Probe, directions, next_tokens_from_gradients
from pcmoe_node.leak.floors import Share, most_frequent, share, unigram
from pcmoe_node.leak.record import Layer, Recorder, Seen
from pcmoe_node.leak.sample import Marked, draw
from pcmoe_node.leak.subject import Subject, load_round, make_subject, newest_round
from pcmoe_node.participant import DTYPE, choose_device
from pcmoe_node.tokenizer import load_tokenizer

log = logging.getLogger("pcmoe")

START = "the start"
PROBE, CLOSED_FORM = "linear probe", "closed form"
HIDDEN, GRADIENTS = "hidden states", "gradients"
CURRENT, NEXT = "current", "next"


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """What one attack reads from one layer's rows."""

    layer: int
    sent_if_at_end: int
    """The layer's rows leave if `localLayers.atEnd` is at most this."""
    rows_share: float
    """Share of the own tokens that the host sees in this layer."""
    attack: str
    signal: str
    token: str
    """Which token is read: the row's own (current), or the one after it (next)."""
    taught: str | None
    """Of a probe: the weights that gave the rows it has learnt from."""
    rows: int
    """Rows that the attack was measured on."""
    read: Share
    most_frequent: Share
    unigram: Share


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurement:
    """One state of the weights."""

    weights: str
    """`the start`, or `round N`."""
    host: str
    documents: int
    tokens: int
    tokens_share: float
    """Share of them that the host sees in at least one layer that leaves."""
    at_end: int
    """As the run has it: layers with experts at the end that share none."""
    readings: tuple[Reading, ...]


@dataclass(frozen=True, slots=True)
class Lessons:
    """The rows of each layer at each state of the weights, oldest first; what was received at the last is attacked."""

    by_weights: dict[str, dict[int, Layer]]
    subject: Subject

    @property
    def weights(self) -> str:
        """The state that is attacked."""
        return list(self.by_weights)[-1]

    @property
    def received(self) -> dict[int, Seen]:
        """What is attacked."""
        return {layer: rows.received for layer, rows in self.by_weights[self.weights].items()}


def measure(
    config: NodeConfig, *, documents: int, sequences: int, host: str | None = None
) -> list[Measurement]:
    """At the start's weights, and at the newest stored round's where there is one.

    `documents` and `sequences` as in `sample.draw`; `host` reads, by default the peer that hosts most experts. Raises
    `ConfigError` where nothing leaves, `DataError` where there is too little to measure, `DivergedError` where the
    model's own numbers aren't finite.
    """
    receiver = _receiver(config, host)
    tokenizer = load_tokenizer(config.model.tokenizer, config.model.checkpoint)
    batches = draw(config, tokenizer, documents, sequences)
    if config.threads:
        torch.set_num_threads(config.threads)
    subject = make_subject(config, choose_device(config))
    first = _recorded(subject, batches, receiver, START)
    result = [_measured(config, batches, receiver, Lessons({START: first}, subject))]
    folder = newest_round(config)
    if folder is not None:
        load_round(subject, folder)
        name = f"round {int(folder.name.removeprefix('round-'))}"
        now = _recorded(subject, batches, receiver, name)
        result.append(_measured(config, batches, receiver, Lessons({START: first, name: now}, subject)))
    return result


def spread_layers(config: NodeConfig) -> dict[int, tuple[int, tuple[int, ...]]]:
    """By layer: the largest `localLayers.atEnd` that shares it, and the host of each expert.

    A layer that stays at home at the end is taken to be shared as the last one is that doesn't.
    """
    shared = [place for place in config.placement if place.hosts is not None]
    if not shared:
        raise ConfigError("placement: no layer's experts are shared: nothing leaves this machine")
    last = shared[-1]
    assert last.hosts is not None
    result = {}
    for behind, place in enumerate(reversed(config.placement)):
        if place.hosts is not None or place.layer > last.layer:
            result[place.layer] = (behind, place.hosts or last.hosts)
    return dict(sorted(result.items()))


def _receiver(config: NodeConfig, name: str | None) -> int:
    """The host asked for, else the peer that hosts most experts, by name where several do."""
    hosted = [0] * len(config.participants)
    for _, hosts in spread_layers(config).values():
        for at in hosts:
            hosted[at] += 1
    peers = {
        peer.name: index
        for index, peer in enumerate(config.participants)
        if index != config.index and hosted[index]
    }
    if not peers:
        raise ConfigError("placement: no other participant hosts experts: nothing leaves this machine")
    if name is None:
        return max(peers.values(), key=lambda index: (hosted[index], -index))
    if name not in peers:
        raise ConfigError(
            f"--host: {name!r} must be another participant that hosts experts: {', '.join(peers)}"
        )
    return peers[name]


def _recorded(subject: Subject, batches: list[Marked], host: int, weights: str) -> dict[int, Layer]:
    config = subject.config
    recorder = Recorder(
        model=subject.model,
        layers={
            layer: (subject.experts[layer], hosts) for layer, (_, hosts) in spread_layers(config).items()
        },
        host=host,
        wire=DTYPE[config.transport.wire_dtype],
        auxiliary=subject.auxiliary if config.training.auxiliary_loss_coefficient else None,
    )
    log.info("weights at %s: forward and backward", weights)
    recorded = recorder.record(batches)
    for layer, rows in recorded.items():
        values = (rows.every.hidden_RH, rows.every.gradients_RH)
        if not all(bool(torch.isfinite(each).all()) for each in values):
            # A probe taught with them would read nothing, and nothing read looks safe.
            raise DivergedError(
                f"weights at {weights}, layer {layer}: hidden states or gradients are not finite"
            )
    return recorded


def _measured(config: NodeConfig, batches: list[Marked], host: int, lessons: Lessons) -> Measurement:
    layers, received = spread_layers(config), lessons.received
    leaving = [place.layer for place in config.placement if place.hosts is not None]
    visible = torch.unique(torch.cat([received[layer].token_R for layer in leaving]))
    tokens = sum(int((marked.document_BS >= 0).sum()) for marked in batches)
    log.info("weights at %s: attacks", lessons.weights)
    return Measurement(
        weights=lessons.weights,
        host=config.participants[host].name,
        documents=1 + max(int(marked.document_BS.max()) for marked in batches),
        tokens=tokens,
        tokens_share=len(visible) / tokens,
        at_end=layers[leaving[-1]][0],
        readings=tuple(
            reading
            for layer, (behind, _) in layers.items()
            for reading in _readings(lessons, (layer, behind), tokens)
        ),
    )


def _readings(lessons: Lessons, place: tuple[int, int], tokens: int) -> list[Reading]:
    """Every attack on one layer: `place` is its number and how many of those with experts come after it."""
    layer, subject, received = place[0], lessons.subject, lessons.received[place[0]]

    if not len(received.supervised.next_R):
        raise DataError(
            f"layer {layer}: no row goes to this host; take more documents (--documents, --sequences)"
        )

    def reading(attack: str, signal: str, token: str, taught: str | None) -> Reading:
        rows_RH, truth_R, document_R = view(received, signal, token)
        if taught is None:
            guess_R = next_tokens_from_gradients(rows_RH, subject.head_VH, subject.norm_H)
        else:
            lesson = view(lessons.by_weights[taught][layer].every, signal, token)
            guess_R = probed(rows_RH, document_R, lesson)
        return Reading(
            layer=layer,
            sent_if_at_end=place[1],
            rows_share=len(received.current_R) / tokens,
            attack=attack,
            signal=signal,
            token=token,
            taught=taught,
            rows=len(truth_R),
            read=share(guess_R == truth_R, document_R),
            most_frequent=most_frequent(truth_R, document_R),
            unigram=unigram(truth_R, document_R),
        )

    every = list(lessons.by_weights)
    return [
        *(reading(PROBE, HIDDEN, CURRENT, taught) for taught in every),
        reading(PROBE, HIDDEN, NEXT, every[-1]),
        reading(CLOSED_FORM, GRADIENTS, NEXT, None),
        *(reading(PROBE, GRADIENTS, NEXT, taught) for taught in every),
    ]


def view(seen: Seen, signal: str, token: str) -> tuple[Tensor, Tensor, Tensor]:
    """(rows, tokens, documents) as an attack takes them."""
    if token == CURRENT:
        return seen.hidden_RH, seen.current_R, seen.document_R
    ahead = seen.supervised
    rows_RH = ahead.hidden_RH if signal == HIDDEN else directions(ahead.gradients_RH)
    return rows_RH, ahead.next_R, ahead.document_R


def probed(rows_RH: Tensor, document_R: Tensor, lesson: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """What a probe says of each row that has learnt from the other half of the documents.

    `lesson`: rows, their tokens and documents; both halves must have some.
    """
    guess_R = torch.empty(len(rows_RH), dtype=torch.int64)
    lesson_RH, tokens_R, taught_R = lesson
    for half in (0, 1):
        mine_R, learnt_R = document_R % 2 == half, taught_R % 2 != half
        guess_R[mine_R] = Probe.fit(lesson_RH[learnt_R], tokens_R[learnt_R]).guess(rows_RH[mine_R])
    return guess_R
