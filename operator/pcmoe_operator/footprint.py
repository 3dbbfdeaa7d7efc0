"""Memory and disk of one participant, in whole bytes by kind.

Bytes per parameter: float32 has 4 of weights, 4 of gradients, 8 of AdamW's moments. bfloat16 has 2 of weights
for compute, 4 of float32 master weights, 4 of float32 gradients and 8 of moments. The rest is an estimate,
good to plan with: what autograd keeps depends on the model's code, and libraries take memory of their own.
"""

from dataclasses import dataclass, fields

from pcmoe_node.exchange.base import Kind
from pcmoe_operator.shape import ModelShape
from pcmoe_operator.traffic import Layout, expected_rows, expected_slots


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """Bytes by kind."""

    backbone: int
    """Weights of the backbone, with the experts of local layers."""
    experts: int
    """Weights of the hosted experts of shared layers."""
    gradients: int
    moments: int
    masters: int
    """float32 master weights; 0 when compute is float32."""
    activations: int
    """Kept for own tokens."""
    served: int
    """Kept for other owners' tokens, if every expert is as likely as any other."""
    put_off: int
    """Kept for weight gradients that are added when nobody waits."""
    buffers: int
    """Messages being sent and received."""

    @property
    def static(self) -> int:
        """What the model itself takes: weights, gradients, moments, masters."""
        return self.backbone + self.experts + self.gradients + self.moments + self.masters

    @property
    def total(self) -> int:
        """Everything."""
        return sum(getattr(self, field.name) for field in fields(self))


def model_bytes(parameters: int, dtype: str) -> tuple[int, int, int, int]:
    """(weights, gradients, moments, masters) of so many parameters."""
    return (
        parameters * element_bytes(dtype),
        parameters * 4,
        parameters * 8,
        parameters * 4 if dtype == "bfloat16" else 0,
    )


def element_bytes(dtype: str) -> int:
    """Bytes of one element of compute."""
    return 2 if dtype == "bfloat16" else 4


def slot_bytes(shape: ModelShape, dtype: str) -> int:
    """What a host keeps per (token, expert) pair: the input, gate and up, and the activation."""
    return (shape.hidden_size + 3 * shape.expert_width) * element_bytes(dtype)


def own_parameters(layout: Layout) -> int:
    """Parameters of a backbone, the experts of local layers included."""
    local = sum(layer.hosts is None for layer in layout.placement)
    return layout.shape.backbone_parameters + local * layout.shape.experts * layout.shape.expert_parameters


def hosted_parameters(layout: Layout, participant: int) -> int:
    """Parameters of the experts a participant hosts for all."""
    hosted = sum(layer.hosted_by(participant) for layer in layout.placement)
    return hosted * layout.shape.expert_parameters


def static_bytes(layout: Layout, participant: int) -> int:
    """Weights, gradients, moments and masters of one participant."""
    parameters = own_parameters(layout) + hosted_parameters(layout, participant)
    return sum(model_bytes(parameters, layout.consortium.agreement.model.dtype))


def single_process(layout: Layout) -> int:
    """Weights, gradients, moments and masters of one process that holds the whole model."""
    return sum(model_bytes(layout.shape.parameters, layout.consortium.agreement.model.dtype))


def checkpoint_bytes(layout: Layout, participant: int) -> int:
    """One stored round on disk: float32 weights and moments."""
    return 12 * (own_parameters(layout) + hosted_parameters(layout, participant))


def disk_bytes(layout: Layout, participant: int) -> int:
    """Stored rounds on disk at most: `checkpoint.keep`, the last that is committed, and the one being written."""
    return (layout.consortium.agreement.checkpoint.keep + 2) * checkpoint_bytes(layout, participant)


def memory_of(layout: Layout, participant: int) -> Memory:
    """Memory of one participant."""
    dtype = layout.consortium.agreement.model.dtype
    own, hosted = own_parameters(layout), hosted_parameters(layout, participant)
    _, gradients, moments, masters = model_bytes(own + hosted, dtype)
    return Memory(
        backbone=own * element_bytes(dtype),
        experts=hosted * element_bytes(dtype),
        gradients=gradients,
        moments=moments,
        masters=masters,
        activations=_activations(layout, participant),
        served=served_bytes(layout, participant, worst=False),
        put_off=_put_off(layout, participant),
        buffers=_buffers(layout, participant),
    )


def served_bytes(layout: Layout, participant: int, *, worst: bool) -> int:
    """Activations kept for others' micro-batches in flight: expected, or under the worst routing."""
    shape, rows, terms = layout.shape, layout.wire.rows, layout.consortium.agreement
    others = max(1, layout.owners - 1) if layout.count > 1 else 0
    slots = 0
    for layer in layout.placement:
        hosted = layer.hosted_by(participant)
        slots += rows * min(shape.top_k, hosted) if worst else expected_slots(rows, hosted, shape)
    return others * terms.training.in_flight * slots * slot_bytes(shape, terms.model.dtype)


def _put_off(layout: Layout, participant: int) -> int:
    """What weight gradients are computed from, for as many messages as a host puts off: each side of both products."""
    shape, terms = layout.shape, layout.consortium.agreement
    hosted = max((layer.hosted_by(participant) for layer in layout.placement), default=0)
    slots = expected_slots(layout.wire.rows, hosted, shape) * layout.count * terms.training.in_flight
    return slots * (2 * shape.hidden_size + 3 * shape.expert_width) * element_bytes(terms.model.dtype)


def _activations(layout: Layout, participant: int) -> int:
    """Own micro-batches in flight, and one micro-batch's logits with their float32 loss and gradient."""
    consortium, shape, rows = layout.consortium, layout.shape, layout.wire.rows
    dtype = consortium.agreement.model.dtype
    size, hidden = element_bytes(dtype), shape.hidden_size
    attention = 3 * shape.attention_width + shape.query_width
    layer = (8 * hidden + attention + 3 * shape.dense_width + 2 * shape.experts) * size
    kept = rows * shape.layers * layer
    if consortium.checkpoints_gradients(consortium.names[participant]):
        # Between the cuts only a layer's input and its experts' output stay; one layer at a time is computed
        # again.
        kept = rows * (shape.layers * 2 * hidden * size + layer)
    slots = sum(
        rows * shape.top_k if item.hosts is None else expected_slots(rows, item.hosted_by(participant), shape)
        for item in layout.placement
    )
    logits = rows * shape.vocabulary * (size + 8)
    return consortium.agreement.training.in_flight * (kept + slots * slot_bytes(shape, dtype)) + logits


def _buffers(layout: Layout, participant: int) -> int:
    """A request and its reply per micro-batch in flight and peer, as owner and as host."""
    most = [max(layer.hosted_by(host) for layer in layout.placement) for host in range(layout.count)]
    pairs = {hosted: _pair(layout, hosted) for hosted in set(most)}
    as_owner = sum(pairs[hosted] for host, hosted in enumerate(most) if host != participant)
    as_host = (layout.count - 1) * pairs[most[participant]]
    return layout.consortium.agreement.training.in_flight * (as_owner + as_host)


def _pair(layout: Layout, hosted: int) -> int:
    """Bytes of a request and its reply at a host with `hosted` experts of a layer; 0 if it isn't asked."""
    if hosted == 0:
        return 0
    rows = expected_rows(layout.wire.rows, hosted, layout.shape)
    slots = expected_slots(layout.wire.rows, hosted, layout.shape)
    return sum(layout.wire.message(kind, rows, slots) for kind in (Kind.FORWARD, Kind.BACKWARD_REPLY))
