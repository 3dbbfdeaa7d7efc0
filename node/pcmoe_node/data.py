"""A participant's corpus: what is trained on in which order, and what is held out.

All choices derive by HMAC from the participant's private secret, never from the public seed, so that nobody
else can tell which document a hidden state comes from. The token ids live in memory; nothing is written.

Training reads an endless stream: epoch after epoch, each with its own order of the documents. A batch is a
pure function of (secret, sequence index): a resumed run needs its counter and nothing else.
"""

import hashlib
import hmac
import logging
from collections.abc import Sequence

from pcmoe_node.config import DatasetConfig
from pcmoe_node.errors import DataError
from pcmoe_node.packing import Batch, Documents, Stream, empty_batch
from pcmoe_node.records import Record, read_records
from pcmoe_node.tokenizer import Tokenizer

log = logging.getLogger(__name__)

HELD_OUT = b"pcmoe held-out documents"
EPOCH_ORDER = b"pcmoe order of an epoch"
FINGERPRINT = b"pcmoe fingerprint of a corpus"
CACHED_EPOCHS = 2
"""A batch may reach from the end of one epoch into the next."""


def open_corpus(config: DatasetConfig, tokenizer: Tokenizer, secret: bytes, sequence_length: int) -> "Corpus":
    """Read and tokenise every record. Raises `DataError`, which never quotes a record."""
    documents = Documents(tokenizer.vocabulary_size, tokenizer.end_of_document)
    hashes: list[bytes] = []
    for record in read_records(config):
        documents.append(_encoded(record, tokenizer))
        hashes.append(hashlib.sha256(record.text.encode("utf-8")).digest())
    if not hashes:
        raise DataError(f"{config.path}: holds no text")
    held_out = _held_out(hashes, config, secret)
    corpus = Corpus(
        documents=documents,
        held_out=held_out,
        filler=tokenizer.end_of_document,
        secret=secret,
        sequence_length=sequence_length,
        fingerprint=_keyed(secret, FINGERPRINT, *hashes).hex(),
    )
    log.info(
        "corpus: %d documents for training with %d tokens, %d held out with %d tokens",
        corpus.training_documents,
        corpus.training_tokens,
        corpus.held_out_documents,
        corpus.held_out_tokens,
    )
    return corpus


class Corpus:
    """Documents of one participant as packed sequences."""

    def __init__(
        self,
        *,
        documents: Documents,
        held_out: Sequence[int],
        filler: int,
        secret: bytes,
        sequence_length: int,
        fingerprint: str,
    ) -> None:
        """`held_out`: documents never trained on, in the order of evaluation. `filler` pads evaluation."""
        kept_back = set(held_out)
        self._documents = documents
        self._training = [d for d in range(len(documents)) if d not in kept_back]
        self._held_out = Stream(documents, held_out)
        self._filler = filler
        self._secret = secret
        self._sequence_length = sequence_length
        self._epochs: dict[int, Stream] = {}
        self.training_documents = len(self._training)
        self.held_out_documents = len(held_out)
        self.training_tokens = sum(documents.length(d) for d in self._training)
        """Tokens of one epoch, ends of documents included."""
        self.held_out_tokens = len(self._held_out)
        self.fingerprint = fingerprint
        """Keyed by the secret: tells the owner, and nobody else, whether two runs read the same documents."""

    def training_batch(self, sequence_index: int, count: int) -> Batch:
        """Sequences `sequence_index` … `sequence_index + count - 1` of the endless stream (from 0)."""
        batch = empty_batch(count, self._sequence_length, self._filler)
        for row in range(count):
            position = (sequence_index + row) * self._sequence_length
            column = 0
            while column < self._sequence_length:
                epoch, start = divmod(position + column, self.training_tokens)
                column += self._epoch(epoch).write(batch, row, column, start)
        return batch

    def held_out_batches(self, sequences: int, per_batch: int) -> list[Batch]:
        """Exactly `sequences` held-out sequences, `per_batch` at a time (the last batch may have fewer).

        Held-out text beyond that is left out; where there is less, what remains predicts nothing. Nothing
        is repeated, so that every held-out token counts once.
        """
        batches = []
        for first in range(0, sequences, per_batch):
            batch = empty_batch(min(per_batch, sequences - first), self._sequence_length, self._filler)
            for row in range(batch.ids_BS.shape[0]):
                written = self._held_out.write(batch, row, 0, (first + row) * self._sequence_length)
                # What is left is a segment of its own.
                batch.positions_BS[row, written:] -= written
            batches.append(batch)
        return batches

    def _epoch(self, epoch: int) -> Stream:
        stream = self._epochs.get(epoch)
        if stream is None:
            order = sorted(
                self._training,
                key=lambda d: _keyed(
                    self._secret, EPOCH_ORDER, epoch.to_bytes(8, "big"), d.to_bytes(8, "big")
                ),
            )
            stream = Stream(self._documents, order)
            self._epochs[epoch] = stream
            while len(self._epochs) > CACHED_EPOCHS:
                del self._epochs[next(iter(self._epochs))]
        return stream


def _encoded(record: Record, tokenizer: Tokenizer) -> list[int]:
    try:
        ids = tokenizer.encode(record.text)
        fault = "" if not ids or (min(ids) >= 0 and max(ids) < tokenizer.vocabulary_size) else "unknown ids"
    except Exception as error:  # whatever it is, its text may quote the record
        fault = type(error).__name__
    if fault:
        raise DataError(f"{record.path}: record {record.number}: the tokenizer failed ({fault})")
    return ids


def _held_out(hashes: list[bytes], config: DatasetConfig, secret: bytes) -> list[int]:
    """Documents to hold out, by their keyed hash: adding records later moves few of the others."""
    if config.held_out_percent == 0:
        return []
    if len(hashes) < 2:
        raise DataError(
            f"{config.path}: holds 1 document, but holding out {config.held_out_percent} % needs at least 2 "
            "(dataset.heldOutPercent)"
        )
    wanted = max(1, round(len(hashes) * config.held_out_percent / 100))
    return sorted(range(len(hashes)), key=lambda d: (_keyed(secret, HELD_OUT, hashes[d]), d))[:wanted]


def _keyed(secret: bytes, purpose: bytes, *parts: bytes) -> bytes:
    message = hashlib.sha256(purpose)
    for part in parts:
        message.update(part)
    return hmac.digest(secret, message.digest(), "sha256")
