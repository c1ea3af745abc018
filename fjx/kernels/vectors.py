"""Vector instructions for CPU kernels, as LLVM text that Numba takes in.

Numba turns loops over arrays into vector instructions where it can prove enough about them; it
cannot be told to keep sums in registers over a loop, and has no bfloat16. The inner loops of
products and attention are therefore written with LLVM's builder, sixteen lanes a vector.
"""

from __future__ import annotations

from typing import Any

import llvmlite.binding
from llvmlite import ir

_FEATURES = llvmlite.binding.get_host_cpu_features()
HAS_BFLOAT16_PRODUCTS = bool(_FEATURES.get("avx512bf16"))
HAS_BYTE_TABLES = HAS_BFLOAT16_PRODUCTS and bool(_FEATURES.get("avx512vbmi"))
"""Whether 64 bytes can be looked up at once in a table of 128."""
LANES = 16
VECTORS = 4 if _FEATURES.get("avx512f") else 1
"""Vectors of sums for each of `MAX_ROWS` rows that the registers hold."""
MAX_ROWS = 6

WORD, INT, HALF, BYTE = (ir.IntType(bits) for bits in (64, 32, 16, 8))
FLOAT = ir.FloatType()
INTS, HALVES, FLOATS = (ir.VectorType(of, LANES) for of in (INT, HALF, FLOAT))


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


def pointer(builder: Any, base: Any, offset: Any, to: Any) -> Any:
    """A typed pointer to an address plus an offset in bytes."""
    return builder.inttoptr(builder.add(base, offset), to.as_pointer())


def load(builder: Any, base: Any, offset: Any, kind: Any) -> Any:
    """Read a number or a vector, wherever it lies."""
    return builder.load(pointer(builder, base, offset, kind), align=_bytes(kind))


def store(builder: Any, value: Any, base: Any, offset: Any) -> None:
    """Write a number or a vector, wherever it lies."""
    builder.store(value, pointer(builder, base, offset, value.type), align=_bytes(value.type))


def _bytes(kind: Any) -> int:
    element = kind.element if isinstance(kind, ir.VectorType) else kind
    return 4 if element in (INT, FLOAT) else element.width // 8


def load_all_lanes(builder: Any, base: Any, offset: Any, kind: Any) -> Any:
    """Read one number into all lanes of a vector."""
    vector = ir.VectorType(kind, LANES)
    unset = ir.Constant(vector, ir.Undefined)
    first = builder.insert_element(unset, load(builder, base, offset, kind), INT(0))
    return builder.shuffle_vector(first, unset, ints(0))


def load_floats(builder: Any, base: Any, offset: Any, bfloat16: bool) -> Any:
    """Read a vector of float32, or of bfloat16 made wide."""
    if not bfloat16:
        return load(builder, base, offset, FLOATS)
    wide = builder.zext(load(builder, base, offset, HALVES), INTS)
    return builder.bitcast(builder.shl(wide, ints(16)), FLOATS)


def add_products(builder: Any, sums: Any, x: Any, y: Any) -> Any:
    """``sums + x * y``, in one instruction where the processor has it."""
    add = declared(builder.module, f"llvm.fmuladd.v{LANES}f32", FLOATS, [FLOATS, FLOATS, FLOATS])
    return builder.call(add, [x, y, sums])


def add_pair_products(builder: Any, sums: Any, x: Any, y: Any) -> Any:
    """``sums + x[0] * y[0] + x[1] * y[1]`` for vectors of pairs of bfloat16 in 32-bit lanes
    (AVX512_BF16's ``vdpbf16ps``)."""
    name = "llvm.x86.avx512bf16.dpbf16ps.512"
    add = declared(builder.module, name, FLOATS, [FLOATS, _PAIRS, _PAIRS])
    return builder.call(add, [sums, builder.bitcast(x, _PAIRS), builder.bitcast(y, _PAIRS)])


def all_lanes(builder: Any, number: Any) -> Any:
    """A vector of one float32."""
    unset = ir.Constant(FLOATS, ir.Undefined)
    first = builder.insert_element(unset, number, INT(0))
    return builder.shuffle_vector(first, unset, ints(0))


def floats(value: float) -> Any:
    """A vector of one constant."""
    return ir.Constant(FLOATS, [value] * LANES)


def ints(value: int) -> Any:
    """A vector of one constant."""
    return ir.Constant(INTS, [value] * LANES)


def largest(builder: Any, x: Any, y: Any) -> Any:
    """The larger of each two lanes."""
    return builder.select(builder.fcmp_ordered(">", x, y), x, y)


def fold(builder: Any, vector: Any, join: Any) -> Any:
    """Join all lanes to one number, by joining the upper half to the lower half again and again."""
    width = LANES
    while width > 1:
        width //= 2
        upper = [min(width + lane, LANES - 1) for lane in range(LANES)]
        moved = builder.shuffle_vector(vector, vector, ir.Constant(INTS, upper))
        vector = join(vector, moved)
    return builder.extract_element(vector, INT(0))


def exp_below_zero(builder: Any, x: Any) -> Any:
    """exp(x) for x <= 0, to 2 units in the last place; 0 below exp(-87)."""
    whole = declared(builder.module, f"llvm.floor.v{LANES}f32", FLOATS, [FLOATS])
    y = builder.fmul(largest(builder, x, floats(-87.0)), floats(1.4426950408889634))
    n = builder.call(whole, [builder.fadd(y, floats(0.5))])
    z = builder.fmul(builder.fsub(y, n), floats(0.6931471805599453))
    p = floats(1.9875691500e-4)
    for term in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 0.5):
        p = add_products(builder, floats(term), p, z)
    p = builder.fadd(add_products(builder, z, builder.fmul(p, z), z), floats(1.0))
    exponent = builder.add(builder.fptosi(n, INTS), ints(127))
    power = builder.bitcast(builder.shl(exponent, ints(23)), FLOATS)
    seen = builder.fcmp_ordered(">", x, floats(-87.0))
    return builder.select(seen, builder.fmul(p, power), floats(0.0))


def declared(module: Any, name: str, result: Any, arguments: list[Any]) -> Any:
    """An intrinsic function of LLVM."""
    known = module.globals.get(name)
    return known or ir.Function(module, ir.FunctionType(result, arguments), name)


class Loop:
    """``for index in range(count)``, at least once, with vectors carried from turn to turn.

    ``with Loop(...) as loop``: the body reads ``loop.index`` and ``loop.carried`` and puts each new
    vector back into ``loop.carried``; after the loop it holds the last ones.
    """

    def __init__(self, builder: Any, count: Any, carried: list[Any]) -> None:
        self._builder, self._count, self._initial = builder, count, carried

    def __enter__(self) -> Loop:
        builder, before = self._builder, self._builder.basic_block
        self._body = builder.append_basic_block("turn")
        self._after = builder.append_basic_block("after")
        builder.branch(self._body)
        builder.position_at_end(self._body)
        self.index = builder.phi(WORD)
        self.index.add_incoming(WORD(0), before)
        self._phis = [builder.phi(initial.type) for initial in self._initial]
        for phi, initial in zip(self._phis, self._initial, strict=True):
            phi.add_incoming(initial, before)
        self.carried: list[Any] = list(self._phis)
        return self

    def __exit__(self, *exception: object) -> None:
        builder = self._builder
        following = builder.add(self.index, WORD(1))
        self.index.add_incoming(following, self._body)
        for phi, value in zip(self._phis, self.carried, strict=True):
            phi.add_incoming(value, self._body)
        builder.cbranch(builder.icmp_signed("<", following, self._count), self._body, self._after)
        builder.position_at_end(self._after)
