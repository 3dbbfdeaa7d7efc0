"""Reads a participant's records, one after the other, as they lie on its disk.

Text: every `*.txt` file is one document; a file above 64 KiB is split at paragraph ends (blank lines)
into documents of at most 64 KiB, so that choosing held-out documents means something for one long file
too (a paragraph above 64 KiB is split at a line end, such a line between two characters).
JSON Lines: every non-empty line of every `*.jsonl` file is a record, its `text_field` one document.
Folders are walked in sorted order; names that start with a dot are left out (a mounted ConfigMap has its
files a second time in such a folder). Blank documents are left out.

Every fault is a `DataError` that names path, record number and reason, and nothing that was read: it is
raised outside the handler of the exception it replaces, because that one quotes what it choked on.
"""

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from pcmoe_node.config import DatasetConfig
from pcmoe_node.errors import DataError

DOCUMENT_BYTES = 64 * 1024
"""Longest document, in UTF-8 bytes, that a text file becomes."""

RECORD_BYTES = 64 * 1024 * 1024
"""Longest line that is read; a longer one is most likely not a text file at all."""

SUFFIXES = {"Text": ".txt", "JSONLines": ".jsonl"}
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """One document, and where it came from for the sake of errors."""

    path: Path
    number: int
    """From 1: the line in JSON Lines, the document within a text file."""
    text: str = field(repr=False)


def read_records(config: DatasetConfig) -> Iterator[Record]:
    """All documents of the dataset, in sorted order of files. Raises `DataError`."""
    read = _read_text if config.format == "Text" else _read_json_lines
    for path in _find_files(Path(config.path), SUFFIXES[config.format]):
        with _opened(path) as file:
            yield from (record for record in read(path, file, config.text_field) if record.text.strip())


def split_document(lines: Iterable[str], limit: int = DOCUMENT_BYTES) -> Iterator[str]:
    """Join `lines` into documents of at most `limit` UTF-8 bytes that end at a blank line where they can."""
    held: list[tuple[str, int]] = []
    size = 0
    paragraph_end = 0
    for line in lines:
        for piece, length in _pieces(line, limit):
            while held and size + length > limit:
                cut = paragraph_end or len(held)
                yield "".join(text for text, _ in held[:cut])
                held = held[cut:]
                size = sum(n for _, n in held)
                paragraph_end = 0
            held.append((piece, length))
            size += length
            if not piece.strip():
                paragraph_end = len(held)
    if held:
        yield "".join(text for text, _ in held)


def _pieces(line: str, limit: int) -> Iterator[tuple[str, int]]:
    length = len(line.encode("utf-8"))
    if length <= limit:
        yield line, length
        return
    step = max(1, limit // 4)  # no character is longer than four bytes
    for start in range(0, len(line), step):
        piece = line[start : start + step]
        yield piece, len(piece.encode("utf-8"))


def _find_files(path: Path, suffix: str) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise DataError(f"{path}: no such file or folder")
    found: list[Path] = []
    for folder, folders, files in os.walk(path, onerror=_refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        names = sorted(name for name in files if name.endswith(suffix) and not name.startswith("."))
        found += [Path(folder) / name for name in names]
    if not found:
        raise DataError(f"{path}: no *{suffix} file in this folder")
    return sorted(found)


def _refuse(error: OSError) -> None:
    raise DataError(f"{error.filename}: can't be read: {error.strerror}") from error


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        reason = error.strerror
    raise DataError(f"{path}: can't be read: {reason}")


def _read_text(path: Path, file: BinaryIO, _: str) -> Iterator[Record]:
    lines = (_decoded(path, "line", number, line) for number, line in _lines(path, "line", file))
    for number, text in enumerate(split_document(lines), start=1):
        yield Record(path=path, number=number, text=text)


def _read_json_lines(path: Path, file: BinaryIO, text_field: str) -> Iterator[Record]:
    for number, line in _lines(path, "record", file):
        if line.strip():
            text = _json_text(path, number, _decoded(path, "record", number, line), text_field)
            yield Record(path=path, number=number, text=text)


def _lines(path: Path, unit: str, file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    number = 0
    while True:
        try:
            line = file.readline(RECORD_BYTES + 1)
            reason = ""
        except OSError as error:
            reason = f"can't be read: {error.strerror}"
        number += 1
        if reason:
            raise DataError(f"{path}: {unit} {number}: {reason}")
        if not line:
            return
        if len(line) > RECORD_BYTES:
            raise DataError(f"{path}: {unit} {number}: longer than {RECORD_BYTES // 2**20} MiB")
        yield number, line.removeprefix(BYTE_ORDER_MARK) if number == 1 else line


def _decoded(path: Path, unit: str, number: int, line: bytes) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError:
        pass
    raise DataError(f"{path}: {unit} {number}: not valid UTF-8")


def _json_text(path: Path, number: int, line: str, text_field: str) -> str:
    reason = ""
    record: object = None
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        reason = "not valid JSON"
    if not reason and not isinstance(record, dict):
        reason = "not a JSON object"
    if reason or not isinstance(record, dict):
        raise DataError(f"{path}: record {number}: {reason}")
    if text_field not in record:
        raise DataError(f"{path}: record {number}: has no field {text_field!r} (dataset.textField)")
    text = record[text_field]
    if not isinstance(text, str):
        raise DataError(f"{path}: record {number}: field {text_field!r} is not a string")
    if any("\ud800" <= c <= "\udfff" for c in text):
        raise DataError(f"{path}: record {number}: field {text_field!r} holds half a surrogate pair")
    return text
