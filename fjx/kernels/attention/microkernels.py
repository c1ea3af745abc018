"""The two inner loops of attention on a CPU: a few queries times sixteen slots of a page.

Both keep their sums in vector registers, and each vector of keys or values that is read serves all
the queries. A query's sums are taken in an order that depends on nothing but its own request.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from numba import types
from numba.extending import intrinsic

from fjx.kernels.vectors import (
    FLOAT,
    FLOATS,
    INT,
    LANES,
    WORD,
    Loop,
    add_products,
    all_lanes,
    exp_below_zero,
    floats,
    fold,
    largest,
    load,
    load_all_lanes,
    load_floats,
    store,
)


def block_scores(rows: int, bfloat16: bool) -> Callable[..., None]:
    """A function for use in kernels: ``scores[r, :LANES] = queries[r] @ keys`` for ``rows`` rows.

    It takes the addresses of queries, keys and scores, the head size, and the bytes from one row of
    queries and of scores to the next. Keys are (head size, `LANES`).
    """

    @intrinsic
    def score(
        typing_context: Any, q: Any, keys: Any, out: Any, size: Any, q_row: Any, out_row: Any
    ) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            _score(builder, args, rows, bfloat16)
            return context.get_dummy_value()

        word = types.int64
        return types.void(word, word, word, word, word, word), generate

    scores: Callable[..., None] = score
    return scores


def _score(builder: Any, args: Any, rows: int, bfloat16: bool) -> None:
    queries, keys, out, size, q_row, out_row = args
    row_of = [builder.add(queries, builder.mul(q_row, WORD(r))) for r in range(rows)]
    step = (2 if bfloat16 else 4) * LANES
    with Loop(builder, size, [floats(0.0)] * rows) as loop:
        key = load_floats(builder, keys, builder.mul(loop.index, WORD(step)), bfloat16)
        at = builder.mul(loop.index, WORD(4))
        for r in range(rows):
            query = load_all_lanes(builder, row_of[r], at, FLOAT)
            loop.carried[r] = add_products(builder, loop.carried[r], query, key)
    for r in range(rows):
        store(builder, loop.carried[r], out, builder.mul(out_row, WORD(r)))


def add_block_values(rows: int, vectors: int, bfloat16: bool) -> Callable[..., None]:
    """A function for use in kernels: ``sums[r] += weights[r, :used] @ values[:used]``.

    It takes the addresses of weights, values and sums, the number of slots used, and the bytes from
    one row of weights, of values and of sums to the next. It does ``vectors * LANES`` columns.
    """

    @intrinsic
    def add_values(
        typing_context: Any,
        weights: Any,
        values: Any,
        sums: Any,
        used: Any,
        weights_row: Any,
        values_row: Any,
        sums_row: Any,
    ) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            _add_values(builder, args, rows, vectors, bfloat16)
            return context.get_dummy_value()

        word = types.int64
        return types.void(word, word, word, word, word, word, word), generate

    add: Callable[..., None] = add_values
    return add


def _add_values(builder: Any, args: Any, rows: int, vectors: int, bfloat16: bool) -> None:
    weights, values, sums, used, weights_row, values_row, sums_row = args
    row_of = [builder.add(weights, builder.mul(weights_row, WORD(r))) for r in range(rows)]
    sum_of = [builder.add(sums, builder.mul(sums_row, WORD(r))) for r in range(rows)]
    before = [
        load(builder, sum_of[r], WORD(4 * LANES * v), FLOATS)
        for r in range(rows)
        for v in range(vectors)
    ]
    step = (2 if bfloat16 else 4) * LANES
    with Loop(builder, used, before) as loop:
        row = builder.add(values, builder.mul(loop.index, values_row))
        read = [load_floats(builder, row, WORD(step * v), bfloat16) for v in range(vectors)]
        at = builder.mul(loop.index, WORD(4))
        for r in range(rows):
            weight = load_all_lanes(builder, row_of[r], at, FLOAT)
            for v in range(vectors):
                carried = loop.carried[r * vectors + v]
                loop.carried[r * vectors + v] = add_products(builder, carried, weight, read[v])
    for r in range(rows):
        for v in range(vectors):
            store(builder, loop.carried[r * vectors + v], sum_of[r], WORD(4 * LANES * v))


@intrinsic
def weigh(typing_context: Any, scores: Any, blocks: Any, top: Any, total: Any) -> Any:
    """Turn a row's scores into weights, ``exp(score - largest)``; gives the factor by which earlier
    weights shrink.

    It takes the addresses of the scores, of the largest score and of the sum of weights so far,
    which it updates, and the number of blocks of `LANES` scores.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        scores, blocks, top, total = args
        before = load(builder, top, WORD(0), FLOAT)
        with Loop(builder, blocks, [all_lanes(builder, before)]) as loop:
            block = load(builder, scores, builder.mul(loop.index, WORD(4 * LANES)), FLOATS)
            loop.carried[0] = largest(builder, loop.carried[0], block)
        best = fold(builder, loop.carried[0], partial(largest, builder))
        best_lanes = all_lanes(builder, best)
        with Loop(builder, blocks, [floats(0.0)]) as loop:
            at = builder.mul(loop.index, WORD(4 * LANES))
            block = load(builder, scores, at, FLOATS)
            weights = exp_below_zero(builder, builder.fsub(block, best_lanes))
            store(builder, weights, scores, at)
            loop.carried[0] = builder.fadd(loop.carried[0], weights)
        difference = builder.fsub(all_lanes(builder, before), best_lanes)
        shrink = builder.extract_element(exp_below_zero(builder, difference), INT(0))
        old = builder.fmul(load(builder, total, WORD(0), FLOAT), shrink)
        store(
            builder, builder.fadd(old, fold(builder, loop.carried[0], builder.fadd)), total, WORD(0)
        )
        store(builder, best, top, WORD(0))
        return shrink

    word = types.int64
    return types.float32(word, word, word, word), generate
