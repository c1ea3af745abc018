"""A model cut into granules: the programs, and the parameters that they take.

The pieces are ``embed``, G granules of equal depth, ``head``. Their parameters are plain pytrees;
the NNX modules come to life only while a program is traced. A granule has one of two layouts:
*unrolled* (each layer's arrays are separate leaves; fastest on a CPU) or *stacked* (one leading
layer axis, scanned, so that compile time does not grow with depth; for GPUs).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
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
"""Arrays of one piece. Embed and head: by name. A granule: ``layers`` (a tuple of dictionaries, or
one dictionary of stacked arrays) and, where layers differ, ``window`` and ``rope``, int32 [L]."""


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

    def pack_granule(
        self,
        index: int,
        tensors: Mapping[str, Any],
        *,
        stacked: bool,
        stack: Callable[[Sequence[Any]], Any] = jnp.stack,
    ) -> Params:
        """Parameters of `granule` from canonical tensors; the stacked layout copies them.

        ``stack`` joins the layers' tensors: `numpy.stack` for those of the host.
        """
        layers = tuple(
            {name: tensors[f"layers.{layer}.{name}"] for name in self._block.tensors}
            for layer in self.granules[index]
        )
        if not stacked:
            return {"layers": layers, **self._constants(index)}
        return {
            "layers": jax.tree.map(lambda *each: stack(each), *layers),
            **self._constants(index),
        }

    def pack_head(self, tensors: Mapping[str, Any]) -> Params:
        """Parameters of `head` from canonical tensors."""
        return {name: tensors[f"head.{name}"] for name in self._head.tensors}

    def abstract_embed(self, dtype: jnp.dtype, degree: int = 1) -> Params:
        """Shapes of `pack_embed`'s result for a model stored in ``dtype``, on a mesh of this tensor
        degree."""
        return {name: spec.struct(dtype, degree) for name, spec in self._embed.tensors.items()}

    def abstract_granule(
        self, index: int, dtype: jnp.dtype, *, stacked: bool, degree: int = 1
    ) -> Params:
        """Shapes of `pack_granule`'s result, likewise."""
        tensors = {
            name: spec.struct(dtype, degree) for name, spec in self.granule_tensors(index).items()
        }
        params: Params = jax.eval_shape(
            lambda given: self.pack_granule(index, given, stacked=stacked), tensors
        )
        return params

    def abstract_head(self, dtype: jnp.dtype, degree: int = 1) -> Params:
        """Shapes of `pack_head`'s result, likewise."""
        return {name: spec.struct(dtype, degree) for name, spec in self._head.tensors.items()}

    # How they lie on a mesh with the axis `TENSOR_AXIS`.

    def embed_shards(self, dtype: jnp.dtype) -> Params:
        """Partition of each of `pack_embed`'s arrays."""
        return {name: _partition(spec, dtype) for name, spec in self._embed.tensors.items()}

    def granule_shards(self, index: int, dtype: jnp.dtype, *, stacked: bool) -> Params:
        """Partition of each of `pack_granule`'s arrays."""
        of_layer = {
            name: _partition(spec, dtype, before=int(stacked))
            for name, spec in self._block.tensors.items()
        }
        constants = dict.fromkeys(self._varying(), WHOLE)
        layers = of_layer if stacked else (of_layer,) * len(self.granules[index])
        return {"layers": layers, **constants}

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
            params: from `pack_granule`, in either layout.
            x: the residual stream, float32.
            kv_pages: this granule's pages, see `fjx.kernels.attention.kv_pages_shape`; donate them.
            rows: the ragged batch.

        Returns:
            The residual stream and the pages after these blocks.
        """
        layers = params["layers"]
        unrolled = isinstance(layers, tuple)
        tables = None
        if self.config.rope_tables:
            cos_sin = rope.cos_sin_once if unrolled else rope.cos_sin
            tables = cos_sin(self.config.rope_tables, rows.positions)
        varying = {name: params[name] for name in self._varying()}

        def run_block(
            weights: Params, layer: int | Array, varying: Params, x: Array, kv_pages: Array
        ) -> tuple[Array, Array]:
            table = varying.get("rope", 0)
            at = BlockInputs(
                rows=rows,
                layer=layer,
                rotation=None if tables is None else (tables[0][table], tables[1][table]),
                window=varying.get("window"),
            )
            after: tuple[Array, Array] = self._block.merge(weights)(x, kv_pages, at)
            return after

        if unrolled:
            for i, weights in enumerate(layers):
                x, kv_pages = run_block(
                    weights, i, {name: of[i] for name, of in varying.items()}, x, kv_pages
                )
            return x, kv_pages

        # A kernel would be given copies of what is scanned over.
        quantized = {name: of for name, of in layers.items() if isinstance(of, Quantized)}
        others = {name: of for name, of in layers.items() if name not in quantized}

        def scan_block(carry: tuple[Array, Array], of_layer: Any) -> tuple[Any, None]:
            weights, layer, varying = of_layer
            narrow = {name: of._replace(layer=layer) for name, of in quantized.items()}
            return run_block(weights | narrow, layer, varying, *carry), None

        depth = jnp.arange(kv_pages.shape[0], dtype=jnp.int32)
        (x, kv_pages), _ = lax.scan(scan_block, (x, kv_pages), (others, depth, varying))
        return x, kv_pages

    def normed(self, params: Params, x: Float[Array, "S D"]) -> Float[Array, "S D"]:
        """The rows that `head` multiplies with the unembedding, float32."""
        rows: Array = self._head.merge(params).norm(x)
        return rows

    def head(self, params: Params, x: Float[Array, "S D"]) -> Float[Array, "S V"]:
        """Logits over the vocabulary, float32."""
        logits: Array = self._head.merge(params)(x)
        return logits


def _partition(spec: TensorSpec, dtype: jnp.dtype, before: int = 0) -> Any:
    """How a tensor's stored array is split, behind so many axes more."""
    of_values = _along(spec.stored_axis(dtype), before)
    if spec.quantization is None:
        return of_values
    return Quantized(of_values, _along(spec.scale_axis, before))


def _along(axis: int | None, before: int) -> PartitionSpec:
    if axis is None:
        return WHOLE
    return PartitionSpec(*[None] * (before + axis), TENSOR_AXIS)  # type: ignore[no-untyped-call]
