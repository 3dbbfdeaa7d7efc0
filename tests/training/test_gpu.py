"""GPU figures come from torch and the driver; a driver that fails costs figures, never the run."""

import logging
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.training.fake_nvml import DRIVER_NOT_LOADED, GPU_IS_LOST, NOT_SUPPORTED, UNINITIALIZED, FakeNvml

from pcmoe_node import gpu as module
from pcmoe_node.gpu import GpuMeter, meter_of


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """torch's own figures, as a machine with a GPU would give them."""
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _device: 5 << 30)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _device: 6 << 30)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _device: 9 << 30)
    properties = SimpleNamespace(uuid="1b2c")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _device: properties)
    return torch.device("cuda")


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Iterator[Any]:
    """What was logged so far."""
    caplog.set_level(logging.INFO)
    yield lambda: [record.getMessage() for record in caplog.records]


def test_a_device_is_found_by_its_uuid_and_all_figures_are_read(cuda: torch.device, said: Any) -> None:
    library = FakeNvml()
    figures = GpuMeter(cuda, library).read()
    assert library.asked == ["GPU-1b2c"]
    assert figures.by_kind() == {
        "allocated": 5 << 30,
        "reserved": 6 << 30,
        "used": 7 << 30,
        "total": 80 << 30,
    }
    assert (figures.state, figures.torch_peak) == ("ok", 9 << 30)
    assert (figures.utilization, figures.power, figures.temperature) == (0.93, 412.5, 61.0)
    assert (figures.ecc_corrected, figures.ecc_uncorrected) == (2, 1)
    assert said() == []


def test_a_slice_is_found_by_its_uuid_and_shows_its_own_memory_and_no_power(
    cuda: torch.device, said: Any
) -> None:
    library = FakeNvml("MIG-1b2c")
    for name in ("UtilizationRates", "PowerUsage", "Temperature", "TotalEccErrors"):
        library.fails[f"nvmlDeviceGet{name}"] = NOT_SUPPORTED
    figures = GpuMeter(cuda, library).read()
    assert library.asked == ["GPU-1b2c", "MIG-1b2c"]
    assert (figures.state, figures.memory_used, figures.memory_total) == ("mig", 7 << 30, 80 << 30)
    assert figures.utilization is figures.power is figures.temperature is figures.ecc_corrected is None
    assert said() == []


def test_a_divided_device_shows_nothing_that_belongs_to_other_slices(cuda: torch.device) -> None:
    library = FakeNvml()
    library.slices = True
    figures = GpuMeter(cuda, library).read()
    assert (figures.state, figures.memory_used, figures.utilization) == ("mig", None, None)


def test_without_a_driver_torch_still_tells_its_own(cuda: torch.device, said: Any) -> None:
    library = FakeNvml()
    library.fails["nvmlInit"] = DRIVER_NOT_LOADED
    meter = GpuMeter(cuda, library)
    for _ in range(3):
        figures = meter.read()
    assert figures.state == "no_driver"
    assert figures.by_kind() == {"allocated": 5 << 30, "reserved": 6 << 30}
    assert said() == [
        "NVML can't be asked for the GPU (Driver Not Loaded): only torch's figures will be shown"
    ]


def test_a_device_that_the_driver_does_not_know_is_one_without_a_driver(cuda: torch.device) -> None:
    assert GpuMeter(cuda, FakeNvml("GPU-other")).read().state == "no_driver"


def test_a_machine_without_nvidias_library_is_one_without_a_driver(cuda: torch.device, said: Any) -> None:
    """The real binding, which finds no `libnvidia-ml.so.1` where there is no driver, or no such device."""
    assert GpuMeter(cuda).read().state == "no_driver"
    assert len(said()) == 1


def test_an_installation_without_the_binding_is_one_without_a_driver(
    cuda: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(name: str) -> Any:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr("pcmoe_node.gpu.importlib.import_module", absent)
    assert GpuMeter(cuda).read().state == "no_driver"


@pytest.mark.parametrize("error", [GPU_IS_LOST, UNINITIALIZED])
def test_a_gpu_that_falls_off_the_bus_is_said_once_and_once_more_when_it_is_back(
    cuda: torch.device, said: Any, error: int
) -> None:
    library = FakeNvml()
    meter = GpuMeter(cuda, library)
    library.fails["nvmlDeviceGetMemoryInfo"] = error
    for _ in range(3):
        figures = meter.read()
        assert (figures.state, figures.memory_used, figures.power) == ("lost", None, None)
    assert len(said()) == 1 and said()[0].startswith("NVML stopped answering for the GPU (")
    library.fails.clear()
    for _ in range(3):
        assert meter.read().state == "ok"
    assert said()[1:] == ["NVML answers for the GPU again"]


def test_a_device_that_does_not_count_its_memory_is_not_lost(cuda: torch.device, said: Any) -> None:
    library = FakeNvml()
    library.fails["nvmlDeviceGetMemoryInfo"] = NOT_SUPPORTED
    figures = GpuMeter(cuda, library).read()
    assert (figures.state, figures.memory_used, figures.temperature) == ("ok", None, 61.0)
    assert said() == []


def test_a_driver_that_does_not_answer_keeps_one_reader_waiting_and_no_other(
    cuda: torch.device, monkeypatch: pytest.MonkeyPatch, said: Any
) -> None:
    library = FakeNvml()
    meter = GpuMeter(cuda, library)
    assert meter.read().memory_used == 7 << 30
    library.waits.clear()
    stuck = threading.Thread(target=meter.read)
    stuck.start()
    try:
        while not meter._lock.locked():
            assert stuck.is_alive()
        assert meter.read().memory_used == 7 << 30  # what it told last
        monkeypatch.setattr(module, "STUCK_SECONDS", 0.0)
        for _ in range(3):
            assert (meter.read().state, meter.read().memory_used) == ("lost", None)
        assert len(said()) == 1
    finally:
        library.waits.set()
        stuck.join(20)
    assert meter.read().state == "ok"


def test_a_cpu_has_no_meter() -> None:
    assert meter_of(torch.device("cpu")) is None


@pytest.mark.gpu
def test_the_driver_counts_at_least_what_torch_holds() -> None:
    held = torch.zeros(64 << 20, dtype=torch.uint8, device="cuda")
    meter = meter_of(held.device)
    assert meter is not None
    figures = meter.read()
    assert figures.state in ("ok", "mig") and figures.memory_used is not None
    assert figures.torch_peak >= figures.torch_allocated >= held.numel()
    assert figures.memory_used >= figures.torch_reserved
