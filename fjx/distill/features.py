"""The target's residual stream of every sample, computed once and kept in files."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np
from tqdm import tqdm

from fjx.distill.corpus import TargetSample, read_shard, shard_path
from fjx.distill.target import DistillTarget
from fjx.errors import UserError
from fjx.progress_bar import progress_bar

_DTYPE = np.dtype(ml_dtypes.bfloat16)  # NumPy's files know it only as its bits


@dataclass(frozen=True)
class Example:
    """A sample with the target's residual stream before the final norm."""

    sample: TargetSample
    hidden: np.ndarray
    """(N, D), bfloat16."""


def read_examples(
    folder: Path, target: Callable[[], DistillTarget], progress: bool
) -> list[Example]:
    """The samples of a folder with their residual streams; what is missing is computed.

    Args:
        folder: where `fjx.distill.generate` has left its files.
        target: loads the target, where it is needed.
        progress: show a progress bar.

    Raises:
        UserError: a file is broken or cannot be written.
    """
    shards: list[list[TargetSample]] = []
    while shard_path(folder, len(shards)).exists():
        shards.append(read_shard(shard_path(folder, len(shards))))
    tokens = sum(len(sample.tokens) for shard in shards for sample in shard)
    examples: list[Example] = []
    with progress_bar(
        total=tokens, desc="Hidden states", unit="token", unit_scale=True, disable=not progress
    ) as bar:
        for number, samples in enumerate(shards):
            path = folder / f"features-{number:03d}.npy"
            if not path.exists():
                _write(path, target(), samples, bar)
            examples += _read(path, samples)
            bar.n = sum(len(example.sample.tokens) for example in examples)
            bar.refresh()
    return examples


def _write(
    path: Path, target: DistillTarget, samples: Sequence[TargetSample], bar: tqdm[None]
) -> None:
    partial = path.with_suffix(".partial")
    rows = sum(len(sample.tokens) for sample in samples)
    try:
        file = np.lib.format.open_memmap(
            partial, "w+", np.uint16, (rows, target.config.hidden_size)
        )
        done = 0
        for lengths, (stream,) in target.passes(samples, [target.config.num_layers]):
            end = done + sum(lengths)
            file[done:end] = stream.astype(_DTYPE).view(np.uint16)
            bar.update(end - done)
            done = end
        file.flush()
        os.replace(partial, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from error


def _read(path: Path, samples: Sequence[TargetSample]) -> list[Example]:
    ends = np.cumsum([len(sample.tokens) for sample in samples])
    try:
        bits = np.load(path, mmap_mode="r")
        if bits.ndim != 2 or len(bits) != ends[-1]:
            raise ValueError(f"it holds {bits.shape}, expected {ends[-1]} rows")
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path}: broken ({error}); remove it and use --resume") from error
    parts = np.split(bits.view(_DTYPE), ends[:-1])
    return [Example(*each) for each in zip(samples, parts, strict=True)]
