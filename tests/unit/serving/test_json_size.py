from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fjx.serving import json_size
from fjx.serving.json_size import json_weight

TEXT = st.text(st.sampled_from(["a", '"', "\\", ",", "[", "{", ":", "é", "\n"]), max_size=12)
JSON = st.recursive(
    st.none() | st.integers() | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=20,
)


def weight_of(value: Any) -> int:
    """Twenty for each list, object and name, four for each other string; one for each value beyond
    the first of its list."""

    def inner(value: Any) -> int:
        if isinstance(value, list):
            return 20 + max(len(value) - 1, 0) + sum(map(inner, value))
        if isinstance(value, dict):
            named = max(len(value) - 1, 0) + 20 * len(value)
            return 20 + named + sum(map(inner, value.values()))
        return 4 if isinstance(value, str) else 0

    return 1 + inner(value)


@given(JSON, st.booleans(), st.sampled_from([1, 2, 3, 7, 1 << 20]))
def test_weight_is_that_of_the_values_wherever_the_text_is_cut(value, ascii, size):
    usual, json_size._SLICE = json_size._SLICE, size
    try:
        text = json.dumps(value, ensure_ascii=ascii).encode()
        assert json_weight(text, 10**9) == weight_of(value)
    finally:
        json_size._SLICE = usual


@pytest.mark.parametrize(
    "text", [b"[" * 5000, b'"",' * 5000, b"1," * 5000, b'{"a":' * 5000, b'{"k":1,' * 5000]
)
def test_much_is_found_to_be_much_even_where_it_is_no_json(text):
    assert json_weight(text, 4000) > 4000


def test_length_of_strings_does_not_matter():
    assert json_weight(b'{"prompt":"' + b"[,:{" * 1_000_000 + b'"}', 1000) == 45
