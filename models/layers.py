"""The layers that all families share, as Flax NNX modules without arrays.

A module is built from shapes alone: its parameters are `jax.ShapeDtypeStruct`s with logical axis
names (``embed``, ``heads``, ``mlp``, ``vocab``), and arrays come in when a granule's program merges
them. A matrix is stored (in, out), and its attribute's name is its name in a checkpoint; see
`fjx.models.split`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float, Int32

from fjx.kernels.attention import Rotation, append_and_attend
from fjx.kernels.matmul import Quantization, columns, is_packed, matmul
from fjx.kernels.norm import layer_norm, rms_norm
from fjx.kernels.ragged import RaggedRows
from fjx.models.config import Activation, ModelConfig
from fjx.models.split import SPLIT_AXES, TENSOR_AXIS

ACTIVATIONS: dict[Activation, Callable[[Array], Array]] = {
    "silu": nnx.silu,
    "gelu_tanh": lambda x: nnx.gelu(x, approximate=True),
    "relu": nnx.relu,
}


class BlockInputs(NamedTuple):
    """What a block reads beside the residual stream and the KV pages."""

    rows: RaggedRows
    layer: int | Int32[Array, ""]
    """Index of the block within its granule."""
    rotation: Rotation | None
    """RoPE's rotation of the rows; None where positions are learned."""
    window: Int32[Array, ""] | None
    """Last positions a row sees, 0 for all; None: no layer of this model has a window."""


def param(
    shape: tuple[int, ...],
    axes: tuple[str | None, ...],
    *,
    multiplied: bool = False,
    tied: bool = False,
    parts: tuple[int, ...] = (),
    quantization: Quantization | None = None,
) -> nnx.Param[Array]:
    """A parameter of this shape, with a logical name for each axis, and no array yet.

    ``multiplied``: it is only used by `matmul`, which chooses how it is stored. ``tied``: its
    transpose is such a parameter, see `fjx.models.split.TensorSpec`. ``parts``: widths of what is
    fused in it along its last axis. ``quantization``: how its entries become eight bits wide, if
    they do.
    """
    struct: Any = jax.ShapeDtypeStruct(shape, jnp.float32)  # type: ignore[no-untyped-call]
    return nnx.Param(
        struct,
        out_sharding=axes,
        eager_sharding=False,
        multiplied=multiplied,
        tied=tied,
        parts=parts,
        quantization=quantization,
    )


class RMSNorm(nnx.Module):
    """Root mean square norm (Zhang and Sennrich 2019) over the last axis, in float32."""

    def __init__(self, size: int, eps: float) -> None:
        self.weight = param((size,), (None,))
        self.eps = eps

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        """Norm each row."""
        return rms_norm(x, self.weight[...], self.eps)


class LayerNorm(nnx.Module):
    """Layer norm (Ba et al. 2016) over the last axis, in float32."""

    def __init__(self, size: int, eps: float) -> None:
        self.weight = param((size,), (None,))
        self.bias = param((size,), (None,))
        self.eps = eps

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        """Norm each row."""
        return layer_norm(x, self.weight[...], self.bias[...], self.eps)


class Linear(nnx.Module):
    """A matrix product in the type of the weights, summed in float32, and an optional bias.

    Under tensor parallelism a device has some of the columns, or some of the rows and sums the
    products with the other devices (Shoeybi et al. 2019, arXiv:1909.08053).
    """

    def __init__(
        self,
        inputs: int,
        outputs: int | tuple[int, ...],
        axes: tuple[str, str],
        *,
        bias: bool = False,
        tensor: int = 1,
        quantization: Quantization | None = None,
    ) -> None:
        """``outputs``: one width, or those of several matrices that are fused."""
        parts = outputs if isinstance(outputs, tuple) else ()
        self.outputs = outputs if isinstance(outputs, int) else sum(outputs)
        self.weight = param(
            (inputs, self.outputs), axes, multiplied=True, parts=parts, quantization=quantization
        )
        self.bias = param((self.outputs,), axes[1:], parts=parts) if bias else None
        self.sums = tensor > 1 and axes[0] in SPLIT_AXES

    def __call__(self, x: Float[Array, "T I"]) -> Float[Array, "T O"]:
        """Multiply each row."""
        y = matmul(x, self.weight.get_value(), self.outputs)
        if self.sums:
            y = lax.psum(y, TENSOR_AXIS)  # type: ignore[no-untyped-call]
        return y if self.bias is None else y + self.bias[...]


