"""The host's desk: requests that wait, graphs that are kept for backward, and gradients that can wait.

Requests come from other owners (messages) and from this node's own micro-batches (tensors, no message). Every
request is answered before the weights' gradients, which nobody waits for, are added; but only so many may pile up.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pcmoe_node.bounds import within
from pcmoe_node.experts import Batch, Saved, Shard
from pcmoe_node.protocol.effects import Phase

Key = tuple[int, int, int]
"""(owner, micro-batch, layer) within the step that is being served."""


@dataclass(slots=True)
class _Kept:
    """What a forward left: its graph, or, beyond the budget, only its input."""

    saved: Saved | None
    batch: Batch | None
    bytes_kept: int


@dataclass(slots=True)
class Deferred:
    """Additions to the weights' gradients, in the order they may be made.

    In `ordered` mode each layer's additions happen in (micro-batch, owner) order whatever the network did, so the
    sums have the same bits in every run; otherwise in the order of arrival. Each holds on to what it is computed from.
    """

    ordered: bool
    limit: int
    """So many may wait for a moment when there is nothing else to do."""
    _arrived: deque[Callable[[], None]] = field(default_factory=deque)
    _waiting: dict[int, dict[tuple[int, int], Callable[[], None]]] = field(default_factory=dict)
    _next: dict[int, deque[tuple[int, int]]] = field(default_factory=dict)

    def begin(self, layers: Iterable[int], owners: Iterable[int], micro_batches: int) -> None:
        """Start a step: every layer will get one addition per micro-batch and owner."""
        turns = [(micro_batch, owner) for micro_batch in range(micro_batches) for owner in sorted(owners)]
        self._arrived.clear()  # a skipped step's are never added
        self._next = {layer: deque(turns) for layer in layers}
        self._waiting = {layer: {} for layer in layers}

    def put(self, key: Key, addition: Callable[[], None]) -> None:
        """Record one message's addition."""
        owner, micro_batch, layer = key
        if not self.ordered:
            self._arrived.append(addition)
            return
        waiting, turns = self._waiting[layer], self._next[layer]
        waiting[(micro_batch, owner)] = addition
        while turns and turns[0] in waiting:
            self._arrived.append(waiting.pop(turns.popleft()))

    @property
    def crowded(self) -> bool:
        """Whether more wait than may: putting them off any longer only costs memory."""
        return len(self._arrived) > self.limit

    def play_one(self) -> bool:
        """Make one addition; False where there is none."""
        if not self._arrived:
            return False
        self._arrived.popleft()()
        return True

    def play_all(self) -> None:
        """Make every addition that may be made."""
        while self.play_one():
            pass


class Host:
    """Serves this node's shards, one request at a time, within a budget for kept activations."""

    def __init__(
        self,
        shards: dict[int, Shard],
        *,
        activation_bytes: int,
        ordered: bool,
        backlog: int,
        max_abs: float = math.inf,
    ) -> None:
        """`backlog`: additions to the weights' gradients that may be put off at a time."""
        self.shards = shards
        self.deferred = Deferred(ordered, backlog)
        self._budget = activation_bytes
        self._kept: dict[Key, _Kept] = {}
        self._bytes_kept = 0
        self._max_abs = max_abs
        self._overflowed: set[Key] = set()

    @property
    def overflowed(self) -> bool:
        """Whether an answer of this step was not finite or beyond bounds: the step must not be applied."""
        return bool(self._overflowed)

    def begin_step(self, owners: Iterable[int], micro_batches: int) -> None:
        """Forget what is left of the step before: an owner that was not ok may end it without every BACKWARD."""
        self._kept.clear()
        self._bytes_kept = 0
        self._overflowed.clear()
        self.deferred.begin(self.shards, owners, micro_batches)

    def forward(self, phase: Phase, key: Key, batch: Batch) -> tuple[Tensor, bool]:
        """(y [R, H], whether `batch`'s memory is still needed until backward)."""
        shard = self.shards[key[2]]
        if phase is Phase.EVALUATE:
            y_RH = shard.forward(batch, keep=False)[0]
            return y_RH if within(y_RH, self._max_abs) else torch.zeros_like(y_RH), False
        size = shard.activation_bytes(batch)
        fits = self._bytes_kept + size <= self._budget
        y_RH, saved = shard.forward(batch, keep=fits)
        self._kept[key] = _Kept(saved, None if fits else batch, size if fits else 0)
        self._bytes_kept += size if fits else 0
        return self._bounded(key, y_RH), not fits

    def backward(self, key: Key, dy_RH: Tensor) -> tuple[Tensor, Tensor]:
        """(dx [R, H], dweights [S]); the weights' gradients are put off."""
        shard = self.shards[key[2]]
        kept = self._kept.pop(key)
        self._bytes_kept -= kept.bytes_kept
        saved = kept.saved
        if saved is None:
            assert kept.batch is not None
            _, saved = shard.forward(kept.batch, keep=True)
            assert saved is not None
        dx_RH, dweights_S, addition = shard.backward(saved, dy_RH)
        self.deferred.put(key, addition)
        if key in self._overflowed:
            # The outputs went out as zeros, and the owner checks that gradients fit them.
            return torch.zeros_like(dx_RH), torch.zeros_like(dweights_S)
        return self._bounded(key, dx_RH), dweights_S

    def _bounded(self, key: Key, rows_RH: Tensor) -> Tensor:
        """The rows, or zeros where they may not be sent: an overflow here is no fault of the owner's request."""
        if within(rows_RH, self._max_abs):
            return rows_RH
        self._overflowed.add(key)
        return torch.zeros_like(rows_RH)
