"""What the exchange costs: experts spread over N processes by mutual TLS, beside the same compute with no messages.

    python benchmarks/exchange.py [--case NAME …] [--repeats 5] [--rows 2048] [--output FILE]

Each process has one thread and is owner of `rows` tokens per step; forward and backward of one MoE layer (SwiGLU,
float32), weight gradients included, no attention and no optimizer. Three arrangements of the same rows, in one run:

    tls      the product: every check, padding, permutation, integrity test and mutual TLS on
    alone    each process holds all the experts and sends nothing
    gloo     torch.distributed all_to_all_single over gloo, no encryption, no checks (two parties only)

Prints JSON: tokens per second over all processes (median of the repeats) and the ratios.
"""

import argparse
import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from party import Step, choices, experts, make_configs, measure, median, our_step, run_workers

CASES = {
    "large": {"hidden": 1024, "intermediate": 4096, "experts": 32, "top_k": 4, "parties": 4},
    "narrow": {"hidden": 1024, "intermediate": 512, "experts": 32, "top_k": 4, "parties": 4},
    "small": {"hidden": 256, "intermediate": 1024, "experts": 8, "top_k": 2, "parties": 2},
}


def main() -> None:
    """Run the cases and print or write the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--case", action="append", choices=sorted(CASES), help="default: all")
    parser.add_argument("--repeats", type=int, default=5, help="measured steps per arrangement (default 5)")
    parser.add_argument("--rows", type=int, default=2048, help="tokens per owner and step (default 2048)")
    parser.add_argument("--output", type=Path, help="write the JSON here too")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        spec = json.loads(options.worker)
        measure(spec, _gloo_step if spec["arrangement"] == "gloo" else our_step)
    results = []
    for name in options.case or list(CASES):
        results.append(_run_case(name, options.rows, options.repeats))
        print(json.dumps(results[-1], indent=1), flush=True)
    if options.output:
        options.output.write_text(json.dumps(results, indent=1) + "\n")


def _run_case(name: str, rows: int, repeats: int) -> dict[str, Any]:
    case = CASES[name]
    rates: dict[str, list[float]] = {}
    gloo = [("gloo", 1)] if case["parties"] == 2 else []
    for arrangement, micro_batches in (("alone", 1), ("tls", 1), *gloo, ("alone", 4), ("tls", 4)):
        spec = {**case, "rows": rows, "repeats": repeats, "arrangement": arrangement}
        spec |= {"micro_batches": micro_batches, "in_flight": micro_batches}
        rates[f"{arrangement}/{micro_batches}"] = _rates(spec)
    medians = {key: median(values) for key, values in rates.items()}
    best_tls = max(medians["tls/1"], medians["tls/4"])
    result = {
        "case": name,
        **case,
        "rows": rows,
        "tokensPerSecond": {key: round(value, 1) for key, value in medians.items()},
        "spread": {key: [round(min(v), 1), round(max(v), 1)] for key, v in rates.items()},
        "tlsToAlone": {n: round(medians[f"tls/{n}"] / medians[f"alone/{n}"], 3) for n in ("1", "4")},
        "bestTlsToBestAlone": round(best_tls / max(medians["alone/1"], medians["alone/4"]), 3),
        "cores": os.cpu_count(),
    }
    return {**result, "bestTlsToGloo": round(best_tls / medians["gloo/1"], 3)} if gloo else result


def _rates(spec: dict[str, Any]) -> list[float]:
    """Tokens per second over all processes, one figure per measured step."""
    parties = spec["parties"]
    with TemporaryDirectory() as name:
        folder = Path(name)
        if spec["arrangement"] == "tls":
            configs = make_configs(spec, parties, folder)
        elif spec["arrangement"] == "alone":
            configs = [make_configs(spec, 1, folder / str(rank))[0] for rank in range(parties)]
        else:
            configs = []
        specs = []
        for rank in range(parties):
            path = folder / f"config-{rank}.json"
            if configs:
                path.write_text(configs[rank].model_dump_json())
            specs.append({**spec, "rank": rank, "processes": parties, "folder": name, "config": str(path)})
        return [parties * spec["rows"] / seconds for seconds in run_workers(__file__, specs)]


def _gloo_step(spec: dict[str, Any]) -> Step:
    """The same layer as data-centre expert parallelism writes it: two all-to-alls each way, autograd throughout."""
    import torch
    import torch.distributed as dist
    from torch.distributed.nn import functional as differentiable
    from transformers.integrations.moe import grouped_mm_experts_forward

    rank, parties = spec["rank"], spec["parties"]
    store = dist.FileStore(  # type: ignore[attr-defined]
        str(Path(spec["folder"]) / "store"), parties
    )
    dist.init_process_group("gloo", store=store, rank=rank, world_size=parties)
    # Deprecated, but the functional collectives that replace it have no backward over gloo.
    warnings.simplefilter("ignore", FutureWarning)
    exchange: Callable[..., torch.Tensor] = differentiable.all_to_all_single
    mine = spec["experts"] // parties
    module = experts(spec["hidden"], spec["intermediate"], mine)
    x_TH, ids_TK, weights_TK = choices(spec, spec["rows"])
    dy_TH = torch.randn(spec["rows"], spec["hidden"])
    x_TH.requires_grad_()
    weights_TK.requires_grad_()

    def step(_number: int) -> None:
        order_S = ids_TK.flatten().argsort(stable=True)
        ids_S = ids_TK.flatten()[order_S]
        send = torch.bincount(ids_S // mine, minlength=parties)
        receive = torch.empty_like(send)
        dist.all_to_all_single(receive, send)
        sizes_in, sizes_out = receive.tolist(), send.tolist()
        ids_R = torch.empty(int(receive.sum()), dtype=ids_S.dtype)
        dist.all_to_all_single(ids_R, ids_S % mine, sizes_in, sizes_out)
        x_SH = x_TH[order_S // spec["top_k"]]
        x_RH = exchange(torch.empty(len(ids_R), spec["hidden"]), x_SH, sizes_in, sizes_out)
        y_RH = grouped_mm_experts_forward(module, x_RH, ids_R.unsqueeze(1), torch.ones(len(ids_R), 1))
        y_SH = exchange(torch.empty_like(x_SH), y_RH, sizes_out, sizes_in)
        weighted_SH = y_SH * weights_TK.flatten()[order_S].unsqueeze(1)
        y_TH = torch.zeros_like(x_TH).index_add(0, order_S // spec["top_k"], weighted_SH)
        torch.autograd.backward(y_TH, dy_TH)
        dist.barrier()

    return step


if __name__ == "__main__":
    main()
