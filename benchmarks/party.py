"""One measured process: the product's own owner, host, conductor and step machine around layers of experts.

Shared by the benchmarks; not a benchmark itself.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "operator"), str(ROOT / "node")]

WARM_UP = 2
Step = Callable[[int], None]


# ---- the measuring process


def make_configs(spec: dict[str, Any], parties: int, folder: Path) -> list[Any]:
    """NodeConfigs of parties that share every expert of every layer; certificates under `folder`."""
    from tests.exchange.rigs import architecture, node_configs

    rows, layers = spec["rows"] // spec["micro_batches"], spec.get("layers", 1)
    hosts = [expert % parties for expert in range(spec["experts"])]
    return node_configs(
        parties,
        folder,
        model={
            "architecture": architecture(
                hidden_size=spec["hidden"],
                num_experts=spec["experts"],
                num_experts_per_tok=spec["top_k"],
                num_hidden_layers=layers,
            )
        },
        placement=[{"layer": layer, "hosts": hosts} for layer in range(layers)],
        training={
            "micro_batches_per_step": spec["micro_batches"],
            "in_flight": spec["in_flight"],
            "rounds": 1,
            "steps_per_round": 1000,
            "sequence_length": rows,
            "sequences_per_micro_batch": 1,
        },
        quota={"rows_per_message": rows, "slots_per_row": spec["top_k"], "activation_bytes": 1 << 34},
    )


def run_workers(script: str, specs: Sequence[dict[str, Any]]) -> list[float]:
    """Start a process per spec; the seconds of each measured step, of the slowest process."""
    workers = [
        subprocess.Popen(
            [sys.executable, script, "--worker", json.dumps(spec)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
        )
        for spec in specs
    ]
    try:
        printed = [worker.communicate(timeout=900)[0] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    steps = [json.loads(text.splitlines()[-1]) for text in printed]
    return [max(seconds) for seconds in zip(*steps, strict=True)]


def median(values: Sequence[float]) -> float:
    """The median, so that one slow step of a shared machine doesn't count."""
    return statistics.median(values)


# ---- one measured process


def measure(spec: dict[str, Any], make_step: Callable[[dict[str, Any]], Step]) -> None:
    """Begin together with the others, run the steps, print their seconds as the last line, and end."""
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(spec["rank"])
    step = make_step(spec)
    seconds = []
    _barrier(spec, "ready")
    for number in range(WARM_UP + spec["repeats"]):
        start = time.perf_counter()
        step(number)
        seconds.append(time.perf_counter() - start)
    print(json.dumps(seconds[WARM_UP:]), flush=True)
    _barrier(spec, "done")
    os._exit(0)


def _barrier(spec: dict[str, Any], name: str) -> None:
    """Begin and end together: loading takes longer in some processes, and none may leave while others need it."""
    folder = Path(spec["folder"])
    (folder / f"{name}-{spec['rank']}").touch()
    deadline = time.monotonic() + 300
    while len(list(folder.glob(f"{name}-*"))) < spec["processes"]:
        if time.monotonic() > deadline:
            raise TimeoutError("the other processes did not come")
        time.sleep(0.01)


def experts(hidden: int, intermediate: int, count: int) -> Any:
    """A family's experts module with weights and gradients; OLMoE's, which is plain SwiGLU."""
    import torch
    from transformers import OlmoeConfig
    from transformers.models.olmoe.modeling_olmoe import OlmoeExperts

    shape = {"hidden_size": hidden, "intermediate_size": intermediate, "num_experts": count}
    module = OlmoeExperts(OlmoeConfig(**shape, num_local_experts=count))
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
        parameter.main_grad = torch.zeros_like(parameter)
    return module


def choices(spec: dict[str, Any], rows: int) -> tuple[Any, Any, Any]:
    """x [T, H], ids [T, K], weights [T, K]: uniform routing."""
    import torch

    x_TH = torch.randn(rows, spec["hidden"])
    ids_TK = torch.rand(rows, spec["experts"]).topk(spec["top_k"]).indices
    return x_TH, ids_TK, torch.rand(rows, spec["top_k"]).softmax(-1)


