"""From top-k choices to one message per host, and back.

    T tokens of a micro-batch   K experts per token   R rows of one message   S slots of one message   H hidden size

Every token goes to a host at most once, with all its slots there. Rows travel in a secret order, and weights are
divided by their sum per row and host, so that neither positions nor the absolute gate mass leave. Both are exact:
the owner multiplies the returned rows by what it divided by.
"""

import hashlib
import hmac
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Route:
    """What one host gets of one layer's micro-batch. Everything lives where the model does, but `counts_R`."""

    rows_R: Tensor
    """Token of each row, int64."""
    counts_R: Tensor
    """Slots of each row, int64, CPU."""
    slots_S: Tensor
    """Position of each slot in the flattened [T, K] choices, int64."""
    experts_S: Tensor
    """The host's own number of each slot's expert, int64."""
    weights_S: Tensor
    """Weights divided by their row's sum, float32."""
    scale_R: Tensor
    """The sums; 1 where the sum is 0. float32."""
    row_of_S: Tensor
    """Row of each slot, int64."""


@dataclass(frozen=True, slots=True)
class ExpertMap:
    """Where each expert of one layer is hosted."""

    host_E: Tensor
    local_E: Tensor
    """The expert's number among those of its host."""

    @classmethod
    def of(cls, hosts: tuple[int, ...]) -> "ExpertMap":
        """From the host of each expert; a host numbers its experts ascending."""
        seen: dict[int, int] = {}
        local = []
        for host in hosts:
            local.append(seen.get(host, 0))
            seen[host] = local[-1] + 1
        return cls(torch.tensor(hosts), torch.tensor(local))


def secret_order(secret: bytes, purpose: str, numbers: tuple[int, ...], length: int) -> Tensor:
    """A permutation of `length` that only the holder of `secret` can tell, keyed by purpose and numbers."""
    key = hmac.new(secret, f"{purpose}:{':'.join(map(str, numbers))}".encode(), hashlib.sha256).digest()
    # Not randperm: torch's generator on the CPU takes 32 bits of its seed, which a host could try out one by one.
    draws = bytearray(hashlib.shake_256(key).digest(8 * length))
    return torch.frombuffer(draws, dtype=torch.int64).argsort(stable=True) if length else torch.arange(0)


def routes(
    ids_TK: Tensor, weights_TK: Tensor, experts: ExpertMap, order_T: Tensor, hosts: int
) -> list[Route]:
    """One `Route` per host. `ids_TK` and `order_T` are read on the CPU, `weights_TK` where it is."""
    device = weights_TK.device
    top_k = ids_TK.shape[1]
    ids_TK = ids_TK.cpu().index_select(0, order_T)
    host_TK = experts.host_E[ids_TK]
    local_TK = experts.local_E[ids_TK]
    flat = weights_TK.reshape(-1).float()
    result = []
    for host in range(hosts):
        position_S, choice_S = (host_TK == host).nonzero(as_tuple=True)
        at_R, row_of_S, counts_R = torch.unique_consecutive(
            position_S, return_inverse=True, return_counts=True
        )
        slots_S = (order_T[position_S] * top_k + choice_S).to(device)
        row_of_S = row_of_S.to(device)
        weights_S = flat[slots_S]
        scale_R = torch.zeros(at_R.shape[0], device=device).index_add_(0, row_of_S, weights_S)
        scale_R = torch.where(scale_R == 0, torch.ones_like(scale_R), scale_R)
        result.append(
            Route(
                rows_R=order_T[at_R].to(device),
                counts_R=counts_R,
                slots_S=slots_S,
                experts_S=local_TK[position_S, choice_S],
                weights_S=weights_S / scale_R[row_of_S],
                scale_R=scale_R,
                row_of_S=row_of_S,
            )
        )
    return result


def combine(routes_: list[Route], rows: list[Tensor], like_TH: Tensor) -> Tensor:
    """Σ over hosts, in participant order, of scale · row, in float32: [T, H] in `like_TH`'s dtype."""
    y_TH = torch.zeros(like_TH.shape, dtype=torch.float32, device=like_TH.device)
    for route, row_RH in zip(routes_, rows, strict=True):
        y_TH.index_add_(0, route.rows_R, row_RH.float() * route.scale_R.unsqueeze(1))
    return y_TH.to(like_TH.dtype)


def gather_gradients(route: Route, dy_TH: Tensor) -> Tensor:
    """What a host gets in backward: scale · dy of its rows, [R, H]."""
    return dy_TH.index_select(0, route.rows_R) * route.scale_R.unsqueeze(1).to(dy_TH.dtype)


def scatter_gradients(
    routes_: list[Route], dx: list[Tensor], dweights: list[Tensor], like_TH: Tensor, top_k: int
) -> tuple[Tensor, Tensor]:
    """(dx [T, H], dweights [T, K] float32) from what the hosts returned, in participant order."""
    dx_TH = torch.zeros(like_TH.shape, dtype=torch.float32, device=like_TH.device)
    dweights_TK = torch.zeros(like_TH.shape[0] * top_k, device=like_TH.device)
    for route, dx_RH, dweights_S in zip(routes_, dx, dweights, strict=True):
        dx_TH.index_add_(0, route.rows_R, dx_RH.float())
        dweights_TK[route.slots_S] = dweights_S / route.scale_R[route.row_of_S]
    return dx_TH.to(like_TH.dtype), dweights_TK.view(-1, top_k)


def integrity_gap(route: Route, gradients: tuple[Tensor, Tensor], y_RH: Tensor) -> float:
    """How far a host's answers are from fitting together, relative to their size.

    The output is linear in the weights, so per row Σ w·dw = ⟨dy, y⟩. `gradients` are the (dy [R, H], dw [S]) as
    sent and returned. Swapped rows, stale weights and corruption break it; a consistent lie does not.
    """
    dy_RH, dweights_S = gradients
    if not route.rows_R.shape[0]:
        return 0.0
    product_RH = dy_RH.float() * y_RH.float()
    expected_R = product_RH.sum(1)
    found_R = torch.zeros_like(route.scale_R).index_add_(0, route.row_of_S, route.weights_S * dweights_S)
    # Not |dy|·|y|: that is √H times what unrelated rows give, and wrong ones would drown in bfloat16's tolerance.
    size_R = torch.linalg.vector_norm(product_RH, dim=1)
    # A row that is tiny beside the others, or too small to be squared, is all rounding.
    size_R = (size_R + 1e-3 * size_R.mean()).clamp_min(1e-20)
    return float(((expected_R - found_R).abs() / size_R).max())
