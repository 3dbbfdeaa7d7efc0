"""Some of the own documents, drawn at random, as micro-batches that remember which document a token is from.

    B sequences   S tokens per sequence

Held-out documents are drawn as the others are: a run sends rows of either. Every sequence is a part of one document, so
that no document can stand behind another's rows. Nothing is written, and no draw here is a secret: nothing leaves.
"""

import random
from dataclasses import dataclass

import torch
from torch import Tensor

from pcmoe_node.config import NodeConfig
from pcmoe_node.errors import DataError
from pcmoe_node.packing import Batch, empty_batch
from pcmoe_node.records import Record, read_records
from pcmoe_node.tokenizer import Tokenizer

SEED = 0
FEWEST_DOCUMENTS = 4
"""Half of them teach the probes, the other half is what they are measured on."""


@dataclass(frozen=True, slots=True)
class Marked:
    """A micro-batch, and whose tokens it holds."""

    batch: Batch
    document_BS: Tensor
    """Number of each token's document among those drawn, int64; −1 behind a document's end."""


def draw(config: NodeConfig, tokenizer: Tokenizer, documents: int, sequences: int) -> list[Marked]:
    """At most `documents` documents, `sequences` sequences over all, or one of each document if that is more.

    Raises `DataError` where there are fewer than 4 documents.
    """
    drawn = _documents(config, documents)
    if len(drawn) < FEWEST_DOCUMENTS:
        raise DataError(
            f"{config.dataset.path}: holds {len(drawn)} documents, at least {FEWEST_DOCUMENTS} are needed: half of "
            "them teach the attacks, which are measured on the others"
        )
    length, each = config.training.sequence_length, max(1, sequences // len(drawn))
    parts = [
        (number, part)
        for number, record in enumerate(drawn)
        for part in _parts([*_encoded(record, tokenizer), tokenizer.end_of_document], length, each)
    ]
    count = config.training.sequences_per_micro_batch
    return [
        _marked(parts[first : first + count], length, tokenizer.end_of_document)
        for first in range(0, len(parts), count)
    ]


def _documents(config: NodeConfig, wanted: int) -> list[Record]:
    """Each document is as likely to be among them, however many there are; only these are kept in memory."""
    chance, drawn = random.Random(SEED), list[Record]()
    for number, record in enumerate(read_records(config.dataset)):
        if number < wanted:
            drawn.append(record)
        elif (place := chance.randint(0, number)) < wanted:
            drawn[place] = record
    chance.shuffle(drawn)
    return drawn


def _encoded(record: Record, tokenizer: Tokenizer) -> list[int]:
    try:
        return tokenizer.encode(record.text)
    except Exception as error:  # whatever it is, its text may quote the record
        fault = type(error).__name__
    raise DataError(f"{record.path}: record {record.number}: the tokenizer failed ({fault})")


def _parts(ids: list[int], length: int, wanted: int) -> list[list[int]]:
    """Sequences from all over the document, each with the token after it, which its last one predicts."""
    there = -(-len(ids) // length)
    taken = min(wanted, there)
    starts = [number * there // taken * length for number in range(taken)]
    return [ids[start : start + length + 1] for start in starts]


def _marked(parts: list[tuple[int, list[int]]], length: int, filler: int) -> Marked:
    batch = empty_batch(len(parts), length, filler)
    document_BS = torch.full((len(parts), length), -1, dtype=torch.int64)
    for row, (number, ids) in enumerate(parts):
        here = torch.tensor(ids)
        tokens = min(len(ids), length)
        batch.ids_BS[row, :tokens] = here[:tokens]
        batch.labels_BS[row, : len(ids) - 1] = here[1:]
        document_BS[row, :tokens] = number
    return Marked(batch, document_BS)
