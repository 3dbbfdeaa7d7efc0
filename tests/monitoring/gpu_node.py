"""A real node that believes to train on a GPU: `python gpu_node.py STEERING --config FILE`.

It trains on the CPU; only what a GPU says of itself is made up. torch's figures stay as they are here, NVML is
`FakeNvml` in the place of nvidia-ml-py, found by the node's own loader, and tells what is in the file STEERING.
"""

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

GIB = 1 << 30
TOTAL, ALLOCATED, RESERVED = 80 * GIB, 5 * GIB, 6 * GIB


@dataclass(frozen=True, kw_only=True, slots=True)
class Told:
    """What the driver tells."""

    used: int = 7 * GIB
    """Bytes in use on the device."""
    uncorrected: int = 1
    """Memory errors that were not corrected, since the driver was loaded."""
    lost: bool = False
    """The device is gone."""


def steer(file: Path, **told: Any) -> None:
    """From now on tell this."""
    unfinished = file.with_suffix(".new")
    unfinished.write_text(json.dumps(asdict(Told(**told))))
    unfinished.replace(file)


def pretend(file: Path) -> None:
    """Put the driver, torch's figures and the meter in their places."""
    import torch
    from tests.training.fake_nvml import GPU_IS_LOST, FakeNvml

    import pcmoe_node.__main__ as program
    from pcmoe_node.gpu import meter_of

    class Steered(FakeNvml):
        def _call(self, name: str) -> None:
            told = Told(**json.loads(file.read_text()))
            self.used, self.errors = told.used, {**self.errors, 1: told.uncorrected}
            self.fails = {"nvmlDeviceGetMemoryInfo": GPU_IS_LOST} if told.lost else {}
            super()._call(name)

    sys.modules["pynvml"] = cast(Any, Steered())
    made_up = {
        "memory_allocated": ALLOCATED,
        "max_memory_allocated": ALLOCATED,
        "memory_reserved": RESERVED,
        "get_device_properties": SimpleNamespace(uuid=Steered().uuid.removeprefix("GPU-")),
    }
    for name, value in made_up.items():
        setattr(torch.cuda, name, lambda _device, value=value: value)
    cast(Any, program).meter_of = lambda _device: meter_of(torch.device("cuda"))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    pretend(Path(sys.argv.pop(1)))
    from pcmoe_node.__main__ import main

    main()
