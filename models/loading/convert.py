"""``fjx convert``: any model that loads, as a folder of Orbax checkpoints that loads by itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fjx.models.loading.load import load_model_config, open_checkpoint, with_progress
from fjx.models.loading.orbax import save_checkpoint
from fjx.models.loading.source import ModelSource
from fjx.models.tokenizer import load_tokenizer


def convert(
    source: ModelSource, destination: Path, dtype: np.dtype | None = None, progress: bool = True
) -> None:
    """Write a model with its tokenizer to an Orbax folder, one part of the model at a time.

    Args:
        source: the model's files, of any kind.
        destination: a new or empty folder; it appears whole or not at all.
        dtype: of the stored matrices: float32, float16 or bfloat16 (vectors are then float32). By
            default the one that a tensor is read in, which is float32 for a GGUF file.
        progress: show a bar on stderr, in bytes of the source's files.

    Raises:
        ModelError: the model or its tokenizer cannot be read, or the folder cannot be written.
    """
    config, tokenizer = load_model_config(source), load_tokenizer(source)
    checkpoint = open_checkpoint(source, config)
    tensors = with_progress(checkpoint, f"Converting {source.name}", progress)
    if dtype is not None:
        tensors = _cast(tensors, dtype)
    save_checkpoint(destination, config, tensors, tokenizer)


def _cast(
    tensors: Iterator[tuple[str, np.ndarray]], dtype: np.dtype
) -> Iterator[tuple[str, np.ndarray]]:
    for name, tensor in tensors:
        yield name, tensor.astype(dtype if tensor.ndim > 1 else np.float32, copy=False)
