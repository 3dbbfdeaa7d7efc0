"""What a node counts over all its views, and when it shows it: at the end of a step, or only at the end of a round.

What follows from how many rows went to whom (bytes, messages, replies, the remote share) would tell, step by step,
which experts the data asks for; so it is shown once a round, like the line of the journal that holds it.
"""

import statistics
from collections import deque
from dataclasses import asdict, dataclass, field

from pcmoe_node.conductor import Conductor
from pcmoe_node.exchange.base import Traffic
from pcmoe_node.figures import SPENT_ON, Figures, Replies
from pcmoe_node.moe import Share
from pcmoe_node.step import Participant, Tally

ROUNDS_REMEMBERED = 5
"""How many of the last rounds say how long one usually takes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Settled:
    """What a round has come to, for the journal."""

    seconds: float
    """All of it: the phases leave nothing out."""
    seconds_by_phase: dict[str, float]
    traffic: dict[str, dict[str, float]]
    """With each peer, and its answers, in the names of the journal."""
    remote_share: float | None


@dataclass(kw_only=True)
class Accounts:
    """Of one process; `figures` is what others see."""

    figures: Figures
    names: tuple[str, ...]
    _spent: dict[str, float] = field(default_factory=dict)
    """By phase, since the last round was settled or the view began."""
    _before: dict[int, Traffic] = field(default_factory=dict)
    """With each peer in this view, up to the last settled round."""
    _replies_before: dict[int, Replies] = field(default_factory=dict)
    _traffic_earlier: dict[int, Traffic] = field(default_factory=dict)
    """With each peer in views before this one."""
    _replies_earlier: dict[int, Replies] = field(default_factory=dict)
    _reconnections_earlier: int = 0
    _tokens_counted: int = 0
    """Of the round's tally."""
    _lengths: deque[float] = field(default_factory=lambda: deque(maxlen=ROUNDS_REMEMBERED))

    def begin(self, node: Participant) -> None:
        """A view begins: nothing was spent or exchanged in it."""
        node.conductor.clock.take()
        node.owner.share = Share()
        self._spent, self._before, self._replies_before, self._tokens_counted = {}, {}, {}, 0

    def step(self, conductor: Conductor, tally: Tally) -> None:
        """A step, or an evaluation, is over: show what may be shown so often."""
        figures = self.figures
        self._take_seconds(conductor)
        figures.tokens_trained += tally.tokens - self._tokens_counted
        self._tokens_counted = tally.tokens
        figures.reconnections = self._reconnections_earlier + conductor.transport.reconnected

    def settle(self, node: Participant, *, counts: bool) -> Settled:
        """A round is over: show all the rest. `counts`: it was one of training."""
        conductor, figures = node.conductor, self.figures
        self.step(conductor, node.tally)
        traffic, seconds = conductor.transport.traffic(), sum(self._spent.values())
        figures.traffic = {
            self.names[peer]: self._traffic_earlier.get(peer, Traffic()) + counters
            for peer, counters in traffic.items()
        }
        replies = {peer: conductor.replies.get(peer, Replies()) for peer in traffic}
        figures.replies = {
            self.names[peer]: self._replies_earlier.get(peer, Replies()) + own
            for peer, own in replies.items()
        }
        figures.remote_share = node.owner.share.ratio
        if counts:
            self._lengths.append(seconds)
            figures.usual_round_seconds = statistics.median(self._lengths)
        settled = Settled(
            seconds=seconds,
            seconds_by_phase={phase: self._spent[phase] for phase in SPENT_ON if phase in self._spent},
            traffic={
                self.names[peer]: self._moved(peer, counters) | self._answered(peer, replies[peer])
                for peer, counters in traffic.items()
            },
            remote_share=figures.remote_share,
        )
        self._spent, self._before, self._replies_before, self._tokens_counted = {}, traffic, replies, 0
        node.owner.share = Share()
        return settled

    def leave(self, conductor: Conductor) -> None:
        """A view is over: its counters go on in the next one's, and are shown when a round is over there."""
        self._take_seconds(conductor)
        self._reconnections_earlier += conductor.transport.reconnected
        for peer, counters in conductor.transport.traffic().items():
            self._traffic_earlier[peer] = self._traffic_earlier.get(peer, Traffic()) + counters
        for peer, replies in conductor.replies.items():
            self._replies_earlier[peer] = self._replies_earlier.get(peer, Replies()) + replies

    def _take_seconds(self, conductor: Conductor) -> None:
        total = dict(self.figures.seconds)
        for phase, seconds in conductor.clock.take().items():
            self._spent[phase] = self._spent.get(phase, 0.0) + seconds
            total[phase] = total.get(phase, 0.0) + seconds
        self.figures.seconds = total

    def _moved(self, peer: int, counters: Traffic) -> dict[str, float]:
        """Since the last round was settled."""
        before = asdict(self._before.get(peer, Traffic()))
        return {_camel(name): value - before[name] for name, value in asdict(counters).items()}

    def _answered(self, peer: int, replies: Replies) -> dict[str, float]:
        """The same of its answers."""
        before = self._replies_before.get(peer, Replies())
        return {"replies": replies.count - before.count, "replySeconds": replies.seconds - before.seconds}


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() for word in rest)
