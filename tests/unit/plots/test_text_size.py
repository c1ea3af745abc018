"""Texts of pictures are measured, shortened and wrapped."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fjx.plots.text_size import fitted, text_width, wrapped

TEXTS = st.text(max_size=60)


@given(TEXTS, st.floats(0, 400), st.booleans(), st.booleans())
def test_what_is_shortened_fits_and_what_fits_stays(
    text: str, room: float, bold: bool, keeps_end: bool
) -> None:
    short = fitted(text, room, 11, bold=bold, keeps_end=keeps_end)
    assert text_width(short, 11, bold=bold) <= room
    if text_width(text, 11, bold=bold) <= room:
        assert short == text
    else:
        assert short == "" or "…" in short


def test_names_of_nodes_keep_their_ends() -> None:
    names = [f"compute-node-of-the-cluster-{i}/gpu:{i}" for i in range(3)]
    shorter = [fitted(name, 130, 11, keeps_end=True) for name in names]
    assert len(set(shorter)) == 3
    assert all(short.endswith(f"{i}/gpu:{i}") for i, short in enumerate(shorter))
    assert len({fitted(name, 130, 11) for name in names}) == 1


@given(st.lists(st.text("abcdefg…W", min_size=1, max_size=30), max_size=40), st.floats(20, 500))
def test_wrapped_lines_fit(words: list[str], room: float) -> None:
    text = " ".join(words)
    lines = wrapped(text, room, 12, most=3)
    assert len(lines) <= 3
    assert all(text_width(line, 12) <= room for line in lines)
    if not any("…" in line for line in lines):
        assert " ".join(lines) == text


def test_wide_letters_count_wide_and_accents_nothing() -> None:
    assert text_width("漢字", 10) == 20
    assert text_width("e\u0301", 10) == text_width("e", 10)
    assert text_width("iii", 10) < text_width("mmm", 10)
