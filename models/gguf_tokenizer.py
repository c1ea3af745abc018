"""Tokenizers built from a GGUF file's own vocabulary.

The vocabulary's kind, its pre-tokenizer and the defaults of flags follow llama.cpp's
``llama-vocab.cpp``; the patterns are those of the models' own tokenizer.json files.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import tokenizers
from gguf.constants import TokenType
from tokenizers import AddedToken
from tokenizers.normalizers import NFC
from tokenizers.processors import TemplateProcessing

from fjx.errors import ModelError
from fjx.models.end_tokens import end_token_ids
from fjx.models.token_pieces import byte_level_backend, sentencepiece_backend
from fjx.models.tokenizer_definition import TokenizerDefinition

_CHAT_TEMPLATE = "tokenizer.chat_template"
_END_ROLES = ("eot", "eom", "fim_pad", "fim_rep", "fim_sep")
"""Keys that name end tokens beside the file's eos."""

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class PreTokenizer:
    """What ``tokenizer.ggml.pre`` stands for."""

    patterns: tuple[str, ...]
    """Split the text by each in turn."""
    ignore_merges: bool = False
    """A word that is in the vocabulary is one token, whatever the merges say."""
    add_bos: bool = False
    """Unless the file says otherwise."""
    nfc: bool = False
    """Compose characters first (Unicode normal form C)."""


