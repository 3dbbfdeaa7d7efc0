"""What a host may try on the rows it was sent. Pure: tensors in, token ids out.

    R rows   H hidden size   V vocabulary

**Closed form.** With `n = w * out / rms(out)` the final norm and `A = head * w` the head's rows times its weight, the
gradient of the cross-entropy at the last layer's experts' output is

    g = (I - u uᵀ / H) Aᵀ (p - onehot(next)) / rms(out),   u = out / rms(out)

`p - onehot(next)` is negative at the next token and nowhere else: g is a mix of A's rows, less one of them. A host has
A from the public checkpoint and g up to a positive factor; p and u it hasn't. It solves g = Aᵀ r for r, with A's rows
at length 1 and a ridge, since V may be far more than H; the most negative element is its guess. At layers below the
last it takes the gradient as if nothing lay between: most of it comes down the residual stream.

**Linear probe.** Fisher's discriminant: one Gaussian per token around its mean, with one covariance for all. In closed
form, so that the same rows always give the same probe.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

HEAD_RIDGE = 0.5
PROBE_RIDGE = 1e-3
"""What is added to the diagonal of a matrix before it is inverted, in units of its mean diagonal.

On the pilot 0.3 to 3 do equally well for the head, and with 0.001 layers below the last give away less."""
ROWS_AT_ONCE = 4096
"""Rows whose scores for every token of the vocabulary are in memory at a time."""


def next_tokens_from_gradients(gradients_RH: Tensor, head_VH: Tensor, norm_H: Tensor | None = None) -> Tensor:
    """The next token [R] that each gradient row gives away; rows may be scaled by anything positive.

    `head_VH` and `norm_H` (the final norm's weight; None: ones) are what the host knows.
    """
    rows_VH = directions(head_VH.double() if norm_H is None else head_VH.double() * norm_H.double())
    scores_HV = -_solve(rows_VH.T @ rows_VH, rows_VH.T, HEAD_RIDGE)
    return _best(gradients_RH, scores_HV.float(), torch.zeros(len(head_VH)))


@dataclass(frozen=True, slots=True)
class Probe:
    """A linear map from rows to tokens."""

    tokens_C: Tensor
    """The tokens it has seen, and can name."""
    scores_HC: Tensor
    bias_C: Tensor

    @classmethod
    def fit(cls, rows_RH: Tensor, tokens_R: Tensor) -> "Probe":
        """Learn from rows whose tokens are known; at least one."""
        rows_RH = rows_RH.double()
        tokens_C, class_R, count_C = torch.unique(tokens_R, return_inverse=True, return_counts=True)
        mean_CH = torch.zeros(len(tokens_C), rows_RH.shape[1], dtype=torch.float64)
        mean_CH.index_add_(0, class_R, rows_RH)
        mean_CH /= count_C.unsqueeze(1)
        within_RH = rows_RH - mean_CH[class_R]
        scores_HC = _solve(within_RH.T @ within_RH / len(rows_RH), mean_CH.T, PROBE_RIDGE)
        share_C = count_C / len(rows_RH)
        bias_C = share_C.log() - (mean_CH.T * scores_HC).sum(0) / 2
        return cls(tokens_C, scores_HC.float(), bias_C.float())

    def guess(self, rows_RH: Tensor) -> Tensor:
        """The likeliest token [R] of each row."""
        return self.tokens_C[_best(rows_RH, self.scores_HC, self.bias_C)]


def directions(rows_RH: Tensor) -> Tensor:
    """The rows at length 1. A gradient's length tells how unsure the model was, not which token came."""
    length_R1: Tensor = torch.linalg.vector_norm(rows_RH, dim=1, keepdim=True)
    return rows_RH / length_R1.clamp_min(1e-30)


def _solve(matrix_HH: Tensor, right_HN: Tensor, ridge: float) -> Tensor:
    """(matrix + ridge)⁻¹ right; a matrix of zeros counts as the identity."""
    size = float(matrix_HH.diagonal().mean())
    added = ridge * size if size > 0 else 1.0
    raised_HH = matrix_HH + added * torch.eye(len(matrix_HH), dtype=matrix_HH.dtype)
    solved_HN: Tensor = torch.linalg.solve(raised_HH, right_HN)
    return solved_HN


def _best(rows_RH: Tensor, scores_HN: Tensor, bias_N: Tensor) -> Tensor:
    """Column with the highest score of each row."""
    starts = range(0, max(1, len(rows_RH)), ROWS_AT_ONCE)
    parts = [rows_RH[start : start + ROWS_AT_ONCE].float() for start in starts]
    return torch.cat([(part @ scores_HN + bias_N).argmax(1) for part in parts])
