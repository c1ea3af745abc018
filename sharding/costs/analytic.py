"""The granule graph without a profile: costs from a model's sizes and a device's peak figures.

Time is the roofline (Williams et al. 2009): a pass takes as long as its arithmetic or its memory
traffic, whichever is longer. It ranks cuts well and promises no milliseconds: measure a profile
where seconds matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fjx.sharding.costs.graph import GranuleGraph, PieceCost

_RESIDUAL_BYTES = _VECTOR_BYTES = _LOGIT_BYTES = 4
"""The residual stream, vectors such as norms, and logits are float32."""


@dataclass(frozen=True, kw_only=True)
class ModelSizes:
    """The sizes of a decoder that its costs depend on."""

    model: str
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    mlp_width: int
    vocab_size: int
    mlp_matrices: int = 3
    """Matrices of an MLP: 3 with a gate, 2 without."""
    parameter_bytes: int = 2
    """Bytes of one entry of a matrix; vectors are float32."""
    block_parameter_bytes: int | None = None
    """Bytes of one entry of a matrix of the blocks; None: as ``parameter_bytes``."""
    kv_bytes: int = 2
    """Bytes of one entry of the KV pages."""

    @property
    def split_sizes(self) -> tuple[tuple[str, int], ...]:
        """What tensor parallelism divides."""
        return (
            ("query heads", self.num_heads),
            ("KV heads", self.num_kv_heads),
            ("MLP width", self.mlp_width),
            ("vocabulary", self.vocab_size),
        )

    @property
    def layer_entries(self) -> int:
        """Matrix entries of one layer."""
        attention = 2 * self.hidden_size * self.head_dim * (self.num_heads + self.num_kv_heads)
        return attention + self.mlp_matrices * self.hidden_size * self.mlp_width


@dataclass(frozen=True, kw_only=True)
class DeviceFigures:
    """What a device can do at best, and what tensor parallelism costs on its mesh."""

    flops_per_second: float
    memory_bytes_per_second: float
    pass_seconds: float = 0.0
    """Fixed cost of one pass through a piece: dispatch and launches."""
    reduce_bytes_per_second: float = float("inf")
    """Bandwidth of the sums between the devices of a mesh."""
    reduce_seconds: float = 0.0
    """Latency of one such sum."""


def analytic_graph(
    sizes: ModelSizes,
    granule_layers: Sequence[int],
    buckets: Sequence[int],
    device: DeviceFigures,
    *,
    degrees: Sequence[int] = (1,),
    context: int = 512,
) -> GranuleGraph:
    """Estimate the costs of a model's pieces.

    Args:
        sizes: The model.
        granule_layers: Layers of each granule.
        buckets: Rows of a step, growing.
        device: The device of speed 1.
        degrees: Tensor degrees to estimate.
        context: Tokens that a row attends to.

    Returns:
        The graph; every row is taken for a request of its own, as in decoding.
    """
    estimates = _CostEstimates(sizes, tuple(buckets), device, tuple(degrees), context)
    return GranuleGraph(
        model=sizes.model,
        buckets=tuple(buckets),
        embed=estimates.embed(),
        granules=tuple(estimates.granule(layers) for layers in granule_layers),
        head=estimates.head(),
        split_sizes=sizes.split_sizes,
    )


@dataclass(frozen=True)
class _CostEstimates:
    sizes: ModelSizes
    buckets: tuple[int, ...]
    device: DeviceFigures
    degrees: tuple[int, ...]
    context: int

    def embed(self) -> PieceCost:
        sizes = self.sizes
        return self._piece(
            stored_bytes=sizes.vocab_size * sizes.hidden_size * sizes.parameter_bytes,
            # Reads the rows of its tokens, not the table.
            read_bytes=0,
            read_bytes_per_row=sizes.hidden_size * sizes.parameter_bytes,
            handed_on_per_row=sizes.hidden_size * _RESIDUAL_BYTES,
        )

    def granule(self, layers: int) -> PieceCost:
        sizes = self.sizes
        entries = layers * sizes.layer_entries
        stored = entries * (sizes.block_parameter_bytes or sizes.parameter_bytes)
        kv_bytes = layers * 2 * sizes.num_kv_heads * sizes.head_dim * sizes.kv_bytes
        attention = layers * 4 * sizes.num_heads * sizes.head_dim * self.context
        return self._piece(
            layers=layers,
            stored_bytes=stored,
            whole_bytes=layers * 2 * sizes.hidden_size * _VECTOR_BYTES,
            kv_bytes_per_token=kv_bytes,
            flops_per_row=2 * entries + attention,
            read_bytes=stored,
            read_bytes_per_row=kv_bytes * self.context,
            handed_on_per_row=sizes.hidden_size * _RESIDUAL_BYTES,
        )

    def head(self) -> PieceCost:
        sizes = self.sizes
        entries = sizes.vocab_size * sizes.hidden_size
        stored = entries * sizes.parameter_bytes
        return self._piece(
            stored_bytes=stored,
            whole_bytes=sizes.hidden_size * _VECTOR_BYTES,
            flops_per_row=2 * entries,
            read_bytes=stored,
            handed_on_per_row=sizes.vocab_size * _LOGIT_BYTES,
        )

    def _piece(
        self,
        *,
        stored_bytes: int,
        read_bytes: int,
        handed_on_per_row: int,
        layers: int = 0,
        whole_bytes: int = 0,
        kv_bytes_per_token: int = 0,
        flops_per_row: int = 0,
        read_bytes_per_row: int = 0,
    ) -> PieceCost:
        def seconds(rows: int, degree: int) -> float:
            arithmetic = rows * flops_per_row / self.device.flops_per_second
            traffic = (read_bytes + rows * read_bytes_per_row) / self.device.memory_bytes_per_second
            sums = max(1, 2 * layers) * self._reduce_seconds(rows, degree)
            return max(arithmetic, traffic) / degree + sums + self.device.pass_seconds

        return PieceCost(
            layers=layers,
            split_parameter_bytes=stored_bytes,
            whole_parameter_bytes=whole_bytes,
            kv_bytes_per_token=kv_bytes_per_token,
            seconds=tuple((d, tuple(seconds(r, d) for r in self.buckets)) for d in self.degrees),
            activation_bytes=tuple(rows * handed_on_per_row for rows in self.buckets),
        )

    def _reduce_seconds(self, rows: int, degree: int) -> float:
        """One sum of the residual stream over a mesh, as a ring."""
        if degree == 1:
            return 0.0
        size = rows * self.sizes.hidden_size * _RESIDUAL_BYTES
        sent = 2 * (degree - 1) / degree * size
        return sent / self.device.reduce_bytes_per_second + self.device.reduce_seconds