_BY_FAMILY: tuple[tuple[PreTokenizer, tuple[str, ...]], ...] = (
    (
        PreTokenizer((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
        ("default",),
    ),
    (PreTokenizer((_GPT2,)), ("gpt-2", "phi-2", "olmo", "mpt", "mellum", "trillion", "exaone4")),
    (
        PreTokenizer((r"\p{N}", _GPT2)),
        ("smollm", "starcoder", "refact", "command-r", "codeshell", "minerva-7b"),
    ),
    (
        PreTokenizer((_LLAMA3,), ignore_merges=True, add_bos=True),
        ("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "midm-2.0"),
    ),
    (PreTokenizer((_LLAMA3,)), ("dbrx", "smaug-bpe")),
    (PreTokenizer((_QWEN2,), nfc=True), ("qwen2",)),
    (PreTokenizer((_QWEN2,)), ("deepseek-r1-qwen", "stablelm2", "megrez", "hunyuan")),
    (PreTokenizer((_TEKKEN,), ignore_merges=True, add_bos=True), ("tekken",)),
)
PRE_TOKENIZERS = {name: family for family, names in _BY_FAMILY for name in names}


def definition_from_gguf(metadata: Mapping[str, Any]) -> TokenizerDefinition:
    """Build the tokenizer that a GGUF file's key/values describe.

    Raises:
        ModelError: a key is missing or contradicts another, or the kind is not supported.
    """
    kind = _require(metadata, "model", str)
    if kind not in ("gpt2", "llama"):
        raise ModelError(f"tokenizer.ggml.model '{kind}' is not supported (gpt2 and llama are)")
    vocabulary = _Vocabulary.read(metadata)
    try:
        if kind == "gpt2":
            pre_tokenizer = _pre_tokenizer(metadata)
            backend = _byte_level(metadata, vocabulary, pre_tokenizer)
            bos, eos, add_bos = None, None, pre_tokenizer.add_bos
        else:
            backend = _sentencepiece(metadata, vocabulary)
            bos, eos, add_bos = 1, 2, True
    except ModelError:
        raise
    except Exception as error:  # the tokenizers package raises bare exceptions
        raise ModelError(f"tokenizer.ggml: vocabulary and merges do not fit: {error}") from error
    bos = _token_id(metadata, "bos", vocabulary, bos)
    eos = _token_id(metadata, "eos", vocabulary, eos)
    named = (eos, *(_token_id(metadata, role, vocabulary) for role in _END_ROLES))
    by_text = end_token_ids(vocabulary.ids, vocabulary.of_type(TokenType.CONTROL))
    # dict.fromkeys: each once, in order.
    ends = tuple(dict.fromkeys(id for id in (*named, *by_text) if id is not None))
    _add_special_tokens(backend, vocabulary, ends)
    add_bos = metadata.get("tokenizer.ggml.add_bos_token", add_bos)
    add_eos = metadata.get("tokenizer.ggml.add_eos_token", False)
    prefix = (bos,) if add_bos and bos is not None else ()
    suffix = (eos,) if add_eos and eos is not None else ()
    backend.post_processor = _around(vocabulary, prefix, suffix)
    return TokenizerDefinition(
        backend=backend,
        bos_token_id=bos,
        eos_token_ids=ends,
        prefix=prefix,
        suffix=suffix,
        chat_template=metadata.get(_CHAT_TEMPLATE),
        named_templates={
            key.removeprefix(f"{_CHAT_TEMPLATE}."): value
            for key, value in metadata.items()
            if key.startswith(f"{_CHAT_TEMPLATE}.") and isinstance(value, str)
        },
        special_tokens=_special_tokens(metadata, vocabulary, bos, eos),
    )


@dataclass(frozen=True)
class _Vocabulary:
    tokens: Sequence[str]
    types: Sequence[int]
    ids: Mapping[str, int]

    @staticmethod
    def read(metadata: Mapping[str, Any]) -> _Vocabulary:
        tokens = _require(metadata, "tokens", list)
        types = metadata.get("tokenizer.ggml.token_type", [TokenType.NORMAL] * len(tokens))
        if len(types) != len(tokens):
            raise ModelError(
                f"tokenizer.ggml.token_type has {len(types)} entries, tokens has {len(tokens)}"
            )
        ids = {token: id for id, token in enumerate(tokens)}
        if len(ids) != len(tokens):
            raise ModelError("tokenizer.ggml.tokens holds a token twice")
        return _Vocabulary(tokens, types, ids)

    def of_type(self, *kinds: TokenType) -> frozenset[int]:
        """Ids of the tokens of these types."""
        return frozenset(id for id, kind in enumerate(self.types) if kind in kinds)


def _pre_tokenizer(metadata: Mapping[str, Any]) -> PreTokenizer:
    name = metadata.get("tokenizer.ggml.pre", "default")
    if name not in PRE_TOKENIZERS:
        raise ModelError(
            f"tokenizer.ggml.pre '{name}' is not supported (known: {', '.join(PRE_TOKENIZERS)})"
        )
    return PRE_TOKENIZERS[name]


def _byte_level(
    metadata: Mapping[str, Any], vocabulary: _Vocabulary, pre_tokenizer: PreTokenizer
) -> tokenizers.Tokenizer:
    merges = []
    for merge in _require(metadata, "merges", list):
        left, space, right = merge.partition(" ")
        if not (left and space and right):
            raise ModelError(f"tokenizer.ggml.merges: {merge!r} is not a pair of tokens")
        merges.append((left, right))
    return byte_level_backend(
        dict(vocabulary.ids),
        merges,
        pre_tokenizer.patterns,
        ignore_merges=pre_tokenizer.ignore_merges,
        normalizer=NFC() if pre_tokenizer.nfc else None,
    )


def _sentencepiece(metadata: Mapping[str, Any], vocabulary: _Vocabulary) -> tokenizers.Tokenizer:
    scores = _require(metadata, "scores", list)
    if len(scores) != len(vocabulary.tokens):
        raise ModelError(
            f"tokenizer.ggml.scores has {len(scores)} entries, tokens has {len(vocabulary.tokens)}"
        )
    unknown = _token_id(metadata, "unknown", vocabulary)
    return sentencepiece_backend(
        dict(vocabulary.ids),
        _merges_by_score(vocabulary, scores),
        unknown=vocabulary.tokens[0 if unknown is None else unknown],
        space_prefix=metadata.get("tokenizer.ggml.add_space_prefix", True),
    )


def _merges_by_score(vocabulary: _Vocabulary, scores: Sequence[float]) -> list[tuple[str, str]]:
    """Pairs of pieces to join, best first.

    SentencePiece joins the neighbours that make the piece of the highest score. As a list of
    merges: every way to cut a piece into two others, in the order of the pieces' scores.
    """
    normal = [
        (score, token)
        for token, score, kind in zip(vocabulary.tokens, scores, vocabulary.types, strict=True)
        if kind == TokenType.NORMAL
    ]
    pieces = {token for _, token in normal}
    normal.sort(key=lambda entry: -entry[0])
    return [
        (left, right)
        for _, token in normal
        for cut in range(1, len(token))
        if (left := token[:cut]) in pieces and (right := token[cut:]) in pieces
    ]


def _add_special_tokens(
    backend: tokenizers.Tokenizer, vocabulary: _Vocabulary, ends: Sequence[int]
) -> None:
    """Tell the encoder which tokens are found in the text before anything else.

    End tokens are control tokens, whatever type the file gives them.
    """

    def added(ids: Iterable[int], special: bool) -> list[AddedToken]:
        tokens = (vocabulary.tokens[id] for id in sorted(ids))
        return [AddedToken(token, special=special, normalized=False) for token in tokens if token]

    control = vocabulary.of_type(TokenType.CONTROL, TokenType.UNKNOWN).union(ends)
    backend.add_special_tokens(added(control, special=True))
    backend.add_tokens(added(vocabulary.of_type(TokenType.USER_DEFINED) - control, special=False))


def _around(
    vocabulary: _Vocabulary, prefix: tuple[int, ...], suffix: tuple[int, ...]
) -> TemplateProcessing:
    """So that other programs, which read the saved tokenizer.json, add the same tokens."""
    before, after = ([vocabulary.tokens[id] for id in ids] for ids in (prefix, suffix))
    return TemplateProcessing(
        single=[*before, "$A", *after],
        special_tokens=[(vocabulary.tokens[id], id) for id in (*prefix, *suffix)],
    )


def _special_tokens(
    metadata: Mapping[str, Any], vocabulary: _Vocabulary, bos: int | None, eos: int | None
) -> dict[str, str]:
    ids = {
        "bos_token": bos,
        "eos_token": eos,
        "unk_token": _token_id(metadata, "unknown", vocabulary),
        "pad_token": _token_id(metadata, "padding", vocabulary),
    }
    return {role: vocabulary.tokens[id] for role, id in ids.items() if id is not None}


def _token_id(
    metadata: Mapping[str, Any], role: str, vocabulary: _Vocabulary, default: int | None = None
) -> int | None:
    key = f"tokenizer.ggml.{role}_token_id"
    id = metadata.get(key, default)
    if id is None or (isinstance(id, int) and 0 <= id < len(vocabulary.tokens)):
        return id
    raise ModelError(f"{key} is {id!r}, the vocabulary has {len(vocabulary.tokens)} tokens")


def _require(metadata: Mapping[str, Any], key: str, kind: type) -> Any:
    value = metadata.get(f"tokenizer.ggml.{key}")
    if not isinstance(value, kind):
        problem = "is missing" if value is None else f"is a {type(value).__name__}"
        raise ModelError(f"tokenizer.ggml.{key} {problem}; expected a {kind.__name__}")
    return value