def _conductor(spec: dict[str, Any]) -> tuple[Any, Any]:
    """(conductor, config) of the product, around shards of experts and mutual TLS, not connected yet."""
    import torch
    from tests.exchange.rigs import tls_transport

    from pcmoe_node.conductor import Conductor
    from pcmoe_node.config import NodeConfig
    from pcmoe_node.exchange.limits import Limits
    from pcmoe_node.experts import Shard
    from pcmoe_node.host import Host
    from pcmoe_node.patience import Patience
    from pcmoe_node.payloads import Codec
    from pcmoe_node.protocol.round import Farewell
    from pcmoe_node.protocol.step import StepMachine

    config = NodeConfig.model_validate_json(Path(spec["config"]).read_text())
    names, me = tuple(peer.name for peer in config.participants), config.index
    shards = {
        place.layer: Shard(experts(spec["hidden"], spec["intermediate"], (place.hosts or ()).count(me)))
        for place in config.placement
    }
    served = tuple(sorted(shards))
    max_abs = config.transport.max_abs
    conductor = Conductor(
        me=me,
        names=names,
        transport=tls_transport(config),
        limits=Limits.from_config(config),
        codec=Codec(spec["hidden"], torch.float32, torch.device("cpu"), max_abs),
        host=Host(
            shards,
            activation_bytes=1 << 34,
            ordered=False,
            backlog=len(names) * spec["in_flight"],
            max_abs=max_abs,
        ),
        machine=StepMachine(me, len(names), spec["micro_batches"], spec["in_flight"], served, names=names),
        farewell=Farewell(me, len(names)),
        patience=Patience(me=me, names=names, progress_timeout=300.0, rejoin_timeout=300.0),
        ordered=False,
    )
    return conductor, config


def our_step(spec: dict[str, Any]) -> Step:
    """Forward and backward of all micro-batches through all layers, then the vote; no optimizer, no attention."""
    import torch

    from pcmoe_node.cut import MicroBatch
    from pcmoe_node.exchange.base import WireDtype
    from pcmoe_node.moe import Owner, RemoteExperts
    from pcmoe_node.protocol.effects import Phase

    conductor, config = _conductor(spec)
    micro_batches = spec["micro_batches"]
    owner = Owner(secret=bytes(32), wire_dtype=WireDtype.FLOAT32)
    owner.conductor = conductor
    remotes = [RemoteExperts(owner, place.layer, place.hosts or ()) for place in config.placement]
    rows = spec["rows"] // micro_batches
    inputs = [[choices(spec, rows) for _ in remotes] for _ in range(micro_batches)]
    dy_TH = torch.randn(rows, spec["hidden"])
    conductor.transport.open(120.0)
    everybody = frozenset(range(len(conductor.names)))
    conductor.begin_step(everybody, micro_batches)

    def work(step: int, number: int) -> None:
        micro_batch = MicroBatch(Phase.FORWARD, step, number)
        calls = [
            remote.dispatch(micro_batch, *given)
            for remote, given in zip(remotes, inputs[number], strict=True)
        ]
        for call in reversed(calls):
            call.backward(dy_TH)

    def step(number: int) -> None:
        machine = conductor.machine
        conductor.vote_due = conductor.decision = None
        conductor.carry_out(machine.enter(number, everybody))
        conductor.run([partial(work, number, n) for n in range(micro_batches)], spec["in_flight"])
        conductor.carry_out(machine.owner_done(spec["rows"], True))
        conductor.wait_until(lambda: conductor.vote_due is not None)
        conductor.host.deferred.play_all()
        conductor.carry_out(machine.ballot(1.0, True))
        conductor.wait_until(lambda: conductor.decision is not None)
        conductor.begin_step(everybody, micro_batches)
        conductor.carry_out(machine.applied())
        if os.environ.get("PCMOE_BENCHMARK_PHASES"):
            print({k: round(v, 3) for k, v in conductor.clock.take().items()}, file=sys.stderr)

    return step
