"""Memory for payloads: blocks that are used again, so a message in the steady state allocates nothing."""

from collections import deque

from pcmoe_node.exchange.base import Buffer

_SMALLEST = 4096
_STEPS_PER_DOUBLING = 8


def _size_class(size: int) -> int:
    """`size` raised to the next eighth of a power of two: few classes, at most an eighth wasted."""
    if size <= _SMALLEST:
        return _SMALLEST
    step = 1 << max(0, (size - 1).bit_length() - _STEPS_PER_DOUBLING.bit_length())
    return -(-size // step) * step


class BufferPool:
    """Blocks by size class. Any thread may allocate and release; nothing ever blocks.

    A block is zero when it is new, and holds what its last user left when it is used again.
    """

    def __init__(self) -> None:
        self._free: dict[int, deque[bytearray]] = {}
        self._created_bytes = 0
        self._created_blocks = 0

    def allocate(self, size: int) -> Buffer:
        """A buffer whose view has at least `size` bytes."""
        if size < 0:
            raise ValueError(f"size is {size}: must not be negative")
        key = _size_class(size)
        # dict.setdefault, deque.pop and deque.append are atomic, so there is no lock to wait for.
        free = self._free.get(key)
        if free is None:
            free = self._free.setdefault(key, deque())
        try:
            memory = free.pop()
        except IndexError:
            memory = bytearray(key)
            self._created_bytes += key
            self._created_blocks += 1
        return Buffer(memory, free.append)

    @property
    def created_blocks(self) -> int:
        """Blocks made so far; constant in the steady state."""
        return self._created_blocks

    @property
    def created_bytes(self) -> int:
        """Bytes of all blocks made so far; the pool keeps them."""
        return self._created_bytes
