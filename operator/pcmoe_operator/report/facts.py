"""All that a report is made of, wherever its parts come from. Pure."""

from collections.abc import Mapping

from pcmoe_operator.agreement import digest
from pcmoe_operator.footprint import element_bytes, model_bytes
from pcmoe_operator.plan import Plan, make_plan, shape_of
from pcmoe_operator.report.figures import Gathered, RunFacts, Whole
from pcmoe_operator.report.timeline import merged
from pcmoe_operator.schema import Consortium


def facts_of(consortium: Consortium, gathered: Gathered) -> RunFacts:
    """What the manifest says, with what was gathered of the run."""
    plan = make_plan(consortium)
    journals = [part.events for part in gathered.parts.values()]
    return RunFacts(
        title=consortium.metadata.name,
        names=consortium.names,
        rounds_planned=consortium.agreement.training.rounds,
        rounds={name: part.rounds for name, part in gathered.parts.items()},
        exposures={name: part.exposure for name, part in gathered.parts.items() if part.exposure is not None},
        left_out=_left_out(gathered),
        elsewhere=gathered.elsewhere,
        held=gathered.held,
        standing=gathered.standing,
        events=merged([*journals, gathered.events]),
        whole=_whole(consortium, plan),
        settings={**_settings(consortium, plan), **gathered.settings},
        digests={"agreement": digest(consortium), "plan": plan.digest, **_fingerprint(consortium)},
        software=gathered.software,
        optimizer=_optimizer(consortium),
        beside=gathered.beside,
    )


def _left_out(gathered: Gathered) -> Mapping[str, str]:
    """What is missing, by participant; one that is there can lack its oldest lines."""
    short = {
        name: "its journal is too long: the oldest rounds are left out"
        for name, part in gathered.parts.items()
        if part.truncated
    }
    return {**short, **gathered.missing}


def _whole(consortium: Consortium, plan: Plan) -> Whole:
    shape, dtype = shape_of(consortium), consortium.agreement.model.dtype
    per_layer = shape.experts * shape.expert_parameters
    experts = per_layer * len(shape.expert_layers)
    _, gradients, moments, masters = model_bytes(shape.parameters, dtype)
    return Whole(
        tensors={
            "backbone": shape.backbone_parameters * element_bytes(dtype),
            "experts": experts * element_bytes(dtype),
            "masters": masters,
            "gradients": gradients,
            "moments": moments,
        },
        expert_parameters=experts,
        shared_expert_parameters=per_layer * plan.shared_layers,
        parameters=shape.parameters,
    )


def _optimizer(consortium: Consortium) -> str:
    name, dtype = consortium.agreement.training.optimizer.name, consortium.agreement.model.dtype
    per_parameter = sum(model_bytes(1, dtype))
    return f"{name} with {dtype} compute, {per_parameter} bytes per parameter"


def _settings(consortium: Consortium, plan: Plan) -> dict[str, str]:
    agreement, shape = consortium.agreement, shape_of(consortium)
    terms, local, optimizer = agreement.training, agreement.experts.local_layers, agreement.training.optimizer
    layers = f"{shape.layers} layers, {shape.experts} experts in {len(shape.expert_layers)} of them"
    batches = f"{terms.micro_batches_per_step} micro-batches of {terms.sequences_per_micro_batch}"
    rate = f"learning rate {optimizer.learning_rate}, {optimizer.warmup_steps} steps of warm-up"
    return {
        "model": f"{shape.model_type}, {layers}, {shape.top_k} per token, hidden size {shape.hidden_size}",
        "experts": f"{agreement.experts.placement}, {plan.shared_layers} layers shared out, "
        f"{local.at_start + local.at_end} local",
        "schedule": f"{terms.schedule}, {terms.rounds} rounds of {terms.steps_per_round} steps",
        "a step": f"{batches} × {terms.sequence_length} tokens, {terms.in_flight} in flight",
        "optimizer": f"{optimizer.name}, {rate}, then {optimizer.decay}",
        "precision": f"compute {agreement.model.dtype}, on the wire {agreement.transport.wire_dtype}",
        "deterministic": "yes" if terms.deterministic else "no",
    }


def _fingerprint(consortium: Consortium) -> Mapping[str, str]:
    checkpoint = consortium.agreement.model.source.checkpoint
    return {"starting model": checkpoint.fingerprint} if checkpoint else {}
