from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fjx.serving import unicode
from fjx.serving.errors import ApiError
from fjx.serving.unicode import check_unicode

PARTS = ["a", "\\", '"', "é", "힣", "\U0001f600", "\ud83d", "\ude00", "\n", "u", "d83d"]


@given(st.lists(st.sampled_from(PARTS)), st.booleans(), st.integers(13, 40))
def test_halves_of_pairs_are_found_wherever_the_text_is_cut(parts, ascii, size):
    body = json.dumps("".join(parts), ensure_ascii=ascii).encode(errors="surrogatepass")
    usual, unicode._SLICE = unicode._SLICE, size
    try:
        json.loads(body).encode()
        whole = True
    except UnicodeError:
        whole = False
    try:
        if whole:
            check_unicode(body)
        else:
            with pytest.raises(ApiError, match="half of a surrogate pair"):
                check_unicode(body)
    finally:
        unicode._SLICE = usual
