"""Texts that an output must not hold, as token sequences."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from fjx.models.tokenizer import Tokenizer


def bad_word_tokens(tokenizer: Tokenizer, words: Iterable[str]) -> tuple[tuple[int, ...], ...]:
    """The token sequences of each text, at the beginning of a text and behind a space.

    Like vLLM's: a text that the model spells in other tokens is not found.
    """
    sequences = {
        tuple(tokenizer.encode(before + word.lstrip(), add_special_tokens=False))
        for word in words
        for before in ("", " ")
    }
    return tuple(sorted(sequence for sequence in sequences if sequence))


def banned_tokens(words: Iterable[Sequence[int]], output: Sequence[int]) -> list[int]:
    """The last tokens of those words whose other tokens are the last ones of the output."""
    return [
        word[-1]
        for word in words
        if len(word) == 1 or tuple(output[1 - len(word) :]) == tuple(word[:-1])
    ]
