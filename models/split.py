"""A module without arrays, and the flat names of its parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array

from fjx.kernels.matmul import stored_struct, stored_values


@dataclass(frozen=True)
class TensorSpec:
    """Shape and logical axis names of one canonical tensor."""

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    """What each axis is: embed, heads, mlp or vocab; None for one that is never split."""

    multiplied: bool = False
    """Whether it is only used in products, which choose how it is stored."""

    def struct(self, dtype: jnp.dtype) -> jax.ShapeDtypeStruct:
        """The stored array where a model has this ``dtype``: vectors stay float32."""
        if self.multiplied:
            return stored_struct(self.shape, dtype)
        stored = dtype if len(self.shape) > 1 else jnp.float32
        return jax.ShapeDtypeStruct(self.shape, stored)  # type: ignore[no-untyped-call]

    def store(self, values: np.ndarray, dtype: jnp.dtype) -> np.ndarray:
        """The tensor's values as `struct` says."""
        if self.multiplied:
            return stored_values(values, dtype)
        return values.astype(self.struct(dtype).dtype, copy=False)


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
            multiplied = variable.get_metadata().get("multiplied", False)
            self.tensors[name] = TensorSpec(tuple(variable.shape), axes, multiplied)

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
