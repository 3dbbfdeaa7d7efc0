"""GPU memory: what torch holds, and what the driver counts (NVML), which includes the CUDA context and others.

NVML comes from `nvidia-ml-py`; the library object is a parameter, so that a test without a GPU can put another there.
A driver that is absent or stops answering gives None, never an error: figures must not end a run.
"""

import importlib
import logging
from dataclasses import dataclass
from typing import Any

import torch

log = logging.getLogger("pcmoe")


@dataclass(frozen=True, slots=True)
class GpuMemory:
    """Bytes of one device."""

    torch_allocated: int
    """Held by torch's tensors."""
    torch_reserved: int
    """Held by torch's allocator, tensors included."""
    device_used: int | None
    """In use on the device by anybody, as NVML says; None where NVML doesn't answer."""
    device_total: int | None

    def by_kind(self) -> dict[str, int]:
        """The figures that there are, by their names in `/status` and `/metrics`."""
        figures = {
            "allocated": self.torch_allocated,
            "reserved": self.torch_reserved,
            "used": self.device_used,
            "total": self.device_total,
        }
        return {kind: count for kind, count in figures.items() if count is not None}


class GpuMeter:
    """Reads the memory of one CUDA device."""

    def __init__(self, device: torch.device, library: Any | None = None) -> None:
        self._device = device
        self._nvml = importlib.import_module("pynvml") if library is None else library
        self._handle = self._open()

    def read(self) -> GpuMemory:
        """The memory now."""
        used, total = self._driver()
        return GpuMemory(
            torch_allocated=torch.cuda.memory_allocated(self._device),
            torch_reserved=torch.cuda.memory_reserved(self._device),
            device_used=used,
            device_total=total,
        )

    def peak(self) -> int:
        """The most that torch's tensors held at once, in bytes."""
        return torch.cuda.max_memory_allocated(self._device)

    def _open(self) -> Any | None:
        try:
            self._nvml.nvmlInit()
            uuid = str(torch.cuda.get_device_properties(self._device).uuid)
            return self._nvml.nvmlDeviceGetHandleByUUID(uuid if uuid.startswith("GPU-") else f"GPU-{uuid}")
        except self._nvml.NVMLError as error:
            log.warning("NVML doesn't know the GPU (%s): only torch's memory figures will be shown", error)
            return None

    def _driver(self) -> tuple[int | None, int | None]:
        if self._handle is None:
            return None, None
        try:
            memory = self._nvml.nvmlDeviceGetMemoryInfo(self._handle)
            return int(memory.used), int(memory.total)
        except self._nvml.NVMLError as error:
            log.warning("NVML stopped answering (%s): only torch's memory figures will be shown", error)
            self._handle = None
            return None, None


def meter_of(device: torch.device) -> GpuMeter | None:
    """A meter where the device is a CUDA device."""
    return GpuMeter(device) if device.type == "cuda" else None
