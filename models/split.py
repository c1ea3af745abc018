"""A module without arrays, and the flat names of its parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fjx.kernels.matmul import (
    Quantization,
    Quantized,
    is_packed,
    packs,
    quantize,
    restored_values,
    stored_axis,
    stored_struct,
    stored_values,
)

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
    quantization: Quantization | None = None
    """How its entries become eight bits wide; None: they do not. What is stored is then a
    `Quantized`, and so are shapes and partitions."""
    tied: bool = False
    """Whether its transpose is another tensor, which is `multiplied`: where that is packed, this
    one is stored likewise, so that one array can serve both."""

    @property
    def split_axis(self) -> int | None:
        """Along which axis it is split; None: each device has it whole."""
        return next((i for i, axis in enumerate(self.axes) if axis in SPLIT_AXES), None)

    def stored_axis(self, dtype: jnp.dtype) -> int | None:
        """Along which axis of the stored array its shards lie; None: each device has it whole."""
        if self._is_transposed(dtype):
            return stored_axis(len(self.shape) - 1 - (self.split_axis or 0), dtype)
        if self.split_axis is None or not self.multiplied:
            return self.split_axis
        return stored_axis(self.split_axis, dtype, self.quantization)

    @property
    def scale_axis(self) -> int | None:
        """The axis along which the scales of columns are split: a device has those of its
        columns."""
        return 0 if self.split_axis == 1 else None

    def struct(self, dtype: jnp.dtype, degree: int = 1) -> Any:
        """The stored array where a model has this ``dtype``: vectors stay float32."""
        shape = self._shard_shape(degree)
        if self._is_transposed(dtype):
            return _side_by_side(stored_struct(shape[::-1], dtype), self.stored_axis(dtype), degree)
        if not self.multiplied:
            kept = dtype if len(shape) > 1 else jnp.float32
            stored = jax.ShapeDtypeStruct(shape, kept)  # type: ignore[no-untyped-call]
            return _side_by_side(stored, self.stored_axis(dtype), degree)
        stored = stored_struct(shape, dtype, self.quantization)
        if not isinstance(stored, Quantized):
            return _side_by_side(stored, self.stored_axis(dtype), degree)
        return Quantized(
            _side_by_side(stored.values, self.stored_axis(dtype), degree),
            _side_by_side(stored.scale, self.scale_axis, degree),
        )

    def store(self, values: np.ndarray, dtype: jnp.dtype) -> Any:
        """The tensor's values as `struct` says, for one device."""
        (stored,) = self.shards(values, dtype, 1)
        return stored

    def shards(self, values: np.ndarray | Quantized, dtype: jnp.dtype, degree: int) -> list[Any]:
        """What each of ``degree`` devices stores; one array where all store the same.

        A matrix is quantized as a whole, so that its entries do not depend on the degree.
        """
        if self.quantization is not None and not isinstance(values, Quantized):
            values = quantize(values, self.quantization)
        if self.split_axis is None:
            return [self._stored(values, dtype)]
        if isinstance(values, Quantized):
            of_entries = self._split(values.values, degree)
            scales = [values.scale] * degree
            if self.scale_axis is not None:
                scales = self._split(values.scale, degree)
            pairs = zip(of_entries, scales, strict=True)
            return [self._stored(Quantized(*mine), dtype) for mine in pairs]
        return [self._stored(mine, dtype) for mine in self._split(values, degree)]

    def whole(self, shards: Sequence[Any]) -> Any:
        """The tensor's values, in the stored type, from all its shards; a `Quantized` where it is
        stored as one."""
        degree = len(shards)
        shape = self._shard_shape(degree)
        plain = [self._restored(shard, shape) for shard in shards]
        if self.split_axis is None or degree == 1:
            return plain[0]
        if not isinstance(plain[0], Quantized):
            return self._united(plain)
        scale = plain[0].scale
        if self.scale_axis is not None:
            scale = self._united([shard.scale for shard in plain])
        return Quantized(self._united([shard.values for shard in plain]), scale)

    def _split(self, values: np.ndarray, degree: int) -> list[np.ndarray]:
        """What each device has of an array whose axes are the tensor's, or the last of them."""
        runs = [
            np.split(part, degree, self._axis_from_last) for part in self._parts(values, self.parts)
        ]
        return [self._joined(mine) for mine in zip(*runs, strict=True)]

    def _united(self, shards: Sequence[np.ndarray]) -> np.ndarray:
        """The array that `_split` gave."""
        widths = tuple(width // len(shards) for width in self.parts)
        of_part = zip(*(self._parts(shard, widths) for shard in shards), strict=True)
        return self._joined([self._joined(part) for part in of_part])

    @property
    def _axis_from_last(self) -> int:
        assert self.split_axis is not None
        return self.split_axis - len(self.shape)

    def _parts(self, values: np.ndarray, widths: tuple[int, ...]) -> list[np.ndarray]:
        return np.split(values, np.cumsum(widths)[:-1], axis=-1) if widths else [values]

    def _joined(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        axis = self._axis_from_last
        return arrays[0] if len(arrays) == 1 else np.concatenate(arrays, axis=axis)

    def _shard_shape(self, degree: int) -> tuple[int, ...]:
        split = self.split_axis
        return tuple(size // (degree if i == split else 1) for i, size in enumerate(self.shape))

    def _is_transposed(self, dtype: jnp.dtype) -> bool:
        return self.tied and packs(dtype)

    def _restored(self, shard: Any, shape: tuple[int, ...]) -> Any:
        if self.tied and is_packed(shard):
            return np.ascontiguousarray(restored_values(shard, shape[::-1]).T)
        return restored_values(shard, shape) if self.multiplied else shard

    def _stored(self, values: np.ndarray | Quantized, dtype: jnp.dtype) -> Any:
        if self._is_transposed(dtype) and isinstance(values, np.ndarray):
            return stored_values(values.T, dtype)
        if self.multiplied or isinstance(values, Quantized):
            return stored_values(values, dtype)
        return values.astype(dtype if values.ndim > 1 else jnp.float32, copy=False)


def _side_by_side(shard: Any, axis: int | None, degree: int) -> Any:
    """The array that ``degree`` shards make up along an axis; None: each shard is the whole
    array."""
    shape = tuple(size * (degree if i == axis else 1) for i, size in enumerate(shard.shape))
    return jax.ShapeDtypeStruct(shape, shard.dtype)  # type: ignore[no-untyped-call]


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
                metadata.get("quantization"),
                metadata.get("tied", False),
            )

    def merge(self, params: Mapping[str, Any]) -> Any:
        """The module with its arrays; for use inside a traced function only."""
        flat = [(path, params[name]) for name, path in self._path_of.items()]
        return nnx.merge(self._graphdef, nnx.from_flat_state(flat))


def _flat_name(path: tuple[str, ...]) -> str:
    if path[-1] == "weight":
        return path[-2]
    if path[-1] == "bias":
        return f"{path[-2]}_bias"
    return path[-1]
