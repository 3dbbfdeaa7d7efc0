"""The report of a run: `report.json` with every figure, and `report.html`, one page that loads nothing.

`read` reads what nodes wrote, `figures` computes, `charts` and `page` draw. A report can be made at any time,
also of a run that goes on or failed; it then shows the rounds that are there.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pcmoe_operator import spec
from pcmoe_operator.agreement import digest
from pcmoe_operator.errors import UsageError
from pcmoe_operator.footprint import element_bytes, model_bytes
from pcmoe_operator.plan import Plan, make_plan, shape_of
from pcmoe_operator.report.figures import Figures, RunFacts, Whole, figures_of
from pcmoe_operator.report.page import page_of
from pcmoe_operator.report.read import read_rounds
from pcmoe_operator.schema import Consortium


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """Where a report was written, and its figures."""

    page: Path
    data: Path
    figures: Figures


def write_report(folder: Path) -> Report:
    """Read the folder of a run and write both files into it.

    Raises `UsageError` if the folder holds no run or something in it can't be read.
    """
    facts = read_facts(folder)
    figures = figures_of(facts)
    page, data = folder / "report.html", folder / "report.json"
    data.write_text(json.dumps(figures, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    page.write_text(page_of(figures), encoding="utf-8")
    return Report(page=page, data=data, figures=figures)


def read_facts(folder: Path) -> RunFacts:
    """All that a report is made of."""
    record = _record(folder)
    consortium = spec.load(folder / "manifest.yaml")
    plan = make_plan(consortium)
    return RunFacts(
        title=consortium.metadata.name,
        rounds_planned=consortium.agreement.training.rounds,
        rounds={name: read_rounds(folder / name / "log" / "rounds.jsonl") for name in consortium.names},
        whole=_whole(consortium, plan),
        settings=_settings(consortium, plan)
        | {"CPU": f"{record['cores']} cores, {record['threads']} threads per node"},
        digests={"agreement": digest(consortium), "plan": plan.digest, **_fingerprint(consortium)},
        software=record["software"],
        optimizer=_optimizer(consortium),
    )


def _record(folder: Path) -> Figures:
    path = folder / "run.json"
    try:
        record = json.loads(path.read_text())
        return {key: record[key] for key in ("cores", "threads", "software")}
    except FileNotFoundError:
        raise UsageError(f"{folder} holds no run: there is no run.json in it") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} can't be used: {type(error).__name__}: {error}") from None


def _machine(record: Figures) -> dict[str, str]:
    return {"processor": f"{record['cores']} cores, {record['threads']} threads per node"}


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
