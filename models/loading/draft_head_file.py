"""Files of draft heads: one .safetensors file that says which target it is for.

It holds the head's own tensors in bfloat16, ``token_ids`` and, where they help, maps of a logit
lens (``lens.N``, behind N layers); what the head shares with its target is taken from the target.
The record is JSON in the file's metadata, under ``fjx_draft_head``.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from jaxtyping import Float, Int32

from fjx.errors import ModelError
from fjx.models.config import ModelConfig
from fjx.models.draft_head import DraftHead
from fjx.models.loading.recipes import check_finite, one_line
from fjx.models.logit_lens import LogitLens, map_name, mapped_layers

_KEY = "fjx_draft_head"
_FORMAT = 1
_TOKEN_IDS = "token_ids"
_HASHED_VALUES = 4096


@dataclass(frozen=True, kw_only=True)
class DraftHeadConfig:
    """What a draft head is for, and where it comes from."""

    target: str
    """What the user called the target when the head was trained."""
    fingerprint: str
    """The fingerprint of the target's configuration and weights, see `Fingerprint`."""
    config: ModelConfig
    """The target's configuration."""
    vocabulary_size: int
    """Token ids that the head can draft."""
    training: Mapping[str, Any] = field(default_factory=dict)
    """How it was trained: command, data, acceptance by draft position."""

    @property
    def hidden_size(self) -> int:
        """Width of the target's residual stream."""
        return self.config.hidden_size


@dataclass(frozen=True)
class LoadedDraftHead:
    """A draft head's file, read."""

    config: DraftHeadConfig
    token_ids: Int32[np.ndarray, " V"]
    tensors: Mapping[str, np.ndarray]
    """The head's own canonical tensors, bfloat16; see `DraftHead.trained_tensors`."""
    maps: Mapping[int, Float[np.ndarray, "D D"]]
    """The maps of a logit lens, bfloat16, by the number of layers before them; see `LogitLens`."""


