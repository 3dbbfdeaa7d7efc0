"""The plan: who hosts what, what it takes, and that it depends on nothing but the agreement."""

import dataclasses
import json
import random
from collections import Counter
from fractions import Fraction
from typing import Any

import pytest
from tests.builders import architecture, consortium, manifest

from pcmoe_node.exchange.base import Header, Kind, WireDtype
from pcmoe_node.exchange.layout import sections
from pcmoe_operator.footprint import slot_bytes
from pcmoe_operator.plan import Network, Plan, make_plan, predict, shape_of
from pcmoe_operator.schema import Consortium
from pcmoe_operator.spec import parse
from pcmoe_operator.traffic import expected_rows, expected_slots

OLMOE_1B_7B = json.dumps(
    {
        "model_type": "olmoe",
        "vocab_size": 50304,
        "hidden_size": 2048,
        "intermediate_size": 1024,
        "num_hidden_layers": 16,
        "num_attention_heads": 16,
        "num_experts": 64,
        "num_experts_per_tok": 8,
        "max_position_embeddings": 4096,
    }
)


def olmoe(at_end: int, **training: int) -> Consortium:
    """OLMoE-1B-7B at four participants in bfloat16, 4,096 tokens per participant and step."""
    terms = {
        "rounds": 20,
        "sequenceLength": 512,
        "sequencesPerMicroBatch": 4,
        "microBatchesPerStep": 2,
        "inFlight": 2,
    }
    return consortium(
        4,
        {
            "agreement.model": {
                "source": {"checkpoint": {"fingerprint": "sha256:" + "0" * 64, "config": OLMOE_1B_7B}}
            },
            "agreement.transport": {},
            "agreement.experts.localLayers.atEnd": at_end,
            "agreement.training": {**terms, **training},
        },
    )


def random_manifest(seed: int) -> dict[str, Any]:
    """A manifest of any valid size and placement."""
    draw = random.Random(seed)
    count, experts, layers = draw.randint(1, 9), draw.randint(2, 20), draw.randint(2, 6)
    names = [f"p{i}" for i in range(count)]
    config = architecture(
        num_experts=experts, num_hidden_layers=layers, num_experts_per_tok=draw.randint(1, min(4, experts))
    )
    start = draw.randint(0, layers - 1)
    terms: dict[str, Any] = {
        "placement": draw.choice(["RoundRobin", "CapacityWeighted", "Pinned"]),
        "localLayers": {"atStart": start, "atEnd": draw.randint(0, layers - 1 - start)},
    }
    if terms["placement"] == "Pinned":
        owner = [draw.randrange(count) for _ in range(experts)]
        terms["pinned"] = [
            {"participant": names[i], "experts": ",".join(str(e) for e in range(experts) if owner[e] == i)}
            for i in sorted(set(owner))
        ]
    made = manifest(names, {"agreement.experts": terms}, config=config)
    for participant in made["spec"]["agreement"]["participants"]:
        participant["capacity"] = draw.randint(1, 7)
        participant["jurisdiction"] = draw.choice(["EU", "CH", "US"])
    if terms["placement"] != "Pinned" and draw.random() < 0.5:
        terms["allowedJurisdictions"] = [made["spec"]["agreement"]["participants"][0]["jurisdiction"]]
    return made


@pytest.mark.parametrize("seed", range(60))
def test_every_expert_is_hosted_exactly_once_by_whoever_may(seed: int) -> None:
    made = parse(random_manifest(seed))
    plan, shape, terms = make_plan(made), shape_of(made), made.agreement.experts
    local = [layer.layer for layer in plan.placement if layer.hosts is None]
    first, last = terms.local_layers.at_start, len(shape.expert_layers) - terms.local_layers.at_end
    assert tuple(layer.layer for layer in plan.placement) == shape.expert_layers
    assert local == [*shape.expert_layers[:first], *shape.expert_layers[last:]]
    for layer in plan.placement:
        if layer.hosts is not None:
            assert len(layer.hosts) == shape.experts
            for host in layer.hosts:
                where = made.participants[host].jurisdiction
                assert not terms.allowed_jurisdictions or where in terms.allowed_jurisdictions


