"""The innermost loop of a product on a CPU.

A block of a few rows times one panel: sums stay in vector registers from the first term to the
last, and each vector of weights that is read serves all rows. The terms of a sum are added in the
order of the matrix's rows, whatever the number of rows of the block: a row's result depends on that
row alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import types
from numba.extending import intrinsic

from fjx.kernels.matmul.quantized import Quantization
from fjx.kernels.matmul.widening import in_order, load_floats_of_bytes, load_pairs_of_bytes
from fjx.kernels.vectors import (
    FLOATS,
    INT,
    INTS,
    LANES,
    VECTORS,
    WORD,
    Loop,
    add_pair_products,
    add_products,
    floats,
    load,
    load_all_lanes,
    store,
)

COLUMNS = LANES * VECTORS
"""Columns of a panel."""


def block_product(
    rows: int, bfloat16: bool, quantization: Quantization | None = None
) -> Callable[..., None]:
    """A function for use in kernels: ``out[r, :COLUMNS] = x[r] @ panel`` for ``rows`` rows.

    It takes the addresses of x, panel, scale and out, the number of terms, and the bytes from one
    row of x and of out to the next. A term is 32 bits of x: a float32, or a pair of bfloat16. The
    panel holds `COLUMNS` times as many weights for each term. Those of eight bits are made as wide
    as x when they are read, and the sums are multiplied by the scale of their column; others need
    none.
    """

    @intrinsic
    def multiply(
        typing_context: Any,
        x: Any,
        panel: Any,
        scale: Any,
        out: Any,
        terms: Any,
        x_row: Any,
        out_row: Any,
    ) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            _multiply(builder, args, rows, bfloat16, quantization)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 7), generate

    product: Callable[..., None] = multiply
    return product


def _multiply(
    builder: Any, args: Any, rows: int, bfloat16: bool, quantization: Quantization | None
) -> None:
    x, panel, scale, out, terms, x_row, out_row = args
    row_of = [builder.add(x, builder.mul(x_row, WORD(r))) for r in range(rows)]
    with Loop(builder, terms, [floats(0.0)] * (rows * VECTORS)) as loop:
        weights = _load_weights(builder, panel, loop.index, bfloat16, quantization)
        for r in range(rows):
            term = load_all_lanes(builder, row_of[r], builder.mul(loop.index, WORD(4)), INT)
            for v in range(VECTORS):
                sums = loop.carried[r * VECTORS + v]
                loop.carried[r * VECTORS + v] = _add(builder, sums, term, weights[v], bfloat16)
    for r in range(rows):
        sums = loop.carried[r * VECTORS : (r + 1) * VECTORS]
        if bfloat16 and quantization is not None:
            pairs = zip(sums[::2], sums[1::2], strict=True)
            sums = [each for pair in pairs for each in in_order(builder, *pair)]
        for v in range(VECTORS):
            column = WORD(4 * LANES * v)
            if quantization is not None:
                sums[v] = builder.fmul(sums[v], load(builder, scale, column, FLOATS))
            store(builder, sums[v], out, builder.add(builder.mul(out_row, WORD(r)), column))


def _load_weights(
    builder: Any, panel: Any, term: Any, bfloat16: bool, quantization: Quantization | None
) -> list[Any]:
    """A term's weights, of all columns."""
    lane_bytes = 4 if quantization is None else 2 if bfloat16 else 1
    at = builder.mul(term, WORD(lane_bytes * COLUMNS))
    offsets = [builder.add(at, WORD(lane_bytes * LANES * v)) for v in range(VECTORS)]
    if quantization is None:
        return [load(builder, panel, offset, INTS) for offset in offsets]
    if not bfloat16:
        return [load_floats_of_bytes(builder, panel, offset, quantization) for offset in offsets]
    pairs = (load_pairs_of_bytes(builder, panel, offset, quantization) for offset in offsets[::2])
    return [each for pair in pairs for each in pair]


def _add(builder: Any, sums: Any, term: Any, weights: Any, bfloat16: bool) -> Any:
    if bfloat16:
        return add_pair_products(builder, sums, term, weights)
    wide = [builder.bitcast(value, FLOATS) for value in (term, weights)]
    return add_products(builder, sums, *wide)
