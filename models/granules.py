"""A model cut into granules: the programs, and the parameters that they take.

The pieces are ``embed``, G granules of equal depth, ``head``. Their parameters are plain pytrees;
the NNX modules come to life only while a program is traced. A granule's layers are unrolled, and
each layer's arrays are separate leaves: a scan over stacked ones is slower on a CPU, and on a GPU
copies each layer's weights before it reads them (see docs/gpu.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int32

from fjx.kernels.matmul import Quantized
from fjx.kernels.ragged import RaggedRows
from fjx.models import rope
from fjx.models.config import ModelConfig
from fjx.models.layers import BlockInputs
from fjx.models.registry import FAMILIES
from fjx.models.split import TENSOR_AXIS, SplitModule, TensorSpec

WHOLE = PartitionSpec()  # type: ignore[no-untyped-call]
"""Each device of a mesh has the whole array."""

Params = dict[str, Any]
"""Arrays of one piece. Embed and head: by name. A granule: ``layers`` (a tuple of dictionaries)
and, where layers differ, ``window`` and ``rope``, int32 [L]."""


def cut(config: ModelConfig, granule_layers: int | None) -> tuple[range, ...]:
    """Cut the layers into granules of equal depth, by default about an eighth of them each.

    The default depth divides the number of layers where a depth near an eighth does: granules of
    one depth share their programs. Otherwise the last granule is shorter.
    """
    layers = config.num_layers
    depth = granule_layers or _default_depth(layers)
    return tuple(range(start, min(start + depth, layers)) for start in range(0, layers, depth))


def _default_depth(layers: int) -> int:
    eighth = max(1, round(layers / 8))
    near = range(max(1, eighth // 2), 2 * eighth + 1)
    dividing = [depth for depth in near if layers % depth == 0]
    return min(dividing, key=lambda depth: abs(depth - layers / 8), default=eighth)


class Model:
    """The programs of one model and the shapes of their parameters; it holds no arrays.

    Programs of granules of equal depth are the same program: what differs between layers beside the
    weights (window, RoPE table) is part of the parameters.
    """

    def __init__(self, config: ModelConfig, granule_layers: int | None = None) -> None:
        self.config = config
        self.granules = cut(config, granule_layers)
        self._shards = {1: self}
        family = FAMILIES[config.family]
        self._embed = SplitModule(family.embed(config))
        self._block = SplitModule(family.block(config))
        self._head = SplitModule(family.head(config))

    # What each piece is made of.

    def embed_tensors(self) -> dict[str, TensorSpec]:
        """Canonical tensors of the embedding, by full name."""
        return {f"embed.{name}": spec for name, spec in self._embed.tensors.items()}

    def granule_tensors(self, index: int) -> dict[str, TensorSpec]:
        """Canonical tensors of one granule, by full name."""
        return {
            f"layers.{layer}.{name}": spec
            for layer in self.granules[index]
            for name, spec in self._block.tensors.items()
        }

    def head_tensors(self) -> dict[str, TensorSpec]:
        """Canonical tensors of the head, by full name."""
        return {f"head.{name}": spec for name, spec in self._head.tensors.items()}

    def pack_embed(self, tensors: Mapping[str, Any]) -> Params:
        """Parameters of `embed` from canonical tensors."""
        return {name: tensors[f"embed.{name}"] for name in self._embed.tensors}

    def pack_granule(self, index: int, tensors: Mapping[str, Any]) -> Params:
        """Parameters of `granule` from canonical tensors."""
        layers = tuple(
            {name: tensors[f"layers.{layer}.{name}"] for name in self._block.tensors}
            for layer in self.granules[index]
        )
        return {"layers": layers, **self._constants(index)}

    def pack_head(self, tensors: Mapping[str, Any]) -> Params:
        """Parameters of `head` from canonical tensors."""
        return {name: tensors[f"head.{name}"] for name in self._head.tensors}

    def abstract_embed(self, dtype: jnp.dtype, degree: int = 1) -> Params:
        """Shapes of `pack_embed`'s result for a model stored in ``dtype``, on a mesh of this tensor
        degree."""
        return {name: spec.struct(dtype, degree) for name, spec in self._embed.tensors.items()}

    def abstract_granule(self, index: int, dtype: jnp.dtype, degree: int = 1) -> Params:
        """Shapes of `pack_granule`'s result, likewise."""
        tensors = {
            name: spec.struct(dtype, degree) for name, spec in self.granule_tensors(index).items()
        }
        params: Params = jax.eval_shape(lambda given: self.pack_granule(index, given), tensors)
        return params

    def abstract_head(self, dtype: jnp.dtype, degree: int = 1) -> Params:
        """Shapes of `pack_head`'s result, likewise."""
        return {name: spec.struct(dtype, degree) for name, spec in self._head.tensors.items()}

    # How they lie on a mesh with the axis `TENSOR_AXIS`.

    def embed_shards(self, dtype: jnp.dtype) -> Params:
        """Partition of each of `pack_embed`'s arrays."""
        return {name: _partition(spec, dtype) for name, spec in self._embed.tensors.items()}

    def granule_shards(self, index: int, dtype: jnp.dtype) -> Params:
        """Partition of each of `pack_granule`'s arrays."""
        of_layer = {name: _partition(spec, dtype) for name, spec in self._block.tensors.items()}
        constants = dict.fromkeys(self._varying(), WHOLE)
        return {"layers": (of_layer,) * len(self.granules[index]), **constants}

    def head_shards(self, dtype: jnp.dtype) -> Params:
        """Partition of each of `pack_head`'s arrays."""
        return {name: _partition(spec, dtype) for name, spec in self._head.tensors.items()}

    def shard(self, degree: int) -> Model:
        """The programs of one of ``degree`` devices, for use inside `jax.shard_map`."""
        if degree not in self._shards:
            self._shards[degree] = Model(self.config.shard(degree), len(self.granules[0]))
        return self._shards[degree]

    def _constants(self, index: int) -> Params:
        layers = self.granules[index]
        constants: Params = {}
        for name, of_layer in self._varying().items():
            constants[name] = np.asarray(of_layer[layers.start : layers.stop], np.int32)
        return constants

    def _varying(self) -> dict[str, tuple[int, ...]]:
        config = self.config
        varying = {}
        if any(config.window_of_layer):
            varying["window"] = config.window_of_layer
        if len(config.rope_tables) > 1:
            varying["rope"] = config.rope_of_layer
        return varying

    # The programs.

    def embed(
        self, params: Params, tokens: Int32[Array, " T"], rows: RaggedRows
    ) -> Float[Array, "T D"]:
        """The residual stream of each row, float32."""
        x: Array = self._embed.merge(params)(tokens, rows)
        return x

    def granule(
        self, params: Params, x: Float[Array, "T D"], kv_pages: Array, rows: RaggedRows
    ) -> tuple[Float[Array, "T D"], Array]:
        """Run one granule's blocks.

        Args:
            params: from `pack_granule`.
            x: the residual stream, float32.
            kv_pages: this granule's pages, see `fjx.kernels.attention.kv_pages_shape`; donate them.
            rows: the ragged batch.

        Returns:
            The residual stream and the pages after these blocks.
        """
        tables = None
        if self.config.rope_tables:
            tables = rope.cos_sin_once(self.config.rope_tables, rows.positions)
        for i, weights in enumerate(params["layers"]):
            varying = {name: params[name][i] for name in self._varying()}
            table = varying.get("rope", 0)
            at = BlockInputs(
                rows=rows,
                layer=i,
                rotation=None if tables is None else (tables[0][table], tables[1][table]),
                window=varying.get("window"),
            )
            x, kv_pages = self._block.merge(weights)(x, kv_pages, at)
        return x, kv_pages

    def normed(self, params: Params, x: Float[Array, "S D"]) -> Float[Array, "S D"]:
        """The rows that `head` multiplies with the unembedding, float32."""
        rows: Array = self._head.merge(params).norm(x)
        return rows

    def head(self, params: Params, x: Float[Array, "S D"]) -> Float[Array, "S V"]:
        """Logits over the vocabulary, float32."""
        logits: Array = self._head.merge(params)(x)
        return logits


def _partition(spec: TensorSpec, dtype: jnp.dtype) -> Any:
    """How a tensor's stored array is split."""
    of_values = _along(spec.stored_axis(dtype))
    if spec.quantization is None:
        return of_values
    return Quantized(of_values, _along(spec.scale_axis))


def _along(axis: int | None) -> PartitionSpec:
    if axis is None:
        return WHOLE
    return PartitionSpec(*[None] * axis, TENSOR_AXIS)  # type: ignore[no-untyped-call]