@pytest.mark.parametrize("seed", range(60))
def test_the_same_agreement_gives_the_same_plan_in_any_order(seed: int) -> None:
    raw = random_manifest(seed)
    plan = make_plan(parse(raw))
    random.Random(seed + 1).shuffle(raw["spec"]["agreement"]["participants"])
    raw["spec"]["agreement"]["experts"].get("pinned", []).reverse()
    assert make_plan(parse(raw)) == plan


@pytest.mark.parametrize("seed", range(60))
def test_shares_are_within_one_in_every_layer_and_nearly_so_over_all(seed: int) -> None:
    raw = random_manifest(seed)
    for name in ("RoundRobin", "CapacityWeighted"):
        raw["spec"]["agreement"]["experts"] |= {"placement": name, "pinned": []}
        made = parse(raw)
        plan, experts = make_plan(made), shape_of(made).experts
        allowed = made.agreement.experts.allowed_jurisdictions
        weights = {
            i: p.capacity if name == "CapacityWeighted" else 1
            for i, p in enumerate(made.participants)
            if not allowed or p.jurisdiction in allowed
        }
        total: Counter[int] = Counter()
        shared = [layer for layer in plan.placement if layer.hosts is not None]
        for layer in shared:
            for i, weight in weights.items():
                share = Fraction(experts * weight, sum(weights.values()))
                assert abs(layer.hosted_by(i) - share) < 1
                total[i] += layer.hosted_by(i)
        for i, weight in weights.items():
            assert abs(total[i] - Fraction(len(shared) * experts * weight, sum(weights.values()))) < 2


def test_round_robin_deals_on_from_layer_to_layer() -> None:
    made = consortium(3, config=architecture(num_experts=10))
    hosts = [layer.hosts for layer in make_plan(made).placement]
    assert hosts == [(0, 1, 2, 0, 1, 2, 0, 1, 2, 0), (1, 2, 0, 1, 2, 0, 1, 2, 0, 1), None]


def test_capacity_decides_shares_and_spreads_them() -> None:
    weighted = {"agreement.experts.placement": "CapacityWeighted", "agreement.participants[1].capacity": 3}
    assert make_plan(consortium(2, weighted)).placement[0].hosts == (1, 0, 1, 1, 1, 0, 1, 1)


def test_pinned_experts_stay_where_they_are_pinned() -> None:
    pins = [{"participant": "lyon", "experts": "0-5"}, {"participant": "berlin", "experts": "7,6"}]
    made = consortium(2, {"agreement.experts": {"placement": "Pinned", "pinned": pins}})
    assert [layer.hosts for layer in make_plan(made).placement] == [(1, 1, 1, 1, 1, 1, 0, 0)] * 2 + [None]


def test_there_may_be_more_hosts_than_experts() -> None:
    plan = make_plan(
        consortium(8, {"agreement.experts.localLayers.atEnd": 2}, config=architecture(num_experts=3))
    )
    assert plan.placement[0].hosts == (0, 1, 2)
    assert [participant.experts for participant in plan.participants] == [1, 1, 1, 0, 0, 0, 0, 0]
    assert [participant.activation_bytes > 0 for participant in plan.participants] == [True] * 3 + [False] * 5


def test_quotas_cover_the_worst_routing() -> None:
    made = consortium(3, config=architecture(num_experts=10, num_experts_per_tok=5))
    plan = make_plan(made)
    assert (plan.rows_per_message, plan.slots_per_row) == (32, 4)
    slots = 32 * (plan.placement[0].hosted_by(0) + plan.placement[1].hosted_by(0))
    assert plan.participants[0].activation_bytes == 2 * 2 * slots * slot_bytes(shape_of(made), "float32")
    assert plan.participants[0].memory.served < plan.participants[0].activation_bytes