class Fingerprint:
    """A hash of a target: its configuration, its last norm and its last block.

    Values are hashed as bfloat16, and only some thousands of each tensor: a model that ``fjx
    convert`` has written has the fingerprint of its source, and it is made while a model loads.
    """

    def __init__(self, config: ModelConfig) -> None:
        self._config = config
        self._last = f"layers.{config.num_layers - 1}."
        self._digests: dict[str, str] = {}

    def take(self, name: str, values: np.ndarray) -> None:
        """Note one of the target's canonical tensors; most are ignored."""
        if name.startswith(self._last) or name == "head.norm":
            flat = values.reshape(-1)
            some = flat[:: max(1, flat.size // _HASHED_VALUES)].astype(ml_dtypes.bfloat16)
            self._digests[name] = hashlib.sha256(some.tobytes()).hexdigest()

    def digest(self) -> str:
        """The fingerprint, once every tensor of the target was taken."""
        of = {"config": self._config.as_dict(), "tensors": self._digests}
        return hashlib.sha256(json.dumps(of, sort_keys=True).encode()).hexdigest()


def save_draft_head(
    path: Path,
    config: DraftHeadConfig,
    token_ids: Int32[np.ndarray, " V"],
    tensors: Mapping[str, np.ndarray],
    maps: Mapping[int, np.ndarray],
) -> None:
    """Write a draft head; the file appears whole or not at all.

    Args:
        path: the file.
        config: what the head is for.
        token_ids: what each of its logits is of.
        tensors: the head's own canonical tensors.
        maps: see `LoadedDraftHead`.

    Raises:
        ModelError: it cannot be written.
    """
    from safetensors.numpy import save

    record = {
        "format": _FORMAT,
        "target": config.target,
        "fingerprint": config.fingerprint,
        "hidden_size": config.hidden_size,
        "vocabulary_size": config.vocabulary_size,
        "config": config.config.as_dict(),
        "training": config.training,
    }
    named = {map_name(layers): values for layers, values in maps.items()}
    stored = {
        name: np.ascontiguousarray(values, dtype=ml_dtypes.bfloat16)
        for name, values in {**tensors, **named}.items()
    }
    stored[_TOKEN_IDS] = np.ascontiguousarray(token_ids, np.int32)
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_bytes(save(stored, metadata={_KEY: json.dumps(record)}))
        partial.replace(path)
    except OSError as error:
        raise ModelError(f"{path}: cannot be written: {error.strerror or error}") from None


def load_draft_head(path: Path) -> LoadedDraftHead:
    """Read a draft head.

    Raises:
        ModelError: the file is missing, broken, or no draft head of this version.
    """
    record, arrays = _read(path)
    try:
        target = ModelConfig.from_dict(record["config"])
        config = DraftHeadConfig(
            target=str(record["target"]),
            fingerprint=str(record["fingerprint"]),
            config=target,
            vocabulary_size=int(record["vocabulary_size"]),
            training=dict(record["training"]),
        )
    except (KeyError, TypeError, ValueError, ModelError) as error:
        raise ModelError(f"{path}: the draft head's record is broken: {error}") from None
    token_ids = arrays.pop(_TOKEN_IDS, None)
    _check_token_ids(path, config, token_ids)
    assert token_ids is not None
    mapped = [layers for layers in mapped_layers(arrays) if 0 < layers < target.num_layers]
    lens = LogitLens(target, token_ids, mapped)
    specs = DraftHead(target, token_ids).trained_tensors() | lens.map_tensors()
    for name in sorted(specs.keys() | arrays.keys()):
        if name not in arrays:
            raise ModelError(f"{path}: tensor {name!r} is missing")
        if name not in specs:
            raise ModelError(f"{path}: tensor {name!r} is not part of a draft head")
        shape, expected = arrays[name].shape, specs[name].shape
        if shape != expected:
            raise ModelError(f"{path}: tensor {name!r} has shape {shape}, expected {expected}")
        check_finite(arrays[name], path, name)
    maps = {layers: arrays.pop(map_name(layers)) for layers in mapped}
    return LoadedDraftHead(config, token_ids, arrays, maps)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    from safetensors import SafetensorError, safe_open

    if not os.path.isfile(path):
        raise ModelError(f"{path}: there is no such draft head; train one with 'fjx distill'")
    try:
        with safe_open(path, framework="numpy") as file:
            record = json.loads((file.metadata() or {}).get(_KEY, "null"))
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, ValueError, TypeError, AttributeError, SafetensorError) as error:
        raise ModelError(f"{path}: the draft head cannot be read: {one_line(error)}") from None
    if not isinstance(record, dict):
        raise ModelError(f"{path}: holds no draft head; expected a file of 'fjx distill'")
    if record.get("format") != _FORMAT:
        raise ModelError(
            f"{path}: has format {record.get('format')!r}, this version reads {_FORMAT}; train the "
            "head again with 'fjx distill'"
        )
    return record, arrays


def _check_token_ids(
    path: Path, config: DraftHeadConfig, token_ids: Int32[np.ndarray, " V"] | None
) -> None:
    if token_ids is None or token_ids.dtype != np.int32 or token_ids.ndim != 1:
        raise ModelError(f"{path}: tensor {_TOKEN_IDS!r} is missing or not a list of int32")
    if len(token_ids) != config.vocabulary_size or len(token_ids) == 0:
        raise ModelError(
            f"{path}: lists {len(token_ids)} token ids, but its record says "
            f"{config.vocabulary_size}"
        )
    inside = (token_ids >= 0) & (token_ids < config.config.vocab_size)
    if not inside.all() or len(np.unique(token_ids)) != len(token_ids):
        raise ModelError(
            f"{path}: its token ids are not distinct ids of {config.target}'s vocabulary of "
            f"{config.config.vocab_size}"
        )


def check_target(
    path: Path, head: DraftHeadConfig, target: str, config: ModelConfig, fingerprint: str | None
) -> None:
    """Check that a draft head is for this target.

    Args:
        path: the head's file, for messages.
        head: its record.
        target: what the user calls the model that is served.
        config: its configuration.
        fingerprint: its `Fingerprint`; None where its weights have not been read yet.

    Raises:
        ModelError: it is for another model, or for other weights.
    """
    advice = "train a head for this model with 'fjx distill', or serve without one"
    if head.config.vocab_size != config.vocab_size:
        raise ModelError(
            f"{path}: the draft head is for {head.target}, whose vocabulary has "
            f"{head.config.vocab_size} tokens, but {target}'s has {config.vocab_size}; {advice}"
        )
    if head.config != config:
        raise ModelError(
            f"{path}: the draft head is for {head.target}, not for {target}: their "
            f"configurations differ in {_differing(head.config, config)}; {advice}"
        )
    if fingerprint is not None and head.fingerprint != fingerprint:
        raise ModelError(
            f"{path}: the draft head is for {head.target}, not for {target}: their weights differ; "
            f"{advice}"
        )


def _differing(one: ModelConfig, other: ModelConfig) -> str:
    values, others = one.as_dict(), other.as_dict()
    return ", ".join(name for name, value in values.items() if others[name] != value)


def built_in_draft_head(target: str) -> Path | None:
    """The draft head that comes with fjx for a target of this name, where there is one."""
    path = Path(str(resources.files("fjx"))) / "heads" / f"{target}.safetensors"
    return path if "/" not in target and os.path.isfile(path) else None
