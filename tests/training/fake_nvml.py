"""NVML without a GPU: what `nvidia-ml-py` offers, as far as a node asks for it."""

import threading
from types import SimpleNamespace
from typing import Any

NOT_SUPPORTED, NOT_FOUND, GPU_IS_LOST, DRIVER_NOT_LOADED, UNINITIALIZED = 3, 6, 15, 9, 1


class RefusedError(Exception):
    """nvidia-ml-py's error."""

    def __init__(self, value: int) -> None:
        super().__init__(
            {GPU_IS_LOST: "GPU is lost", DRIVER_NOT_LOADED: "Driver Not Loaded"}.get(value, value)
        )
        self.value = value


class FakeNvml:
    """A driver with one device, behind the names that nvidia-ml-py has."""

    NVMLError = RefusedError
    NVML_ERROR_NOT_SUPPORTED = NOT_SUPPORTED
    NVML_ERROR_NO_PERMISSION = 4
    NVML_TEMPERATURE_GPU = 0
    NVML_MEMORY_ERROR_TYPE_CORRECTED = 0
    NVML_MEMORY_ERROR_TYPE_UNCORRECTED = 1
    NVML_VOLATILE_ECC = 0

    def __init__(self, uuid: str = "GPU-1b2c") -> None:
        self.uuid = uuid
        self.asked: list[str] = []
        self.fails: dict[str, int] = {}
        """Error by function."""
        self.slices = False
        """The device is divided."""
        self.used = 7 << 30
        self.errors = {self.NVML_MEMORY_ERROR_TYPE_CORRECTED: 2, self.NVML_MEMORY_ERROR_TYPE_UNCORRECTED: 1}
        self.waits = threading.Event()
        self.waits.set()

    def _call(self, name: str) -> None:
        if name in self.fails:
            raise RefusedError(self.fails[name])

    def nvmlInit(self) -> None:
        self._call("nvmlInit")

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        self.asked.append(uuid)
        if uuid != self.uuid:
            raise RefusedError(NOT_FOUND)
        return uuid

    def nvmlDeviceIsMigDeviceHandle(self, handle: str) -> int:
        return int(handle.startswith("MIG-"))

    def nvmlDeviceGetMigMode(self, handle: str) -> list[int]:
        self._call("nvmlDeviceGetMigMode")
        return [int(self.slices), int(self.slices)]

    def nvmlDeviceGetMemoryInfo(self, _handle: str) -> Any:
        assert self.waits.wait(20)
        self._call("nvmlDeviceGetMemoryInfo")
        return SimpleNamespace(used=self.used, total=80 << 30)

    def nvmlDeviceGetUtilizationRates(self, _handle: str) -> Any:
        self._call("nvmlDeviceGetUtilizationRates")
        return SimpleNamespace(gpu=93, memory=40)

    def nvmlDeviceGetPowerUsage(self, _handle: str) -> int:
        self._call("nvmlDeviceGetPowerUsage")
        return 412_500

    def nvmlDeviceGetTemperature(self, _handle: str, sensor: int) -> int:
        assert sensor == self.NVML_TEMPERATURE_GPU
        self._call("nvmlDeviceGetTemperature")
        return 61

    def nvmlDeviceGetTotalEccErrors(self, _handle: str, kind: int, counter: int) -> int:
        assert counter == self.NVML_VOLATILE_ECC
        self._call("nvmlDeviceGetTotalEccErrors")
        return self.errors[kind]