def test_one_participant_sends_nothing() -> None:
    plan = make_plan(consortium(1))
    assert (plan.participants[0].run.sent, plan.participants[0].run.received) == (0, 0)
    assert plan.participants[0].saving_per_mille == 0
    assert plan.participants[0].activation_bytes == 0


def test_what_is_sent_is_received() -> None:
    for schedule in ("Concurrent", "Sequential"):
        made = consortium(4, {"agreement.training.schedule": schedule}, config=architecture(num_experts=10))
        plan = make_plan(made)
        assert (
            sum(p.run.sent for p in plan.participants) == sum(p.run.received for p in plan.participants) > 0
        )


def test_in_turns_a_step_moves_what_one_owner_moves() -> None:
    plans = [
        make_plan(consortium(4, {"agreement.training.schedule": s})) for s in ("Concurrent", "Sequential")
    ]
    concurrent, sequential = (sum(p.step.sent for p in plan.participants) for plan in plans)
    assert concurrent == 4 * sequential


def test_messages_are_counted_as_they_are_laid_out() -> None:
    made = consortium(2, {"agreement.training.evaluation.sequences": 0})
    plan, shape = make_plan(made), shape_of(made)
    rows, slots = expected_rows(32, 4, shape), expected_slots(32, 4, shape)
    assert (rows, slots) == (26, 32)  # 32 * (1 - C(4,2)/C(8,2)) = 25.1; 32 * 2 * 4/8

    def least(kind: Kind) -> int:
        return sections(Header(kind=kind, dtype=WireDtype.FLOAT32, rows=rows, slots=slots), 32).length

    kinds = (Kind.FORWARD, Kind.FORWARD_REPLY, Kind.BACKWARD, Kind.BACKWARD_REPLY)
    content = 2 * 2 * sum(map(least, kinds))
    assert content < plan.participants[0].step.sent < 1.15 * content


def test_published_figures_of_olmoe() -> None:
    """Memory: 1 - (1 - f + f/N). Wire: 16 layers, top-8 of 64, H=2048, bfloat16, 4 participants."""
    assert make_plan(olmoe(0)).saving_per_mille == 698
    assert make_plan(olmoe(1)).saving_per_mille == 654
    step = make_plan(olmoe(0)).participants[0].step
    assert 2.85e9 < step.sent < 3.1e9
    assert step.sent == step.received


def test_what_local_layers_cost_is_told() -> None:
    plan = make_plan(olmoe(1))
    layer = 64 * 3 * 2048 * 1024 * 18
    assert plan.local_layers.bytes == 4 * layer - layer
    assert plan.local_layers.saving_without_per_mille == 698
    assert plan.local_layers.wire_per_step == sum(
        a.step.sent - b.step.sent
        for a, b in zip(make_plan(olmoe(0)).participants, plan.participants, strict=True)
    )
    assert make_plan(olmoe(0)).local_layers.bytes == 0


def test_memory_is_counted_by_kind() -> None:
    made = consortium(2)
    memory, shape = make_plan(made).participants[0].memory, shape_of(made)
    own = shape.backbone_parameters + 8 * shape.expert_parameters
    hosted = 2 * 4 * shape.expert_parameters
    assert (memory.backbone, memory.experts, memory.masters) == (4 * own, 4 * hosted, 0)
    assert (memory.gradients, memory.moments) == (4 * (own + hosted), 8 * (own + hosted))
    assert memory.static == 16 * (own + hosted)
    assert memory.total > memory.static


def test_bfloat16_keeps_float32_masters() -> None:
    made = consortium(2, {"agreement.model.dtype": "bfloat16"})
    memory = make_plan(made).participants[0].memory
    assert memory.masters == memory.gradients == 2 * (memory.backbone + memory.experts)


def test_the_disk_holds_the_rounds_to_keep_the_last_committed_one_and_the_one_being_written() -> None:
    made = consortium(2, {"agreement.checkpoint.keep": 5})
    plan = make_plan(made).participants[0]
    assert plan.disk == (5 + 1 + 1) * plan.checkpoint
    assert plan.checkpoint == plan.memory.moments + plan.memory.gradients  # as many bytes as these: 8 + 4


