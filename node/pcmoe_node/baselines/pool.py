"""Everybody's data as one corpus: each step of the union reads what the consortium's owners read in that step."""

from collections.abc import Callable, Sequence

from pcmoe_node.data import Corpus
from pcmoe_node.packing import Batch


class Pool(Corpus):
    """Several corpora behind one. Micro-batches go round in participant order, so that sums have the same order."""

    def __init__(
        self, corpora: Sequence[Corpus], owners: Callable[[int], Sequence[int]], micro_batches: int
    ) -> None:
        """`owners`: whose data a step reads, as many in each; `micro_batches`: of each of them per step."""
        self._corpora = tuple(corpora)
        self._owners = owners
        self._micro_batches = micro_batches
        self.fingerprint = ""

    def training_batch(self, sequence_index: int, count: int) -> Batch:
        """The micro-batch of `count` sequences that begins at `sequence_index`, a multiple of `count`."""
        together = len(self._owners(0))
        step, place = divmod(sequence_index // count, together * self._micro_batches)
        number, which = divmod(place, together)
        turn = step // (len(self._corpora) // together)
        own = self._corpora[self._owners(step)[which]]
        return own.training_batch((turn * self._micro_batches + number) * count, count)
