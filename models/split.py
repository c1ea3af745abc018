"""A module without arrays, and the flat names of its parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array

from fjx.kernels.matmul import restored_values, stored_axis, stored_struct, stored_values

TENSOR_AXIS = "tensor"
"""The axis of a mesh over which tensor parallelism splits a layer."""
SPLIT_AXES = frozenset({"heads", "mlp", "vocab"})
"""Logical axes that tensor parallelism splits."""


@dataclass(frozen=True)
class TensorSpec:
    """Shape and logical axis names of one canonical tensor, and how it is stored.

    On a mesh of tensor degree t, a tensor with an axis of `SPLIT_AXES` is stored as t shards, each
    as if it were a tensor of its own, side by side along `stored_axis`.
    """

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    """What each axis is: embed, heads, mlp or vocab; None for one that is never split."""

    multiplied: bool = False
    """Whether it is only used in products, which choose how it is stored."""
    parts: tuple[int, ...] = ()
    """Widths of what is fused along the last axis, each of which is split by itself."""

    @property
    def split_axis(self) -> int | None:
        """Along which axis it is split; None: each device has it whole."""
        return next((i for i, axis in enumerate(self.axes) if axis in SPLIT_AXES), None)

    def stored_axis(self, dtype: jnp.dtype) -> int | None:
        """Along which axis of the stored array its shards lie; None: each device has it whole."""
        if self.split_axis is None or not self.multiplied:
            return self.split_axis
        return stored_axis(self.split_axis, dtype)

    def struct(self, dtype: jnp.dtype, degree: int = 1) -> jax.ShapeDtypeStruct:
        """The stored array where a model has this ``dtype``: vectors stay float32."""
        shape = self._shard_shape(degree)
        if self.multiplied:
            stored = stored_struct(shape, dtype)
        else:
            kept = dtype if len(shape) > 1 else jnp.float32
            stored = jax.ShapeDtypeStruct(shape, kept)  # type: ignore[no-untyped-call]
        axis = self.stored_axis(dtype)
        if axis is None:
            return stored
        whole = tuple(size * (degree if i == axis else 1) for i, size in enumerate(stored.shape))
        return jax.ShapeDtypeStruct(whole, stored.dtype)  # type: ignore[no-untyped-call]

    def store(self, values: np.ndarray, dtype: jnp.dtype) -> np.ndarray:
        """The tensor's values as `struct` says, for one device."""
        (stored,) = self.shards(values, dtype, 1)
        return stored

    def shards(self, values: np.ndarray, dtype: jnp.dtype, degree: int) -> list[np.ndarray]:
        """What each of ``degree`` devices stores; one array where all store the same."""
        if self.split_axis is None:
            return [self._stored(values, dtype)]
        runs = [np.split(part, degree, self.split_axis) for part in self._parts(values, self.parts)]
        return [self._stored(self._joined(mine), dtype) for mine in zip(*runs, strict=True)]

    def whole(self, shards: Sequence[np.ndarray]) -> np.ndarray:
        """The tensor's values, in the stored type, from all its shards."""
        degree = len(shards)
        shape = self._shard_shape(degree)
        plain = [restored_values(s, shape) if self.multiplied else s for s in shards]
        if self.split_axis is None or degree == 1:
            return plain[0]
        widths = tuple(width // degree for width in self.parts)
        of_part = zip(*(self._parts(shard, widths) for shard in plain), strict=True)
        return self._joined([self._joined(part) for part in of_part])

    def _parts(self, values: np.ndarray, widths: tuple[int, ...]) -> list[np.ndarray]:
        return np.split(values, np.cumsum(widths)[:-1], axis=-1) if widths else [values]

    def _joined(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        assert self.split_axis is not None
        return arrays[0] if len(arrays) == 1 else np.concatenate(arrays, axis=self.split_axis)

    def _shard_shape(self, degree: int) -> tuple[int, ...]:
        split = self.split_axis
        return tuple(size // (degree if i == split else 1) for i, size in enumerate(self.shape))

    def _stored(self, values: np.ndarray, dtype: jnp.dtype) -> np.ndarray:
        if self.multiplied:
            return stored_values(values, dtype)
        return values.astype(dtype if values.ndim > 1 else jnp.float32, copy=False)


class SplitModule:
    """One NNX module, split from its parameters.

    A parameter's flat name is the name of the layer that holds it (``attention.qkv.weight`` is
    ``qkv``, ``attention.qkv.bias`` is ``qkv_bias``), or its own where it is no layer's weight
    (``tokens``).
    """

    def __init__(self, module: nnx.Module) -> None:
        self._graphdef, state = nnx.split(module)
        self._path_of: dict[str, tuple[str, ...]] = {}
        self.tensors: dict[str, TensorSpec] = {}
        for keys, variable in nnx.to_flat_state(state):
            path = tuple(str(key) for key in keys)
            name = _flat_name(path)
            self._path_of[name] = path
            axes = variable.get_metadata("out_sharding")
            metadata = variable.get_metadata()
            self.tensors[name] = TensorSpec(
                tuple(variable.shape),
                axes,
                metadata.get("multiplied", False),
                metadata.get("parts", ()),
            )

    def merge(self, params: Mapping[str, Array]) -> Any:
        """The module with its arrays; for use inside a traced function only."""
        flat = [(path, params[name]) for name, path in self._path_of.items()]
        return nnx.merge(self._graphdef, nnx.from_flat_state(flat))


def _flat_name(path: tuple[str, ...]) -> str:
    if path[-1] == "weight":
        return path[-2]
    if path[-1] == "bias":
        return f"{path[-2]}_bias"
    return path[-1]
