"""Time and the network: a queue of events, and messages that are delayed, reordered and doubled at random."""

import heapq
import random
from collections.abc import Callable
from typing import NamedTuple

from pcmoe_node.protocol.effects import Request

ENOUGH_BEATS = 50
"""So many bring several of each member."""


class Message(NamedTuple):
    """What travels between nodes: a request, its reply, or one of STEP_END, VOTE and DONE with its content."""

    sender: int
    kind: str
    request: Request | None = None
    content: tuple[float, ...] = ()


class Network:
    """Runs events in the order of their time. All that is random is drawn here, so a seed repeats."""

    def __init__(self, seed: int, copies: float, spread: float) -> None:
        """`copies`: probability of a second copy of a message; `spread`: 0 … 1, how far delays differ."""
        self.luck = random.Random(f"run {seed}")
        self.beat_luck = random.Random(f"beats {seed}")
        """Its own, so that how often nodes beat changes nothing else of a run."""
        self.now = 0.0
        self._copies = copies
        self._spread = spread
        self._events: list[tuple[float, int, bool, Callable[..., None], tuple[object, ...]]] = []
        self._count = 0
        self._to_come = 0
        """Events that are no beats."""
        self._beats_alone = 0
        """Beats since there was any other event to come."""

    def after(self, delay: float, action: Callable[..., None], *arguments: object) -> None:
        """Call `action(*arguments)` once `delay` has passed."""
        self._to_come += 1
        self._push(delay, False, action, arguments)

    def after_beat(self, delay: float, action: Callable[..., None], *arguments: object) -> None:
        """The same for what goes on for ever: a run in which nothing else happens any more is at its end."""
        self._push(delay, True, action, arguments)

    def _push(
        self, delay: float, beat: bool, action: Callable[..., None], arguments: tuple[object, ...]
    ) -> None:
        self._count += 1
        heapq.heappush(self._events, (self.now + delay, self._count, beat, action, arguments))

    def send(self, deliver: Callable[..., None], *arguments: object) -> float:
        """A message on its way; one in fifty takes very long. When the last copy of it arrives."""
        delay = self._delay()
        self.after(delay, deliver, *arguments)
        if self._copies and self.luck.random() < self._copies:
            second = self._delay() * 2
            self.after(second, deliver, *arguments)
            delay = max(delay, second)
        return self.now + delay

    def step(self) -> bool:
        """Run the next event. False: there is none, or beats alone, and enough of them to be heard."""
        self._beats_alone = 0 if self._to_come else self._beats_alone + 1
        if not self._events or self._beats_alone > ENOUGH_BEATS:
            return False
        self.now, _, beat, action, arguments = heapq.heappop(self._events)
        self._to_come -= not beat
        action(*arguments)
        return True

    def _delay(self) -> float:
        # Heavy tail: from 1/1.02 to 50 with spread 1, so that control overtakes data and steps overlap.
        return 1.0 + self._spread * (1.0 / (0.02 + self.luck.random()) - 1.0)


class Wire:
    """The network as a node within one view has it: with the view, all that was to happen ends."""

    def __init__(self, network: Network, carry: Callable[[int, Message], None]) -> None:
        """`carry(to, message)` puts a message on the connection to a peer."""
        self.luck = network.luck
        self.send = carry
        self.cut = False
        self._network = network

    @property
    def now(self) -> float:
        """The time."""
        return self._network.now

    def after(self, delay: float, action: Callable[..., None], *arguments: object) -> None:
        """Call `action(*arguments)` once `delay` has passed, if the view still stands."""
        self._network.after(delay, self._run, action, arguments)

    def later(self, action: Callable[..., None], *arguments: object) -> None:
        """Call `action(*arguments)` after a while: work that takes its time."""
        self.after(self.luck.random(), action, *arguments)

    def _run(self, action: Callable[..., None], arguments: tuple[object, ...]) -> None:
        if not self.cut:
            action(*arguments)
