"""Padded sizes: programs are compiled for a few numbers of rows, and a step is padded to the next
one."""

from __future__ import annotations

from bisect import bisect_left

SMALLEST = 2
"""No program has a single row: on a CPU, XLA's matrix-vector path gives other bits than its matrix
path, and in bfloat16 it is many times slower."""


def row_buckets(largest: int) -> tuple[int, ...]:
    """Sizes from `SMALLEST` to ``largest``, growing by a third to a half: 2, 4, 8, 16, 24, 32, 48,
    ..."""
    sizes, power = [SMALLEST, 4, 8], 16
    while power < largest:
        sizes += [power, power * 3 // 2]
        power *= 2
    return (*(size for size in sizes if size < largest), max(largest, SMALLEST))


def bucket_for(size: int, buckets: tuple[int, ...]) -> int:
    """The smallest bucket that holds ``size`` rows.

    Raises:
        ValueError: none does.
    """
    if size > buckets[-1]:
        raise ValueError(f"{size} rows exceed the largest bucket, {buckets[-1]}")
    return buckets[bisect_left(buckets, size)]
