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


def block_product(rows: int, bfloat16: bool) -> Callable[..., None]:
    """A function for use in kernels: ``out[r, :COLUMNS] = x[r] @ panel`` for so many rows.

    It takes the addresses of x, panel and out, the number of terms, and the bytes from one row of x
    and of out to the next. A term is 32 bits: a float32, or a pair of bfloat16. The panel holds
    `COLUMNS` terms for each term of x.
    """

    @intrinsic
    def multiply(
        typing_context: Any, x: Any, panel: Any, out: Any, terms: Any, x_row: Any, out_row: Any
    ) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            _multiply(builder, args, rows, bfloat16)
            return context.get_dummy_value()

        word = types.int64
        return types.void(word, word, word, word, word, word), generate

    product: Callable[..., None] = multiply
    return product


def _multiply(builder: Any, args: Any, rows: int, bfloat16: bool) -> None:
    x, panel, out, terms, x_row, out_row = args
    row_of = [builder.add(x, builder.mul(x_row, WORD(r))) for r in range(rows)]
    with Loop(builder, terms, [floats(0.0)] * (rows * VECTORS)) as loop:
        at = builder.mul(loop.index, WORD(4 * COLUMNS))
        weights = [
            load(builder, panel, builder.add(at, WORD(4 * LANES * v)), INTS) for v in range(VECTORS)
        ]
        for r in range(rows):
            term = load_all_lanes(builder, row_of[r], builder.mul(loop.index, WORD(4)), INT)
            for v in range(VECTORS):
                sums = loop.carried[r * VECTORS + v]
                loop.carried[r * VECTORS + v] = _add(builder, sums, term, weights[v], bfloat16)
    for r in range(rows):
        for v in range(VECTORS):
            offset = builder.add(builder.mul(out_row, WORD(r)), WORD(4 * LANES * v))
            store(builder, loop.carried[r * VECTORS + v], out, offset)


def _add(builder: Any, sums: Any, term: Any, weights: Any, bfloat16: bool) -> Any:
    if bfloat16:
        return add_pair_products(builder, sums, term, weights)
    wide = [builder.bitcast(value, FLOATS) for value in (term, weights)]
    return add_products(builder, sums, *wide)
