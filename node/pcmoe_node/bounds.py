"""The one test of values that are sent or received: finite, and within a bound."""

import torch
from torch import Tensor


def within(values: Tensor, limit: float) -> bool:
    """Whether every value is in ±limit; false for NaN. One pass; true where there are no values."""
    if not values.numel():
        return True
    low, high = torch.aminmax(values)
    return bool((low >= -limit) & (high <= limit))