class Attention(nnx.Module):
    """Causal attention over pages, with grouped heads, RoPE, and what families add to it."""

    def __init__(self, config: ModelConfig) -> None:
        self.heads, self.kv_heads = config.num_heads, config.num_kv_heads
        self.head_dim = config.head_dim
        self.scale, self.soft_cap = config.attention_scale, config.attention_soft_cap
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        self.qkv = Linear(
            config.hidden_size,
            (queries, keys, keys),
            ("embed", "heads"),
            bias=config.qkv_bias,
            quantization=config.quantization,
        )
        self.o = Linear(
            queries,
            config.hidden_size,
            ("heads", "embed"),
            bias=config.o_bias,
            tensor=config.tensor,
            quantization=config.quantization,
        )
        self.q_norm = RMSNorm(self.head_dim, config.norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(self.head_dim, config.norm_eps) if config.qk_norm else None

    def __call__(
        self, x: Float[Array, "T D"], kv_pages: Array, at: BlockInputs
    ) -> tuple[Float[Array, "T D"], Array]:
        """Write the rows' keys and values into the pages, attend, and project."""
        qkv = self.qkv(x).reshape(-1, self.heads + 2 * self.kv_heads, self.head_dim)
        q, k, v = jnp.split(qkv, [self.heads, self.heads + self.kv_heads], axis=1)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        attended, kv_pages = append_and_attend(
            q,
            k,
            v,
            kv_pages,
            at.layer,
            at.rows,
            rotation=at.rotation,
            scale=self.scale,
            window=at.window,
            soft_cap=self.soft_cap,
        )
        return self.o(attended.reshape(-1, self.heads * self.head_dim)), kv_pages


class GatedMlp(nnx.Module):
    """``down(act(gate(x)) * up(x))``, gate and up fused into one product (Shazeer 2020)."""

    def __init__(self, config: ModelConfig) -> None:
        F = config.mlp_width
        self.activation = config.activation
        self.gate_up = _to_mlp(config, (F, F))
        self.down = _from_mlp(config)

    def __call__(self, x: Float[Array, "T D"]) -> Float[Array, "T D"]:
        """Run the MLP on each row."""
        gate, up = jnp.split(self.gate_up(x), 2, axis=-1)
        return self.down(ACTIVATIONS[self.activation](gate) * up)


class Mlp(nnx.Module):
    """``down(act(up(x)))``."""

    def __init__(self, config: ModelConfig) -> None:
        self.activation = config.activation
        self.up = _to_mlp(config, config.mlp_width)
        self.down = _from_mlp(config)

    def __call__(self, x: Float[Array, "T D"]) -> Float[Array, "T D"]:
        """Run the MLP on each row."""
        return self.down(ACTIVATIONS[self.activation](self.up(x)))


def _to_mlp(config: ModelConfig, outputs: int | tuple[int, ...]) -> Linear:
    return Linear(
        config.hidden_size,
        outputs,
        ("embed", "mlp"),
        bias=config.mlp_bias,
        quantization=config.quantization,
    )


def _from_mlp(config: ModelConfig) -> Linear:
    return Linear(
        config.mlp_width,
        config.hidden_size,
        ("mlp", "embed"),
        bias=config.mlp_bias,
        tensor=config.tensor,
        quantization=config.quantization,
    )


class TokenEmbed(nnx.Module):
    """A table of token embeddings, with a constant factor."""

    def __init__(self, config: ModelConfig) -> None:
        self.shape = config.vocab_size, config.hidden_size
        self.tokens = param(self.shape, ("vocab", "embed"), tied=config.tied_embeddings)
        self.scale = config.embed_scale
        self.tensor = config.tensor

    def __call__(self, tokens: Int32[Array, " T"], rows: RaggedRows) -> Float[Array, "T D"]:
        """Look up each row's token."""
        x = self._look_up(tokens).astype(jnp.float32)
        return x if self.scale == 1.0 else x * self.scale

    def _look_up(self, tokens: Int32[Array, " T"]) -> Array:
        if self.tensor == 1:
            return self._rows_of(tokens)
        # Each device has some of the vocabulary; the others add zeros to its rows.
        vocabulary = self.shape[0]
        mine = tokens - lax.axis_index(TENSOR_AXIS) * vocabulary
        found = (mine >= 0) & (mine < vocabulary)
        x = jnp.where(found[:, None], self._rows_of(jnp.where(found, mine, 0)), 0)
        summed: Array = lax.psum(  # type: ignore[no-untyped-call]
            x.astype(jnp.float32), TENSOR_AXIS
        )
        return summed

    def _rows_of(self, tokens: Int32[Array, " T"]) -> Array:
        table = self.tokens.get_value()
        return columns(table, tokens, self.shape[1]) if is_packed(table) else table[tokens]


class Head(nnx.Module):
    """The last norm and the product with the vocabulary."""

    def __init__(self, config: ModelConfig, norm: Callable[[int, float], nnx.Module]) -> None:
        self.norm = norm(config.hidden_size, config.norm_eps)
        self.unembed = Linear(config.hidden_size, config.vocab_size, ("embed", "vocab"))
        self.soft_cap = config.logit_soft_cap
        self.tensor = config.tensor

    def __call__(self, x: Float[Array, "S D"]) -> Float[Array, "S V"]:
        """Logits of each row, over the whole vocabulary on each device."""
        logits = self.unembed(self.norm(x))
        if self.tensor > 1:
            logits = lax.all_gather(logits, TENSOR_AXIS, axis=1, tiled=True)
        if self.soft_cap is not None:
            logits = self.soft_cap * jnp.tanh(logits / self.soft_cap)
        return logits
