"""Writes a GGUF model as a Hugging Face folder in float32, for peers that cannot read GGUF.

    python benchmarks/export_hf.py MODEL.gguf FOLDER

Needs torch, transformers and gguf. Every peer then computes with the same dequantized weights.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from gguf import GGUFReader
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
from transformers import AutoModelForCausalLM, AutoTokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("gguf", type=Path)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    export_tokenizer(arguments.gguf, arguments.folder)
    export_weights(arguments.gguf, arguments.folder)


def export_tokenizer(gguf: Path, folder: Path) -> None:
    pre_tokenizer = GGUFReader(gguf).fields["tokenizer.ggml.pre"].contents()
    if pre_tokenizer != "smollm":
        raise SystemExit(f"{gguf}: only the pre-tokenizer 'smollm' is known, got {pre_tokenizer!r}")
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # Transformers takes GPT-2's rule for every byte-level vocabulary; SmolLM also splits digits.
    tokenizer.backend_tokenizer.pre_tokenizer = Sequence(
        [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
    )
    tokenizer.save_pretrained(folder)


def export_weights(gguf: Path, folder: Path) -> None:
    read = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32
    )
    # A model read from GGUF counts as quantized and refuses to be saved; a new one does not.
    config = read.config
    del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(read.state_dict())
    model.save_pretrained(folder)


if __name__ == "__main__":
    main()
