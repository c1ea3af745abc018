"""A tiny random model with a tokenizer of bytes, as files."""

from __future__ import annotations

import json
from pathlib import Path

import tokenizers

from fjx.models.config import ModelConfig
from fjx.models.loading.orbax import save_checkpoint
from fjx.models.rope import frequencies
from fjx.models.tensors import random_tensors

CONFIG = ModelConfig(
    family="llama",
    vocab_size=264,
    hidden_size=32,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    mlp_width=48,
    max_positions=512,
    norm_eps=1e-5,
    tied_embeddings=True,
    attention_scale=16**-0.5,
    rope_tables=(frequencies(16, 1e4),),
)


def write_target(folder: Path, seed: int = 1) -> Path:
    """Write the model, unless it is there."""
    if not folder.exists():
        save_checkpoint(folder, CONFIG, random_tensors(CONFIG, seed=seed, scale=0.3))
        alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
        vocabulary = {letter: id for id, letter in enumerate(alphabet)}
        backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=[]))
        backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = tokenizers.decoders.ByteLevel()
        backend.add_special_tokens(["<|im_start|>", "<|im_end|>"])
        backend.save(str(folder / "tokenizer.json"))
        (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>"}))
    return folder
