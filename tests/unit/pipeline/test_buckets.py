"""Padded sizes."""

from __future__ import annotations

import pytest

from fjx.pipeline.buckets import SMALLEST, bucket_for, row_buckets

LARGEST = [1, 2, 3, 8, 20, 64, 100, 256, 1000]


@pytest.mark.parametrize("largest", LARGEST)
def test_every_number_of_rows_has_a_bucket_at_most_twice_its_size(largest: int) -> None:
    buckets = row_buckets(largest)
    assert list(buckets) == sorted(set(buckets))
    assert buckets[0] == SMALLEST
    assert buckets[-1] == max(largest, SMALLEST)
    for rows in range(1, largest + 1):
        bucket = bucket_for(rows, buckets)
        assert rows <= bucket <= 2 * rows
        assert not any(rows <= smaller < bucket for smaller in buckets)


def test_padding_wastes_less_where_steps_are_large() -> None:
    buckets = row_buckets(1024)
    assert all(bucket_for(rows, buckets) <= 1.5 * rows for rows in range(16, 1025))
    assert len(buckets) < 20


def test_too_many_rows_are_an_error_with_both_numbers() -> None:
    with pytest.raises(ValueError, match="65 rows exceed the largest bucket, 64"):
        bucket_for(65, row_buckets(64))
