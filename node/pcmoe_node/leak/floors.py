"""How far a figure may be trusted: intervals over documents, and what guessing alone reaches. Pure.

    R rows   D documents

Rows of one document are alike, so documents are drawn again, not rows: 1,000 times, by a fixed seed. The floors guess
in hindsight, from the very rows that are measured: whoever guesses beforehand does no better.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

RESAMPLES = 1000
SEED = 0
INTERVAL = (0.025, 0.975)


@dataclass(frozen=True, slots=True)
class Share:
    """A share of rows, 0 to 1, and its 95 % interval."""

    value: float
    low: float
    high: float


def share(hits_R: Tensor, document_R: Tensor) -> Share:
    """Of hits (0 or 1, or the chance of one) among rows; at least one row."""
    _, at_R, rows_D = torch.unique(document_R, return_inverse=True, return_counts=True)
    documents = len(rows_D)
    hits_D = torch.zeros(documents, dtype=torch.float64).index_add_(0, at_R, hits_R.double())
    generator = torch.Generator().manual_seed(SEED)
    drawn = torch.randint(documents, (RESAMPLES, documents), generator=generator)
    shares = hits_D[drawn].sum(1) / rows_D[drawn].sum(1)
    low, high = torch.quantile(shares, torch.tensor(INTERVAL, dtype=torch.float64)).tolist()
    return Share(float(hits_D.sum() / rows_D.sum()), low, high)


def most_frequent(tokens_R: Tensor, document_R: Tensor) -> Share:
    """Always guessing the commonest of these tokens."""
    values, counts = torch.unique(tokens_R, return_counts=True)
    return share(tokens_R == values[counts.argmax()], document_R)


def unigram(tokens_R: Tensor, document_R: Tensor) -> Share:
    """Guessing each token as often as it comes."""
    _, at_R, counts = torch.unique(tokens_R, return_inverse=True, return_counts=True)
    return share(counts[at_R] / len(tokens_R), document_R)
