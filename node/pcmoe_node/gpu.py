"""What a GPU tells of itself: torch's memory, and what the driver counts (NVML), which includes the context and others.

NVML comes from `nvidia-ml-py`; the library object is a parameter, so that a test without a GPU can put another there.
A driver that is absent or stops answering costs figures, never the run, and each change is logged once.
"""

import importlib
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import torch

from pcmoe_node.figures import GpuFigures

log = logging.getLogger("pcmoe")

STUCK_SECONDS = 10.0
"""A driver that has not answered for so long counts as one that lost its GPU."""
_WORDS = {
    "ok": "NVML answers for the GPU again",
    "mig": "NVML answers for the slice of the GPU again",
    "no_driver": "NVML can't be asked for the GPU",
    "lost": "NVML stopped answering for the GPU",
}


class GpuMeter:
    """Reads one CUDA device; any thread may ask."""

    def __init__(self, device: torch.device, library: Any | None = None) -> None:
        self._device = device
        self._lock = threading.Lock()
        self._asked = 0.0
        """When the driver was asked last (monotonic)."""
        self._driver: dict[str, Any] = {}
        """What it told."""
        self._state = self._present = "ok"
        self._whole = True
        """The handle is of what this process may use, not of a device of which it has a slice."""
        self._handle: Any | None = None
        try:
            self._nvml = importlib.import_module("pynvml") if library is None else library
            self._nvml.nvmlInit()
            self._handle = self._open()
        except ImportError as error:
            self._become("no_driver", str(error))
        except self._nvml.NVMLError as error:
            self._become("no_driver", str(error))

    def read(self) -> GpuFigures:
        """The figures now. Whoever asks while another waits for the driver gets what it told last."""
        if self._lock.acquire(blocking=False):
            try:
                self._asked = time.monotonic()
                self._driver = self._ask()
            finally:
                self._lock.release()
        elif time.monotonic() - self._asked > STUCK_SECONDS:
            self._driver = {}
            self._become("lost", f"no answer for {STUCK_SECONDS:g} s")
        return GpuFigures(
            state=self._state,
            torch_allocated=torch.cuda.memory_allocated(self._device),
            torch_reserved=torch.cuda.memory_reserved(self._device),
            torch_peak=self.peak(),
            **self._driver,
        )

    def peak(self) -> int:
        """The most that torch's tensors held at once, in bytes."""
        return torch.cuda.max_memory_allocated(self._device)

    def _open(self) -> Any:
        """NVML's handle of torch's device. torch says the UUID of a slice as it says that of a whole device."""
        uuid = str(torch.cuda.get_device_properties(self._device).uuid)
        names = [uuid] if uuid.startswith(("GPU-", "MIG-")) else [f"GPU-{uuid}", f"MIG-{uuid}"]
        try:
            handle = self._nvml.nvmlDeviceGetHandleByUUID(names[0])
        except self._nvml.NVMLError:
            handle = self._nvml.nvmlDeviceGetHandleByUUID(names[-1])
        if self._told(lambda: self._nvml.nvmlDeviceIsMigDeviceHandle(handle)):
            self._state = self._present = "mig"
        elif self._told(lambda: self._nvml.nvmlDeviceGetMigMode(handle)[0]):
            self._state, self._present, self._whole = "mig", "mig", False
        return handle

    def _ask(self) -> dict[str, Any]:
        """What the driver tells; what it doesn't is None. Nothing where it can't be asked, or only for all slices."""
        if self._handle is None or not self._whole:
            return {}
        nvml, handle = self._nvml, self._handle
        memory = None
        try:
            memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        except nvml.NVMLError as error:
            if error.value not in (nvml.NVML_ERROR_NOT_SUPPORTED, nvml.NVML_ERROR_NO_PERMISSION):
                self._become("lost", str(error))
                return {}
        self._become(self._present, "")
        ratio = self._told(lambda: nvml.nvmlDeviceGetUtilizationRates(handle).gpu)
        milliwatts = self._told(lambda: nvml.nvmlDeviceGetPowerUsage(handle))
        return {
            "memory_used": None if memory is None else int(memory.used),
            "memory_total": None if memory is None else int(memory.total),
            "utilization": None if ratio is None else ratio / 100,
            "power": None if milliwatts is None else milliwatts / 1000,
            "temperature": self._told(
                lambda: float(nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU))
            ),
            "ecc_corrected": self._errors("NVML_MEMORY_ERROR_TYPE_CORRECTED"),
            "ecc_uncorrected": self._errors("NVML_MEMORY_ERROR_TYPE_UNCORRECTED"),
        }

    def _errors(self, kind: str) -> Any | None:
        nvml = self._nvml
        return self._told(
            lambda: nvml.nvmlDeviceGetTotalEccErrors(
                self._handle, getattr(nvml, kind), nvml.NVML_VOLATILE_ECC
            )
        )

    def _told(self, ask: Callable[[], Any]) -> Any | None:
        """An answer, or None: not every device has everything (a slice no power, a notebook's GPU no ECC)."""
        try:
            return ask()
        except self._nvml.NVMLError:
            return None

    def _become(self, state: str, why: str) -> None:
        if state != self._state:
            self._state = state
            log.warning("%s%s", _WORDS[state], f" ({why}): only torch's figures will be shown" if why else "")


def meter_of(device: torch.device) -> GpuMeter | None:
    """A meter where the device is a CUDA device."""
    return GpuMeter(device) if device.type == "cuda" else None
