"""Goes on with prompts: the model of the start, then each organisation's of the last committed round."""

import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import GenerationConfig

from pcmoe_node.checkpoint import membership_in, round_folder
from pcmoe_node.config import NodeConfig
from pcmoe_node.errors import ConfigError, ResourceError, StorageError
from pcmoe_node.model import transformers_config
from pcmoe_node.participant import choose_device
from pcmoe_node.tokenizer import Tokenizer, load_tokenizer
from pcmoe_node.whole import BACKBONE, EXPERTS, Whole, build_whole, take_round

log = logging.getLogger("pcmoe")

NEW_TOKENS = 40
"""So many follow a prompt, or fewer: up to the end of a document, and to the longest text the model takes."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """What one organisation's model is to go on with."""

    text: str
    ids: list[int]
    new_tokens: int
    """At most so many may follow."""


def write_continuations(configs: Sequence[NodeConfig], texts: Mapping[str, str], output: Path) -> None:
    """Go on with each organisation's text and write the file, whole or not at all, for its owner's eyes only.

    `configs`: every participant's, in their order. Raises `ConfigError`, `ResourceError` or `StorageError`; none quotes
    a text.
    """
    first = configs[0]
    tokenizer = load_tokenizer(first.model.tokenizer, first.model.checkpoint)
    prompts = _prompts(first, tokenizer, texts)
    round_number = last_committed(configs)
    folders = _folders(configs, round_number)
    if first.training.deterministic:
        torch.set_num_threads(1)

    log.info("building the model of the start")
    whole = build_whole(first, choose_device(first))
    whole.cast(first)
    base = {name: go_on(whole, tokenizer, prompt) for name, prompt in prompts.items()}
    log.info("the model of the start is done")
    for config in configs:
        take_round(whole, config, folders[config.participant], (EXPERTS,))
    found = {}
    for config in configs:
        name = config.participant
        if name in prompts:
            take_round(whole, config, folders[name], (BACKBONE,))
            found[name] = {
                "prompt": prompts[name].text,
                "base": base[name],
                "consortium": go_on(whole, tokenizer, prompts[name]),
                "newTokens": prompts[name].new_tokens,
            }
            log.info("%s: the model of round %d has gone on", name, round_number)
    _write(output, {"round": round_number, "organisations": found})


def last_committed(configs: Sequence[NodeConfig]) -> int:
    """The newest round that anybody knows to be committed, so that everybody has it; `ResourceError` without one."""
    newest = max(membership_in(Path(config.checkpoint_directory)).committed for config in configs)
    if newest == 0:
        raise ResourceError("checkpoint_directory: no participant has a committed round yet")
    return newest


def go_on(whole: Whole, tokenizer: Tokenizer, prompt: Prompt) -> str:
    """What follows the prompt, without it: always the likeliest token, as transformers' own `generate` finds it."""
    model = whole.model.eval()
    settings = GenerationConfig(
        max_new_tokens=prompt.new_tokens,
        do_sample=False,
        eos_token_id=tokenizer.end_of_document,
        pad_token_id=tokenizer.end_of_document,
    )
    ids_BS = torch.tensor([prompt.ids], device=next(model.parameters()).device)
    with torch.inference_mode():
        found_BS: Tensor = model.generate(  # type: ignore[operator]
            input_ids=ids_BS, attention_mask=torch.ones_like(ids_BS), generation_config=settings
        )
    # Together, as some tokenizers drop a space in front of what they decode.
    text, given = tokenizer.decode(found_BS[0].tolist()), tokenizer.decode(prompt.ids)
    if text.startswith(given):
        return text.removeprefix(given)
    return tokenizer.decode(found_BS[0, len(prompt.ids) :].tolist())


def _prompts(config: NodeConfig, tokenizer: Tokenizer, texts: Mapping[str, str]) -> dict[str, Prompt]:
    """Every text as tokens; one `ConfigError` with all that is wrong."""
    context = int(transformers_config(config.model).max_position_embeddings)
    prompts, faults = {}, []
    for name, text in texts.items():
        ids = _encoded(tokenizer, text)
        if not ids:
            faults.append(
                f"--prompt {name}: the model's tokenizer makes no token of it, must make one or more"
            )
        elif len(ids) >= context:
            faults.append(
                f"--prompt {name}: is {len(ids)} tokens, must be fewer than max_position_embeddings, {context}"
            )
        else:
            prompts[name] = Prompt(text, ids, min(NEW_TOKENS, context - len(ids)))
    if faults:
        raise ConfigError("; ".join(faults))
    return prompts


def _encoded(tokenizer: Tokenizer, text: str) -> list[int]:
    """No token where the tokenizer fails: whatever it says may quote the text."""
    try:
        return tokenizer.encode(text)
    except Exception as error:
        log.warning("the tokenizer failed (%s)", type(error).__name__)
        return []


def _folders(configs: Sequence[NodeConfig], round_number: int) -> dict[str, Path]:
    """Where each participant has stored the round; one `ResourceError` that names all who haven't."""
    folders = {c.participant: round_folder(Path(c.checkpoint_directory), round_number) for c in configs}
    missing = [
        f"{name}: {folder} is missing"
        for name, folder in folders.items()
        if not (folder / "state.json").exists()
    ]
    if missing:
        raise ResourceError(
            f"checkpoint_directory: round {round_number} is committed, but not all of it is here: {'; '.join(missing)}"
        )
    return folders


def _write(path: Path, found: object) -> None:
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        temporary.unlink(missing_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(json.dumps(found, indent=1) + "\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    except OSError as error:
        raise StorageError(f"--output {path}: can't be written: {error.strerror}") from error
