"""What a checkpoint folder holds and its fingerprint, without torch: the operator's commands use it too.

sha256 over, for every tensor sorted by name:  name \n dtype \n shape as JSON \n hex SHA-256 of its bytes \n
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from pcmoe_node.errors import ResourceError

_LARGEST_HEADER = 100 << 20
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """Where one tensor's bytes are."""

    file: Path
    dtype: str
    """As safetensors names it, such as F32."""
    shape: tuple[int, ...]
    offset: int
    """Byte in the file where the tensor starts."""
    length: int
    """Bytes."""


def read_headers(folder: Path) -> dict[str, TensorEntry]:
    """Every tensor of every `*.safetensors` file in the folder; `ResourceError` if there is none, or it is broken."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ResourceError(f"{folder}: no *.safetensors file there")
    entries: dict[str, TensorEntry] = {}
    for file in files:
        for name, entry in _read_header(file).items():
            if name in entries:
                raise ResourceError(f"{file}: tensor {name} is in {entries[name].file.name} too")
            entries[name] = entry
    return entries


def fingerprint(folder: Path) -> str:
    """`sha256:…` of the checkpoint in a folder; files are read once, in chunks."""
    total = hashlib.sha256()
    for name, entry in sorted(read_headers(folder).items()):
        shape = json.dumps(list(entry.shape), separators=(",", ":"))
        total.update(f"{name}\n{entry.dtype}\n{shape}\n{_digest(entry)}\n".encode())
    return f"sha256:{total.hexdigest()}"


def _digest(entry: TensorEntry) -> str:
    digest, left = hashlib.sha256(), entry.length
    with open(entry.file, "rb") as file:
        file.seek(entry.offset)
        while left:
            chunk = file.read(min(_CHUNK, left))
            if not chunk:
                raise ResourceError(f"{entry.file}: ends {left} bytes early")
            digest.update(chunk)
            left -= len(chunk)
    return digest.hexdigest()


def _read_header(file: Path) -> dict[str, TensorEntry]:
    try:
        with open(file, "rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            if size > _LARGEST_HEADER:
                raise ResourceError(f"{file}: not a safetensors file: its header would be {size} bytes")
            header = json.loads(stream.read(size))
        return {
            name: TensorEntry(
                file=file,
                dtype=str(entry["dtype"]),
                shape=tuple(int(n) for n in entry["shape"]),
                offset=8 + size + int(entry["data_offsets"][0]),
                length=int(entry["data_offsets"][1]) - int(entry["data_offsets"][0]),
            )
            for name, entry in header.items()
            if name != "__metadata__"
        }
    except OSError as error:
        raise ResourceError(f"{file}: can't be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ResourceError(f"{file}: not a safetensors file: {type(error).__name__} in its header") from None