def test_gradient_checkpointing_saves_activations_and_changes_nothing_agreed() -> None:
    plain = make_plan(consortium(2))
    spared = make_plan(consortium(2, {"local": [{"name": "berlin", "gradientCheckpointing": True}]}))
    assert spared.participants[0].memory.activations < plain.participants[0].memory.activations
    assert spared.participants[1] == plain.participants[1]
    assert spared.digest == plain.digest


def test_the_plan_digest_is_of_names_placement_and_quotas() -> None:
    digests = {
        make_plan(made).digest
        for made in (
            consortium(2),
            consortium(3),
            consortium(2, {"agreement.training.sequenceLength": 32}),
            consortium(2, {"agreement.training.inFlight": 1}),
            consortium(2, {"agreement.experts.localLayers.atEnd": 0}),
        )
    }
    assert len(digests) == 5
    assert make_plan(consortium(2, {"agreement.training.seed": 9})).digest == make_plan(consortium(2)).digest
    golden = "sha256:8e8b77518b4346637a3110a34649950d44dc592dabead3b9c4a4b0ec10f65327"
    assert make_plan(consortium(2)).digest == golden


def prototype(in_flight: int) -> Plan:
    """H=64, I=256, 3 layers, 8 micro-batches of 256 rows at two participants."""
    return make_plan(prototype_consortium(in_flight))


def prototype_consortium(in_flight: int) -> Consortium:
    config = architecture(hidden_size=64, intermediate_size=256, num_hidden_layers=3)
    terms = {
        "rounds": 1,
        "microBatchesPerStep": 8,
        "inFlight": in_flight,
        "sequencesPerMicroBatch": 4,
        "sequenceLength": 64,
    }
    return consortium(
        2, {"agreement.training": terms, "agreement.experts.localLayers.atEnd": 0}, config=config
    )


def test_the_prediction_agrees_with_a_measured_prototype() -> None:
    """10 ms added each way: 1,224 / 628 / 330 / 213 ms with 1 / 2 / 4 / 8 in flight, 182 without delay."""
    network = Network(bits_per_second=10**12, round_trip_microseconds=20_000, flops=1)
    free = predict(
        prototype_consortium(1), prototype(1), dataclasses.replace(network, flops=10**18)
    ).step_seconds
    assert 0.95 < free / (8 * 6 * 0.02) < 1.1
    operations = predict(prototype_consortium(1), prototype(1), network).compute_seconds
    network = dataclasses.replace(network, flops=int(operations / 0.182))
    for in_flight, measured in ((1, 1.224), (2, 0.628), (4, 0.330), (8, 0.213)):
        seconds = predict(prototype_consortium(in_flight), prototype(in_flight), network).step_seconds
        assert 0.8 < seconds / measured < 1.2


@pytest.mark.parametrize(
    ("network", "bound"),
    [
        (Network(bits_per_second=10**12, round_trip_microseconds=1, flops=10**9), "compute"),
        (Network(bits_per_second=10**5, round_trip_microseconds=1, flops=10**15), "bandwidth"),
        (Network(bits_per_second=10**12, round_trip_microseconds=200_000, flops=10**15), "latency"),
    ],
)
def test_the_prediction_says_what_bounds_it(network: Network, bound: str) -> None:
    made = consortium(2)
    prediction = predict(made, make_plan(made), network)
    assert prediction.bound == bound
    assert prediction.run_seconds == pytest.approx(8 * prediction.step_seconds)


def test_a_slow_network_takes_olmoe_a_day_and_the_plan_says_so() -> None:
    made = olmoe(0)
    for bits, seconds in ((10**9, 24.3), (10**8, 243)):
        prediction = predict(made, make_plan(made), Network(bits_per_second=bits))
        assert prediction.bandwidth_seconds == pytest.approx(seconds, rel=0.05)
