"""What the target was asked and what it answered, in files that an interrupted run goes on from."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int32

from fjx.errors import UserError

_COLUMNS = ("prompt_lengths", "kinds", "temperatures", "held_out")


@dataclass(frozen=True)
class TargetSample:
    """A prompt and the target's output."""

    tokens: Int32[np.ndarray, " N"]
    prompt_length: int
    kind: str
    """Which recipe the prompt is of."""
    temperature: float
    held_out: bool

    @property
    def output_length(self) -> int:
        """Tokens of the output."""
        return len(self.tokens) - self.prompt_length


def write_shard(path: Path, samples: Sequence[TargetSample]) -> None:
    """Write samples; the file appears whole or not at all."""
    partial = path.with_suffix(".partial.npz")
    np.savez(
        partial,
        tokens=np.concatenate([sample.tokens for sample in samples]),
        lengths=np.array([len(sample.tokens) for sample in samples]),
        prompt_lengths=np.array([sample.prompt_length for sample in samples]),
        kinds=np.array([sample.kind for sample in samples]),
        temperatures=np.array([sample.temperature for sample in samples]),
        held_out=np.array([sample.held_out for sample in samples]),
    )
    os.replace(partial, path)


def read_shard(path: Path) -> list[TargetSample]:
    """Read what `write_shard` wrote.

    Raises:
        UserError: the file is broken.
    """
    try:
        with np.load(path) as arrays:
            parts = np.split(arrays["tokens"], np.cumsum(arrays["lengths"])[:-1])
            columns = (arrays[name].tolist() for name in _COLUMNS)
            return [TargetSample(*each) for each in zip(parts, *columns, strict=True)]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: broken ({error}); remove it and use --resume") from error


def shard_path(folder: Path, number: int) -> Path:
    """The file of one shard."""
    return folder / f"tokens-{number:03d}.npz"
