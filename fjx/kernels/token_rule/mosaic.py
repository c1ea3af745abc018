"""The token rule on Hopper GPUs, in Pallas for Mosaic GPU: each logit is read once.

A row's vocabulary is cut into chunks of some pieces, and a work item is one chunk of one row. As
many blocks as the caller allows take the items in turn, a warpgroup each. A warpgroup keeps, for
each place of a piece, the largest value so far and the piece that it came from; what is left of a
chunk are its best places. Values are compared, never added up, so that a row's token does not
depend on how its vocabulary was cut.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jaxtyping import Array, Float, Int32

from fjx.kernels import mosaic
from fjx.kernels.mosaic import plgpu
from fjx.kernels.token_rule import reference
from fjx.kernels.token_rule.noise import noise_of
from fjx.kernels.token_rule.reference import SamplingRows, mix, row_bits, token_bits

_LINES, _WIDTH = 64, 16
"""A piece of a row's logits, as a warpgroup holds it: 8 of them in each thread. Several pieces, and
what becomes of one, have to fit into its registers."""
_PIECE = _LINES * _WIDTH
_WARPGROUPS = 4
"""Of a block."""
_MAX_PIECES = 32
"""Of a chunk."""
_END = 0.5
"""What the end of a chunk costs, in pieces: about as many instructions."""
_LAYOUT = plgpu.Layout.WGMMA


def choose_tokens(
    logits: Float[Array, "S V"], rows: SamplingRows, *, blocks: int = 132
) -> Int32[Array, " S"]:
    """See `fjx.kernels.token_rule.api.choose_tokens`.

    Args:
        blocks: of the grid; fewer than the GPU has multiprocessors leave the others to whatever
            runs beside it.
    """
    tokens = _best_tokens(logits, rows, blocks)
    truncates = (rows.top_k > 0) | (rows.top_p < 1.0) | (rows.min_p > 0)
    truncates &= rows.temperature > 0
    chosen: Array = lax.cond(
        jnp.any(truncates),
        lambda: jnp.where(truncates, reference.choose_tokens(logits, rows), tokens),
        lambda: tokens,
    )
    return chosen


def _best_tokens(
    logits: Float[Array, "S V"], rows: SamplingRows, blocks: int
) -> Int32[Array, " S"]:
    """Without truncation."""
    S, V = logits.shape
    # The vocabularies of real models need no padding, which copies the logits.
    padded = max(-(-V // _WIDTH) * _WIDTH, _PIECE)
    logits = jnp.pad(logits, ((0, 0), (0, padded - V)), constant_values=-jnp.inf)
    hot = rows.temperature > 0
    factors = jnp.where(hot, 1 / jnp.where(hot, rows.temperature, 1.0), 0.0)
    bits = row_bits(rows.seed, rows.position)
    kernel = _TokenKernel(S, padded // _WIDTH, blocks)
    values, tokens = kernel.made()(factors, bits, logits.reshape(S, -1, _WIDTH))
    values, tokens = values.reshape(S, -1), tokens.reshape(S, -1)
    largest = values.max(axis=1, keepdims=True)
    chosen: Array = jnp.where(values == largest, tokens, V).min(axis=1)
    return chosen


@dataclass(frozen=True)
class _TokenKernel:
    """The best token of each line of each chunk."""

    rows: int
    lines: int
    """Of a row."""
    blocks: int

    @property
    def _pieces(self) -> int:
        return -(-self.lines // _LINES)

    @property
    def _of_chunk(self) -> int:
        """Pieces of a chunk, chosen so that the last warpgroup is done as soon as possible."""

        def pieces_of_the_busiest(each: int) -> float:
            items = self.rows * -(-self._pieces // each)
            return -(-items // (self.blocks * _WARPGROUPS)) * (each + _END)

        return min(range(1, _MAX_PIECES + 1), key=pieces_of_the_busiest)

    @property
    def _chunks(self) -> int:
        return -(-self._pieces // self._of_chunk)

    def made(self) -> Callable[..., Any]:
        """From each row's factor (one over the temperature; 0: greedy), its bits, and the logits
        [S, lines, 16]: of each line of each chunk [S, chunks, 64] the largest value and its token.
        """

        def body(factors, row_bits, logits, *found):  # type: ignore[no-untyped-def]
            workers = self.blocks * _WARPGROUPS
            here = lax.axis_index("wg") * self.blocks + lax.axis_index("block")

            def choose(i: Any, _: None) -> None:
                item = here + i * workers
                row, chunk = item // self._chunks, item % self._chunks
                factor, bits = factors[row], row_bits[row]

                def with_noise(values: Array, token: Array) -> Array:
                    noisy: Array = values * factor + noise_of(mix(token_bits(token) ^ bits))
                    return noisy

                def without(values: Array, token: Array) -> Array:
                    return values

                for process, applies in ((with_noise, factor > 0), (without, factor == 0)):
                    of_chunk = partial(self._choose, logits.at[row], chunk, process)
                    to = [each.at[row, chunk] for each in found]
                    pl.when(applies)(partial(_store, of_chunk, to))

            count = (self.rows * self._chunks - here + workers - 1) // workers
            lax.fori_loop(0, count, choose, None)

        shape = (self.rows, self._chunks, _LINES)
        return mosaic.kernel(
            body,
            results=(mosaic.struct(shape, jnp.float32), mosaic.struct(shape, jnp.int32)),
            scratch=[],
            grid=(self.blocks,),
            grid_names=("block",),
            warpgroups=_WARPGROUPS,
            name="fjx_choose",
        )

    def _choose(
        self, logits: Any, chunk: Any, process: Callable[[Array, Array], Array]
    ) -> tuple[Array, Array]:
        """Of each line of a chunk of a row's logits [lines, 16], the largest value and its token,
        the first among equals."""
        line = plgpu.broadcasted_iota(jnp.int32, (_LINES, _WIDTH), 0, layout=_LAYOUT)
        column = plgpu.broadcasted_iota(jnp.int32, (_LINES, _WIDTH), 1, layout=_LAYOUT)
        place = line * _WIDTH + column
        begin = chunk * self._of_chunk
        end = jnp.minimum(begin + self._of_chunk, self._pieces)

        def first_line(piece: Any) -> Any:
            # The last piece overlaps the one before it, which changes no maximum.
            return jnp.minimum(piece * _LINES, self.lines - _LINES)

        def load(piece: Any) -> Array:
            piece = jnp.minimum(piece, end - 1)
            loaded: Array = mosaic.load(logits.at[pl.ds(first_line(piece), _LINES)], _LAYOUT)
            return loaded

        def take(piece: Any, state: tuple[Array, ...]) -> tuple[Array, ...]:
            values, following, best, at = state
            after = load(piece + 2)  # two pieces are on their way meanwhile
            token = place + first_line(piece) * _WIDTH
            values = process(values, token)
            better = values > best
            return following, after, jnp.where(better, values, best), jnp.where(better, token, at)

        nothing = jnp.full((_LINES, _WIDTH), -jnp.inf, jnp.float32)
        nothing = plgpu.layout_cast(nothing, _LAYOUT)
        start = load(begin), load(begin + 1), nothing, place + first_line(begin) * _WIDTH
        *_, best, at = lax.fori_loop(begin, end, take, start)
        largest = best.max(axis=1)
        is_largest = best == lax.broadcast_in_dim(largest, best.shape, [0])
        others = jnp.full_like(at, self.lines * _WIDTH)
        return largest, jnp.where(is_largest, at, others).min(axis=1)


def _store(find: Callable[[], tuple[Array, ...]], to: Sequence[Any]) -> None:
    for values, ref in zip(find(), to, strict=True):
        ref[...] = values
