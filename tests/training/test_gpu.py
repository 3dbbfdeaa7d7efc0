"""GPU figures come from torch and the driver; a driver that fails costs figures, never the run."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pcmoe_node.gpu import GpuMeter, meter_of


class FakeNvml:
    """A driver with one device, behind the names that nvidia-ml-py has."""

    class NVMLError(Exception):
        pass

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.broken = False
        self.absent = False

    def nvmlInit(self) -> None:
        if self.absent:
            raise self.NVMLError("Driver Not Loaded")

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        self.asked.append(uuid)
        return uuid

    def nvmlDeviceGetMemoryInfo(self, _handle: str) -> Any:
        if self.broken:
            raise self.NVMLError("GPU is lost")
        return SimpleNamespace(used=7 << 30, total=80 << 30)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """torch's own figures, as a machine with a GPU would give them."""
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _device: 5 << 30)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _device: 6 << 30)
    properties = SimpleNamespace(uuid="1b2c")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _device: properties)
    return torch.device("cuda")


def test_a_device_is_found_by_its_uuid_and_all_four_figures_are_read(cuda: torch.device) -> None:
    library = FakeNvml()
    memory = GpuMeter(cuda, library).read()
    assert library.asked == ["GPU-1b2c"]
    assert memory.by_kind() == {"allocated": 5 << 30, "reserved": 6 << 30, "used": 7 << 30, "total": 80 << 30}


def test_without_a_driver_torch_still_tells_its_own(cuda: torch.device) -> None:
    library = FakeNvml()
    library.absent = True
    assert GpuMeter(cuda, library).read().by_kind() == {"allocated": 5 << 30, "reserved": 6 << 30}


def test_a_gpu_that_falls_off_the_bus_is_said_once_and_not_asked_again(
    cuda: torch.device, caplog: pytest.LogCaptureFixture
) -> None:
    library = FakeNvml()
    meter = GpuMeter(cuda, library)
    library.broken = True
    for _ in range(3):
        assert meter.read().device_used is None
    assert [record.getMessage() for record in caplog.records] == [
        "NVML stopped answering (GPU is lost): only torch's memory figures will be shown"
    ]


def test_a_cpu_has_no_meter() -> None:
    assert meter_of(torch.device("cpu")) is None


@pytest.mark.gpu
def test_the_driver_counts_at_least_what_torch_holds() -> None:
    held = torch.zeros(64 << 20, dtype=torch.uint8, device="cuda")
    meter = meter_of(held.device)
    assert meter is not None
    memory = meter.read()
    assert memory.device_used is not None
    assert memory.torch_allocated >= held.numel()
    assert memory.device_used >= memory.torch_reserved
