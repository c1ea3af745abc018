"""How the pieces of a vocabulary spell bytes: byte-level BPE and SentencePiece."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

import tokenizers

from fjx.errors import ModelError

SPACE_SYMBOL = "▁"
"""What SentencePiece writes for a space."""

_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _byte_of_symbol() -> dict[str, int]:
    """The byte that each symbol of byte-level BPE stands for.

    Printable bytes of Latin-1 stand for themselves, the others for the symbols from U+0100 on.
    Source: GPT-2, Radford et al. 2019 (its ``bytes_to_unicode``).
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    symbols = {chr(byte): byte for byte in printable}
    return symbols | {chr(0x100 + index): byte for index, byte in enumerate(others)}


_BYTE_OF_SYMBOL = _byte_of_symbol()


@dataclass(frozen=True)
class PieceSpelling:
    """The rule that turns pieces into bytes."""

    byte_level: bool
    """Each character of a piece is a byte, in GPT-2's alphabet. Otherwise: SentencePiece."""
    byte_fallback: bool = False
    """Pieces such as <0x0A> are bytes."""
    strips_leading_space: bool = False
    """The encoder puts a space before the text, which the decoder takes away."""

    def to_bytes(self, piece: str) -> bytes:
        """The bytes that a piece adds to the text, part of a character included."""
        if self.byte_level:
            if all(symbol in _BYTE_OF_SYMBOL for symbol in piece):
                return bytes(_BYTE_OF_SYMBOL[symbol] for symbol in piece)
            return piece.encode()  # an added token is written as it is
        if self.byte_fallback and (match := _BYTE_PIECE.fullmatch(piece)):
            return bytes([int(match[1], 16)])
        return piece.replace(SPACE_SYMBOL, " ").encode()


def spelling_of(decoder: Any) -> PieceSpelling:
    """The rule behind a decoder of the ``tokenizers`` package.

    Raises:
        ModelError: the decoder is neither byte-level nor SentencePiece's.
    """
    state = json.loads(decoder.__getstate__()) if decoder is not None else {"type": None}
    steps = {step["type"]: step for step in state.get("decoders", [state])}
    if "ByteLevel" in steps:
        return PieceSpelling(byte_level=True)
    metaspace, replace = steps.get("Metaspace"), steps.get("Replace", {})
    if metaspace or replace.get("pattern") == {"String": SPACE_SYMBOL}:
        strips = metaspace["prepend_scheme"] != "never" if metaspace else False
        return PieceSpelling(
            byte_level=False,
            byte_fallback="ByteFallback" in steps,
            strips_leading_space=strips or steps.get("Strip", {}).get("start", 0) > 0,
        )
    raise ModelError(
        f"the tokenizer's decoder is not supported ({', '.join(map(str, steps))}); "
        "expected byte-level BPE or SentencePiece"
    )


def byte_level_backend(
    vocabulary: dict[str, int],
    merges: list[tuple[str, str]],
    patterns: tuple[str, ...],
    *,
    ignore_merges: bool,
    normalizer: tokenizers.normalizers.Normalizer | None,
) -> tokenizers.Tokenizer:
    """A byte-level BPE encoder that first splits the text by each pattern in turn."""
    model = tokenizers.models.BPE(vocabulary, merges, ignore_merges=ignore_merges)
    backend = tokenizers.Tokenizer(model)
    splits: list[Any] = [
        tokenizers.pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")
        for pattern in patterns
    ]
    to_symbols = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([*splits, to_symbols])
    if normalizer is not None:
        backend.normalizer = normalizer
    backend.decoder = tokenizers.decoders.ByteLevel()
    return backend


def sentencepiece_backend(
    vocabulary: dict[str, int],
    merges: list[tuple[str, str]],
    *,
    unknown: str | None,
    space_prefix: bool,
) -> tokenizers.Tokenizer:
    """A SentencePiece encoder (its BPE kind, with byte fallback).

    Args:
        vocabulary: piece to id.
        merges: pairs of pieces to join, best first.
        unknown: the piece for what nothing else covers.
        space_prefix: put a space before the text and after each special token.
    """
    backend = tokenizers.Tokenizer(
        tokenizers.models.BPE(
            vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True
        )
    )
    to_symbol = tokenizers.normalizers.Replace(" ", SPACE_SYMBOL)
    prepend = tokenizers.normalizers.Prepend(SPACE_SYMBOL)
    steps = [prepend, to_symbol] if space_prefix else [to_symbol]
    backend.normalizer = tokenizers.normalizers.Sequence(steps)
    decoders = tokenizers.decoders
    backend.decoder = decoders.Sequence(
        [decoders.Replace(SPACE_SYMBOL, " "), decoders.ByteFallback(), decoders.Fuse()]
        + ([decoders.Strip(" ", 1, 0)] if space_prefix else [])
    )
    return backend
