"""Text to token ids and back: the model's own tokenizer, or plain bytes.

Shapes: none; token ids are Python ints below `vocabulary_size`.
Neither tokenizer ever touches the network or runs code that comes with a checkpoint.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from pcmoe_node.errors import ConfigError

NO_LENGTH_LIMIT = 10**12
"""Documents are cut by packing, so the tokenizer's own limit, and its warning, don't apply."""


class Tokenizer(Protocol):
    """What the data needs of a tokenizer."""

    @property
    def vocabulary_size(self) -> int:
        """Every id is below this; the model's vocabulary must be at least as large."""

    @property
    def end_of_document(self) -> int:
        """The id that ends every document."""

    def encode(self, text: str) -> list[int]:
        """Ids of `text` alone, without any special token."""

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`; special tokens are left out, broken characters become U+FFFD."""


class ByteLevel:
    """UTF-8 bytes as ids 0–255, 256 ends a document, 257 is padding. Needs no files."""

    END_OF_DOCUMENT = 256
    PADDING = 257

    @property
    def vocabulary_size(self) -> int:
        """258: bytes and the two special ids."""
        return self.PADDING + 1

    @property
    def end_of_document(self) -> int:
        """256."""
        return self.END_OF_DOCUMENT

    def encode(self, text: str) -> list[int]:
        """The UTF-8 bytes of `text`."""
        return list(text.encode("utf-8"))

    def decode(self, ids: Sequence[int]) -> str:
        """Bytes back to text; ids from 256 on are left out."""
        return bytes(i for i in ids if i < self.END_OF_DOCUMENT).decode("utf-8", errors="replace")


class Checkpoint:
    """The tokenizer that lies beside a checkpoint's weights, read by transformers from that folder alone."""

    def __init__(self, folder: Path) -> None:
        """Load it. Raises `ConfigError` where there is none, or where it names no end of document."""
        # Here, because ByteLevel and its users need no transformers.
        from transformers import AutoTokenizer

        if not folder.is_dir():
            raise ConfigError(f"model.checkpoint: {folder}: no such folder, but tokenizer is Checkpoint")
        try:
            tokenizer: Any = AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
        except Exception as error:  # transformers raises a dozen unrelated types here
            raise ConfigError(
                f"model.tokenizer: {folder}: no tokenizer that transformers can read ({type(error).__name__})"
            ) from error
        if tokenizer.eos_token_id is None:
            raise ConfigError(
                f"model.tokenizer: {folder}: has no end-of-sequence token to end documents with"
            )
        tokenizer.model_max_length = NO_LENGTH_LIMIT
        self._tokenizer = tokenizer
        self._vocabulary_size = max(len(tokenizer), int(tokenizer.eos_token_id) + 1)

    @property
    def vocabulary_size(self) -> int:
        """Entries of the tokenizer, added ones included."""
        return self._vocabulary_size

    @property
    def end_of_document(self) -> int:
        """The tokenizer's end-of-sequence id."""
        return int(self._tokenizer.eos_token_id)

    def encode(self, text: str) -> list[int]:
        """Ids of `text` alone; text that spells a special token is taken as text."""
        ids: list[int] = self._tokenizer(text, add_special_tokens=False, split_special_tokens=True)[
            "input_ids"
        ]
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids` without special tokens."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        return text


def load_tokenizer(kind: Literal["Checkpoint", "ByteLevel"], checkpoint: str | None) -> Tokenizer:
    """The tokenizer that `model.tokenizer` names. Raises `ConfigError`."""
    if kind == "ByteLevel":
        return ByteLevel()
    if checkpoint is None:
        raise ConfigError("model.tokenizer: Checkpoint needs model.checkpoint; random weights need ByteLevel")
    return Checkpoint(Path(checkpoint))
