"""From a model's files to its configuration and its canonical tensors, one at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

import numpy as np

from fjx.errors import ModelError
from fjx.models.config import ModelConfig
from fjx.models.loading.gguf import GGUFStore
from fjx.models.loading.gguf_names import gguf_naming
from fjx.models.loading.hf import SafetensorsStore, read_json
from fjx.models.loading.hf_names import hf_naming
from fjx.models.loading.orbax import OrbaxCheckpoint, load_orbax_config
from fjx.models.loading.recipes import RecipeCheckpoint
from fjx.models.loading.source import ModelSource
from fjx.models.tensors import canonical_shapes
from fjx.progress_bar import progress_bar

_ROPE_FACTORS = "rope_freqs.weight"


class Checkpoint(Protocol):
    """The canonical tensors of a model, read one after another: the ends first, see
    `canonical_tensors`."""

    nbytes: Mapping[str, int]
    """What each tensor occupies in the files, in bytes."""

    def __iter__(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yield name and array: float32, float16 or bfloat16, C order, the caller's own."""

    def read(self, wanted: Callable[[str], bool]) -> Iterator[tuple[str, np.ndarray]]:
        """The same for the tensors that are wanted; what is not is not read from the files, as far
        as their format allows."""


def load_model_config(source: ModelSource) -> ModelConfig:
    """Read the configuration of a model.

    Raises:
        ModelError: a file is missing or broken, or the architecture is not supported.
    """
    if source.kind == "orbax":
        return load_orbax_config(source.path)
    try:
        if source.kind == "hf":
            return ModelConfig.from_hf(read_json(source.path / "config.json"))
        store = GGUFStore(source.path)
        factors = store.read(_ROPE_FACTORS).tolist() if _ROPE_FACTORS in store.shapes else None
        return ModelConfig.from_gguf(store.metadata, store.shapes.keys(), factors)
    except ModelError as error:
        if str(source.path) in str(error):
            raise
        raise ModelError(f"{source.path}: {error}") from None


def open_checkpoint(source: ModelSource, config: ModelConfig) -> Checkpoint:
    """Open a model's files and check their headers: names, shapes and dtypes of all tensors.

    Raises:
        ModelError: a file is broken, or a tensor is missing, unknown or of a wrong shape or dtype;
            the message names both.
    """
    shapes = canonical_shapes(config)
    if source.kind == "orbax":
        return OrbaxCheckpoint(source.path, config, shapes)
    if source.kind == "gguf":
        gguf = GGUFStore(source.path)
        return RecipeCheckpoint(gguf, config, shapes, gguf_naming(config))
    folder = SafetensorsStore(source.path)
    return RecipeCheckpoint(folder, config, shapes, hf_naming(config, folder.shapes.keys()))


def read_tensors(source: ModelSource, config: ModelConfig) -> Iterator[tuple[str, np.ndarray]]:
    """Yield every canonical tensor once, in C order, as float32, float16 or bfloat16.

    Only one tensor is held at a time. Headers are checked before the first one is read.

    Raises:
        ModelError: see `open_checkpoint`; or a tensor holds NaN or infinite values.
    """
    return iter(open_checkpoint(source, config))


def load_params(
    source: ModelSource,
    config: ModelConfig,
    place: Callable[[str, np.ndarray], None],
    progress: bool = True,
    wanted: Callable[[str], bool] | None = None,
) -> None:
    """Read a model's tensors and hand each to `place`, with a progress bar on stderr.

    Args:
        source: the model's files.
        config: its configuration, from `load_model_config`.
        place: called with each canonical name and array; it puts the array on its device.
        progress: show the bar, in bytes of the files.
        wanted: says which tensors are read, by name; None: all.

    Raises:
        ModelError: see `read_tensors`.
    """
    checkpoint = open_checkpoint(source, config)
    for name, array in with_progress(checkpoint, f"Loading {source.name}", progress, wanted):
        place(name, array)
        del array  # or it would stay alive while the next one is read


def with_progress(
    checkpoint: Checkpoint,
    title: str,
    progress: bool,
    wanted: Callable[[str], bool] | None = None,
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield a checkpoint's tensors, or those that are wanted; show the bytes of the files done, on
    stderr."""
    with progress_bar(
        desc=title,
        total=sum(n for name, n in checkpoint.nbytes.items() if wanted is None or wanted(name)),
        unit="B",
        unit_scale=True,
        unit_divisor=1024,
        disable=not progress,
    ) as bar:
        for item in checkpoint if wanted is None else checkpoint.read(wanted):
            yield item
            bar.update(checkpoint.nbytes.get(item[0], 0))
            del item
