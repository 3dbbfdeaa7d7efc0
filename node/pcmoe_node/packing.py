"""Documents into sequences of one length.

A *stream* is documents one after the other, each ended by the end-of-document id; sequence k of it is its
tokens [k·S, (k+1)·S). The part of one document within one sequence is a *segment*: position ids restart at
0 in each, and from that transformers builds a mask in which no segment sees another.

Shapes: B sequences, S tokens per sequence; all ids are int64.
"""

from array import array
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

NO_LABEL = -100
"""Label of a position that predicts nothing; torch's cross-entropy leaves it out."""
NO_DOCUMENT = -1


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Packed sequences, ready for a model."""

    ids_BS: Tensor
    """Token ids, int64."""
    labels_BS: Tensor
    """Already shifted: the id to be predicted *at* each position, or `NO_LABEL`."""
    positions_BS: Tensor
    """Position ids, from 0 in each segment."""
    documents_BS: Tensor
    """Number of the document that each token is of, `NO_DOCUMENT` where there is only filler. For the own ledger."""

    @property
    def tokens(self) -> int:
        """Supervised positions."""
        return int((self.labels_BS != NO_LABEL).sum())


class Documents:
    """Token ids of many documents in one compact buffer, each ended by the end-of-document id."""

    def __init__(self, vocabulary_size: int, end_of_document: int) -> None:
        """Empty; ids take two bytes each where the vocabulary allows, else four."""
        self._small = vocabulary_size <= 2**16
        self._ids = array("H" if self._small else "i")
        self._ends = array("q", [0])
        self._end_of_document = end_of_document

    def __len__(self) -> int:
        """Number of documents."""
        return len(self._ends) - 1

    def append(self, ids: Sequence[int]) -> None:
        """Add one document, without its end."""
        self._ids.extend(ids)
        self._ids.append(self._end_of_document)
        self._ends.append(len(self._ids))

    def length(self, document: int) -> int:
        """Tokens of a document, its end included."""
        return self._ends[document + 1] - self._ends[document]

    def slice(self, document: int, start: int, stop: int) -> Tensor:
        """Ids [start, stop) of a document, int64."""
        base = self._ends[document]
        return torch.tensor(self._ids[base + start : base + stop], dtype=torch.int64)


class Stream:
    """Documents in one order; reads any sequence of it without reading those before."""

    def __init__(self, documents: Documents, order: Sequence[int]) -> None:
        """`order` holds indices into `documents`."""
        self._documents = documents
        self._order = order
        self._starts = array("q", accumulate((documents.length(d) for d in order), initial=0))

    def __len__(self) -> int:
        """Tokens, ends of documents included."""
        return self._starts[-1]

    def write(self, batch: Batch, row: int, column: int, start: int) -> int:
        """Fill `batch` at `row` from `column` on with the tokens from `start` on; returns how many.

        Stops at the end of the row or of the stream, whichever comes first.
        """
        written = 0
        room = batch.ids_BS.shape[1] - column
        place = bisect_right(self._starts, start) - 1
        while written < room and place < len(self._order):
            document = self._order[place]
            first = start + written - self._starts[place]
            length = self._documents.length(document)
            count = min(length - first, room - written)
            # One more than fits: the token after the last is what the last one predicts.
            ids = self._documents.slice(document, first, min(first + count + 1, length))
            columns = slice(column + written, column + written + count)
            batch.ids_BS[row, columns] = ids[:count]
            batch.labels_BS[row, columns.start : columns.start + len(ids) - 1] = ids[1:]
            batch.positions_BS[row, columns] = torch.arange(count)
            batch.documents_BS[row, columns] = document
            written += count
            place += 1
        return written


def empty_batch(sequences: int, sequence_length: int, filler: int) -> Batch:
    """Sequences of `filler` that predict nothing, each one segment."""
    shape = (sequences, sequence_length)
    return Batch(
        ids_BS=torch.full(shape, filler, dtype=torch.int64),
        labels_BS=torch.full(shape, NO_LABEL, dtype=torch.int64),
        positions_BS=torch.arange(sequence_length).repeat(sequences, 1),
        documents_BS=torch.full(shape, NO_DOCUMENT, dtype=torch.int64),
    )
