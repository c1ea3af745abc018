"""Small tokenizers, as GGUF key/values and as Hugging Face folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tokenizers
from gguf.constants import TokenType

from fjx.models.gguf_tokenizer import definition_from_gguf
from fjx.models.loading.source import ModelSource
from fjx.models.tokenizer import Tokenizer, load_tokenizer

GOLDENS = Path(__file__).parent / "goldens"
SENTENCEPIECE = json.loads((GOLDENS / "sentencepiece.json").read_text(encoding="utf-8"))

# What GPT-2 writes for the bytes 0 to 255.
BYTE_SYMBOLS = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = [("Ġ", "t"), ("h", "e"), ("Ġt", "he"), ("Ã", "©")]


def byte_level_metadata(**changes: Any) -> dict[str, Any]:
    tokens = [*SPECIALS, *BYTE_SYMBOLS, *("".join(pair) for pair in MERGES)]
    types = [TokenType.CONTROL] * len(SPECIALS)
    types += [TokenType.NORMAL] * (len(tokens) - len(SPECIALS))
    metadata = {
        "model": "gpt2",
        "pre": "smollm",
        "tokens": tokens,
        "token_type": [int(kind) for kind in types],
        "merges": [" ".join(pair) for pair in MERGES],
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return _with_prefix({**metadata, **changes})


def sentencepiece_metadata(**changes: Any) -> dict[str, Any]:
    metadata = {
        "model": "llama",
        "tokens": SENTENCEPIECE["pieces"],
        "scores": SENTENCEPIECE["scores"],
        "token_type": SENTENCEPIECE["types"],
    }
    return _with_prefix({**metadata, **changes})


def _with_prefix(metadata: dict[str, Any]) -> dict[str, Any]:
    return {f"tokenizer.ggml.{key}": value for key, value in metadata.items() if value is not None}


def byte_level(**changes: Any) -> Tokenizer:
    return Tokenizer(definition_from_gguf(byte_level_metadata(**changes)))


def sentencepiece(**changes: Any) -> Tokenizer:
    return Tokenizer(definition_from_gguf(sentencepiece_metadata(**changes)))


def load_folder(folder: Path) -> Tokenizer:
    return load_tokenizer(ModelSource("hf", folder, "test"))


def edit_json(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**content, **changes}))
