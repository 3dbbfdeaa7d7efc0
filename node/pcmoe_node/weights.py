"""Reads a checkpoint folder slice by slice: a node never holds experts that it doesn't host.

Bytes are read straight into their tensor (`preadinto`-style, no mmap: mapped pages would count as resident and
double the peak). The layout is that of the transformers module's own state_dict, experts fused in one tensor.

Published checkpoints hold one tensor per expert instead. Those are read whole, by transformers' own loader, and only
then cut: correct, but for a while the node holds the whole model.
"""

import logging
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from pcmoe_node.errors import ResourceError
from pcmoe_node.fingerprint import TensorEntry, read_headers

_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float64}


log = logging.getLogger("pcmoe")


class Reader(Protocol):
    """A checkpoint's tensors by the names of the transformers module."""

    def __contains__(self, name: str) -> bool:
        """Whether there is such a tensor."""

    def read(self, name: str, shape: Sequence[int]) -> Tensor:
        """A whole tensor, which must have this shape."""

    def read_rows(self, name: str, rows: Sequence[int], shape: Sequence[int]) -> Tensor:
        """Some rows of a tensor that must have this whole shape: [len(rows), *shape[1:]]."""


def open_checkpoint(folder: Path) -> Reader:
    """The reader for a folder's layout."""
    reader = CheckpointReader(folder)
    if not any(re.search(r"\.experts\.\d+\.", name) for name in reader.names()):
        return reader
    log.warning(
        "%s has one tensor per expert: the whole model is loaded first, so the peak of memory is not bounded by the "
        "own share",
        folder,
    )
    try:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise ResourceError(f"{folder}: transformers can't load it: {type(error).__name__}") from error
    return StateReader(folder, model.state_dict())


class StateReader:
    """A state_dict behind the reader's interface."""

    def __init__(self, folder: Path, state: Mapping[str, Tensor]) -> None:
        self._folder = folder
        self._state = state

    def __contains__(self, name: str) -> bool:
        return name in self._state

    def read(self, name: str, shape: Sequence[int]) -> Tensor:
        """A whole tensor, which must have this shape."""
        if name not in self._state:
            raise ResourceError(f"{self._folder}: has no tensor {name}, which the model's architecture needs")
        tensor = self._state[name]
        if tensor.shape != torch.Size(shape):
            raise ResourceError(
                f"{self._folder}: {name}: shape is {list(tensor.shape)}, must be {list(shape)}"
            )
        return tensor

    def read_rows(self, name: str, rows: Sequence[int], shape: Sequence[int]) -> Tensor:
        """Some rows of a tensor that must have this whole shape: [len(rows), *shape[1:]]."""
        return self.read(name, shape)[list(rows)]


class CheckpointReader:
    """The tensors of the `*.safetensors` files in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._entries: dict[str, TensorEntry] = read_headers(folder)

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def names(self) -> set[str]:
        """All tensor names."""
        return set(self._entries)

    def read(self, name: str, shape: Sequence[int]) -> Tensor:
        """A whole tensor, which must have this shape."""
        entry = self._entry(name)
        self._require(
            entry.shape == tuple(shape), name, f"shape is {list(entry.shape)}, must be {list(shape)}"
        )
        return self._bytes(entry, 0, entry.length, tuple(shape))

    def read_rows(self, name: str, rows: Sequence[int], shape: Sequence[int]) -> Tensor:
        """Some rows of a tensor that must have this whole shape: [len(rows), *shape[1:]]."""
        entry = self._entry(name)
        self._require(
            entry.shape == tuple(shape), name, f"shape is {list(entry.shape)}, must be {list(shape)}"
        )
        row = entry.length // shape[0]
        parts = [self._bytes(entry, index * row, row, tuple(shape[1:])) for index in rows]
        return torch.stack(parts) if parts else torch.empty(0, *shape[1:])

    def _entry(self, name: str) -> TensorEntry:
        if name not in self._entries:
            raise ResourceError(f"{self.folder}: has no tensor {name}, which the model's architecture needs")
        return self._entries[name]

    def _require(self, holds: bool, name: str, rule: str) -> None:
        if not holds:
            raise ResourceError(f"{self.folder}: {name}: {rule}")

    def _bytes(self, entry: TensorEntry, offset: int, length: int, shape: tuple[int, ...]) -> Tensor:
        self._require(
            entry.dtype in _DTYPES, str(entry.file), f"dtype {entry.dtype} isn't a float type known here"
        )
        memory = bytearray(length)
        view, done = memoryview(memory), 0
        with open(entry.file, "rb", buffering=0) as file:
            while done < length:
                read = os.preadv(file.fileno(), [view[done:]], entry.offset + offset + done)
                if read == 0:
                    raise ResourceError(f"{entry.file}: ends {length - done} bytes early")
                done += read
        flat = torch.frombuffer(memory, dtype=_DTYPES[entry.dtype]) if length else torch.empty(0)
        return flat.view(shape)
