"""The innermost loop of a product on a CPU, written in LLVM's language.

A block of a few rows times one panel: sums stay in vector registers from the first term to the
last, and each vector of weights that is read serves all rows. Numba alone cannot say this: it does
not know the registers, nor the processor's bfloat16 instruction (AVX512_BF16's ``vdpbf16ps``, which
adds the products of two neighbouring terms to sixteen sums at once).

The terms of a sum are added in the order of the matrix's rows, whatever the number of rows of the
block: a row's result depends on that row alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import llvmlite.binding
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

_FEATURES = llvmlite.binding.get_host_cpu_features()
HAS_BFLOAT16_PRODUCTS = bool(_FEATURES.get("avx512bf16"))
LANES = 16
VECTORS = 4 if _FEATURES.get("avx512f") else 1
"""Vectors of sums a row; with `MOST_ROWS` rows they fill the registers."""
COLUMNS = LANES * VECTORS
"""Columns of a panel."""
MOST_ROWS = 6

_WORD, _FLOAT, _INT = ir.IntType(64), ir.FloatType(), ir.IntType(32)
_SUMS = ir.VectorType(_FLOAT, LANES)


class _BFloat(ir.types.Type):
    """LLVM's ``bfloat``, which llvmlite has no name for."""

    intrinsic_name = "bf16"

    def __str__(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat)

    def __hash__(self) -> int:
        return hash(_BFloat)


_PAIRS = ir.VectorType(_BFloat(), 2 * LANES)


def _add_pairs(builder: Any, sums: Any, x: Any, weights: Any) -> Any:
    """Add products of pairs of bfloat16 to sums; x and weights are 32-bit lanes."""
    name = "llvm.x86.avx512bf16.dpbf16ps.512"
    add = _declared(builder.module, name, [_SUMS, _PAIRS, _PAIRS])
    return builder.call(add, [sums, builder.bitcast(x, _PAIRS), builder.bitcast(weights, _PAIRS)])


def _add_products(builder: Any, sums: Any, x: Any, weights: Any) -> Any:
    """Add products of float32 to sums, in one instruction where the processor has it."""
    add = _declared(builder.module, f"llvm.fmuladd.v{LANES}f32", [_SUMS, _SUMS, _SUMS])
    return builder.call(add, [builder.bitcast(x, _SUMS), builder.bitcast(weights, _SUMS), sums])


def _declared(module: Any, name: str, arguments: list[Any]) -> Any:
    return module.globals.get(name) or ir.Function(module, ir.FunctionType(_SUMS, arguments), name)


def block_product(rows: int, bfloat16: bool) -> Callable[..., None]:
    """A function for use in kernels: ``out[r, :COLUMNS] = x[r] @ panel`` for some rows.

    It takes the addresses of x, panel and out, the number of terms, and the bytes from one row of x
    and of out to the next. A term is 32 bits: a float32, or a pair of bfloat16. The panel holds
    `COLUMNS` terms for each term of x.
    """
    add = _add_pairs if bfloat16 else _add_products

    @intrinsic
    def multiply(
        typing_context: Any,
        x: Any,
        panel: Any,
        out: Any,
        terms: Any,
        x_stride: Any,
        out_stride: Any,
    ) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            _emit(builder, args, rows, add)
            return context.get_dummy_value()

        word = types.int64
        return types.void(word, word, word, word, word, word), generate

    product: Callable[..., None] = multiply
    return product


def _emit(builder: Any, args: Any, rows: int, add: Callable[..., Any]) -> None:
    x, panel, out, terms, x_stride, out_stride = args
    terms_vector = ir.VectorType(_INT, LANES)

    def at(base: Any, offset: Any, kind: Any) -> Any:
        return builder.inttoptr(builder.add(base, offset), kind.as_pointer())

    row_of = [builder.add(x, builder.mul(x_stride, _WORD(r))) for r in range(rows)]
    before = builder.basic_block
    loop = builder.append_basic_block("terms")
    after = builder.append_basic_block("done")
    builder.branch(loop)

    builder.position_at_end(loop)
    term = builder.phi(_WORD)
    term.add_incoming(_WORD(0), before)
    sums = [[builder.phi(_SUMS) for _ in range(VECTORS)] for _ in range(rows)]
    weights = []
    for v in range(VECTORS):
        offset = builder.add(builder.mul(term, _WORD(4 * COLUMNS)), _WORD(4 * LANES * v))
        weights.append(builder.load(at(panel, offset, terms_vector), align=4))
    for r in range(rows):
        one = builder.load(at(row_of[r], builder.mul(term, _WORD(4)), _INT), align=4)
        first = builder.insert_element(ir.Constant(terms_vector, ir.Undefined), one, _INT(0))
        lanes = ir.Constant(ir.VectorType(_INT, LANES), [0] * LANES)
        same = builder.shuffle_vector(first, ir.Constant(terms_vector, ir.Undefined), lanes)
        for v in range(VECTORS):
            total = add(builder, sums[r][v], same, weights[v])
            sums[r][v].add_incoming(ir.Constant(_SUMS, [0.0] * LANES), before)
            sums[r][v].add_incoming(total, loop)
            sums[r][v] = total
    following = builder.add(term, _WORD(1))
    term.add_incoming(following, loop)
    builder.cbranch(builder.icmp_signed("<", following, terms), loop, after)

    builder.position_at_end(after)
    for r in range(rows):
        row = builder.add(out, builder.mul(out_stride, _WORD(r)))
        for v in range(VECTORS):
            builder.store(sums[r][v], at(row, _WORD(4 * LANES * v), _SUMS), align=4)
