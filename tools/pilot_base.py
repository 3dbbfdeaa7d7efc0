"""Trains the small dense byte-level model that the pilot starts from.

    PYTHONPATH=node python tools/pilot_base.py TEXTS --output manifests/samples/base

TEXTS is a folder of *.txt, as `pilot_texts.py` writes it (DIR/base). One thread and a fixed seed: the same
machine and torch give the same weights. 4,000 steps, 8 million bytes, take 20 minutes on one quiet core. The
result is shipped, so nobody needs to run this.
"""

import argparse
import json
import logging
import math
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as safetensors_bytes
from transformers import Qwen3Config, Qwen3ForCausalLM

from pcmoe_node.config import DatasetConfig
from pcmoe_node.data import Corpus, open_corpus
from pcmoe_node.packing import NO_LABEL, Batch
from pcmoe_node.tokenizer import ByteLevel

log = logging.getLogger("pilot_base")

PUBLIC_SECRET = b"the text of the base is public, so is its order"
ARCHITECTURE: dict[str, Any] = {
    "vocab_size": 264,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    "initializer_range": 0.04,
    "bos_token_id": None,
    "eos_token_id": ByteLevel.END_OF_DOCUMENT,
    "pad_token_id": None,
}
SEQUENCE_LENGTH = 256
SEQUENCES = 8
WARMUP_STEPS = 100
HELD_OUT_SEQUENCES = 64


def main() -> None:
    """Train, evaluate on held-out documents, save."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("texts", type=Path, help="folder of *.txt files")
    parser.add_argument(
        "--output", type=Path, required=True, help="folder for config.json and base.safetensors"
    )
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = DatasetConfig(path=str(arguments.texts), format="Text", text_field="text", held_out_percent=1)
    corpus = open_corpus(config, ByteLevel(), PUBLIC_SECRET, SEQUENCE_LENGTH)
    model = Qwen3ForCausalLM(Qwen3Config(**ARCHITECTURE))
    train(model, corpus, arguments.steps, arguments.learning_rate)
    save(model, arguments.output)


def train(model: Any, corpus: Corpus, steps: int, learning_rate: float) -> None:
    """AdamW with warm-up and cosine decay to a tenth."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.95))
    started = time.monotonic()
    smooth = math.log(ARCHITECTURE["vocab_size"])
    for step in range(steps):
        progress = step / steps
        rate = learning_rate * min((step + 1) / WARMUP_STEPS, 0.55 + 0.45 * math.cos(math.pi * progress))
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = loss_sum(model, batch := corpus.training_batch(step * SEQUENCES, SEQUENCES)) / batch.tokens
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        smooth += 0.02 * (loss.item() - smooth)
        if (step + 1) % 100 == 0:
            seconds = time.monotonic() - started
            log.info("step %5d  %6.0f s  training loss %.4f nats per byte", step + 1, seconds, smooth)
        if (step + 1) % 500 == 0 or step + 1 == steps:
            log.info("step %5d  held-out loss %.4f nats per byte", step + 1, held_out_loss(model, corpus))


def loss_sum(model: Any, batch: Batch) -> torch.Tensor:
    """Sum of cross-entropy over the supervised positions."""
    output = model(input_ids=batch.ids_BS, position_ids=batch.positions_BS, use_cache=False)
    return torch.nn.functional.cross_entropy(
        output.logits.flatten(0, 1), batch.labels_BS.flatten(), ignore_index=NO_LABEL, reduction="sum"
    )


@torch.no_grad()
def held_out_loss(model: Any, corpus: Corpus) -> float:
    """Mean over held-out bytes."""
    batches = corpus.held_out_batches(HELD_OUT_SEQUENCES, SEQUENCES)
    return sum(loss_sum(model, b).item() for b in batches) / sum(b.tokens for b in batches)


def save(model: Any, folder: Path) -> None:
    """config.json and base.safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "dtype": "float32",
        **ARCHITECTURE,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    (folder / "base.safetensors").write_bytes(safetensors_bytes(tensors, metadata={"format": "pt"}))


if __name__ == "__main__":
    main()
