"""What a lane waits for: answers of hosts, and of this node's own shard."""

from dataclasses import dataclass, field

from torch import Tensor

from pcmoe_node.exchange.base import Header, Message
from pcmoe_node.experts import Batch
from pcmoe_node.protocol.effects import Phase


@dataclass(slots=True)
class Ticket:
    """Answers that a lane waits for: from each host asked, rows and (in backward) the weights' gradients."""

    asked: dict[int, Header]
    rows: dict[int, Tensor] = field(default_factory=dict)
    dweights: dict[int, Tensor] = field(default_factory=dict)
    messages: list[Message] = field(default_factory=list)

    @property
    def ready(self) -> bool:
        """Whether every host asked has answered."""
        return not self.asked

    def release(self) -> None:
        """Give the answers' memory back; the tensors must not be used any more."""
        for message in self.messages:
            if message.payload is not None:
                message.payload.release()
        self.messages.clear()
        self.rows.clear()
        self.dweights.clear()


@dataclass(frozen=True, slots=True)
class OwnShare:
    """Work for this node's own shard, asked by one of its own micro-batches."""

    ticket: Ticket
    phase: Phase
    micro_batch: int
    layer: int
    batch: Batch | None
    dy_RH: Tensor | None
