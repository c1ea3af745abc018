"""Offsets of tokens in a choice's text, with tokenizers that strip a text's leading space."""

from __future__ import annotations

import pytest

from fjx.models.tokenizer import Tokenizer
from fjx.serving.logprobs import TextOffsets
from tests.unit.models.tokenizer_cases import byte_level, sentencepiece

PIECES = ["<unk>", "<s>", "</s>", "▁", "a", "b", "▁a", "▁b", "ab", "<0xC3>", "<0xA9>"]
TYPES = [2, 3, 3, 1, 1, 1, 1, 1, 1, 6, 6]
SENTENCEPIECE = sentencepiece(
    tokens=PIECES, scores=[-float(id) for id in range(len(PIECES))], token_type=TYPES
)


def ids(*pieces: str) -> list[int]:
    return [PIECES.index(piece) for piece in pieces]


@pytest.mark.parametrize(
    ("tokens", "offsets"),
    [
        (ids("▁a", "▁b", "ab"), [0, 2, 4]),
        (ids("a", "▁b"), [0, 1]),
        (ids("▁a", "<0xC3>", "<0xA9>", "b"), [0, 2, 2, 3]),
        (ids("▁a", "</s>", "b"), [0, 2, 2]),
    ],
)
def test_offsets_are_those_of_the_text_that_is_sent(tokens: list[int], offsets: list[int]) -> None:
    assert TextOffsets(SENTENCEPIECE, skip_special_tokens=True).add(tokens) == offsets


@pytest.mark.parametrize("tokenizer", [SENTENCEPIECE, byte_level()], ids=["pieces", "bytes"])
@pytest.mark.parametrize("chunk", [1, 2, 5])
def test_each_token_begins_at_its_offset(tokenizer: Tokenizer, chunk: int) -> None:
    tokens = tokenizer.encode(" ab b a ab", add_special_tokens=False)
    stream, offsets = tokenizer.stream(continuation=True), TextOffsets(tokenizer, True)
    text, found = "", []
    for start in range(0, len(tokens), chunk):
        text += stream.add(tokens[start : start + chunk])
        found += offsets.add(tokens[start : start + chunk])
    for token, offset in zip(tokens, found, strict=True):
        assert text[offset:].startswith(tokenizer.token_text(token))
