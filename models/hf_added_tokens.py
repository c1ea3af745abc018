"""Tokens that stand only beside a folder's tokenizer.json, added to it as Transformers does.

A tokenizer that was extended and saved by other tools names them in tokenizer_config.json
(``added_tokens_decoder``, ``additional_special_tokens`` or ``extra_special_tokens``, the tokens by
role), in special_tokens_map.json or in added_tokens.json.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import tokenizers
from tokenizers import AddedToken

from fjx.errors import ModelError

_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
_LISTS = ("extra_special_tokens", "additional_special_tokens")


def special_settings(
    config: Mapping[str, Any], special_tokens_map: Mapping[str, Any]
) -> dict[str, Any]:
    """Both files' tokens by role, and their lists of others.

    special_tokens_map.json is the older file: it counts more only where tokenizer_config.json is
    of its time, too.
    """
    if "added_tokens_decoder" in config:
        return {**special_tokens_map, **config}
    return {**config, **special_tokens_map}


def add_tokens(
    backend: tokenizers.Tokenizer,
    settings: Mapping[str, Any],
    added_tokens: Mapping[str, Any],
) -> None:
    """Add what is missing to the encoder, and mark tokens that have a role as special.

    Args:
        backend: changed in place.
        settings: of ``special_settings``.
        added_tokens: contents of added_tokens.json: id by token.

    Raises:
        ModelError: an entry is malformed; the message names it.
    """
    named = _named_tokens(settings)
    wanted = _listed_tokens(settings, added_tokens, named)
    known = {token.content: token for token in backend.get_added_tokens_decoder().values()}
    for name, token in named.items():
        if name not in wanted:
            wanted[name] = known.get(name, token)
    changed = []
    for name, token in wanted.items():
        token.special = token.special or name in named
        if name not in known or _flags(known[name]) != _flags(token):
            changed.append(token)
    if changed:
        backend.add_tokens(changed)


def _named_tokens(settings: Mapping[str, Any]) -> dict[str, AddedToken]:
    """Tokens that have a role, such as eos_token, and the lists of other special tokens."""
    values = [value for key, value in settings.items() if key.endswith("_token")]
    listed = next((settings[key] for key in _LISTS if settings.get(key)), ())
    values += listed.values() if isinstance(listed, Mapping) else listed
    # Settings such as add_bos_token are no tokens.
    tokens = (_token(value) for value in values if isinstance(value, str | Mapping))
    return {token.content: token for token in tokens if token.content}


def _listed_tokens(
    settings: Mapping[str, Any], added_tokens: Mapping[str, Any], special: Iterable[str]
) -> dict[str, AddedToken]:
    """Tokens with ids, in their order; the tokenizer gives a new one the next free id."""
    decoder = settings.get("added_tokens_decoder")
    try:
        if decoder is not None:
            entries = sorted((int(id), _token(value)) for id, value in decoder.items())
        else:
            special = set(special)
            entries = sorted(
                (int(id), AddedToken(text, normalized=text not in special))
                for text, id in added_tokens.items()
            )
    except (AttributeError, TypeError, ValueError) as error:
        where = "added_tokens.json" if decoder is None else "added_tokens_decoder"
        raise ModelError(f"the tokenizer's {where} is malformed: {error}") from None
    return {token.content: token for _, token in entries if token.content}


def _token(value: str | Mapping[str, Any]) -> AddedToken:
    if isinstance(value, str):
        return AddedToken(value, special=True, normalized=False)
    content, special = value.get("content"), value.get("special", True)
    if not isinstance(content, str):
        raise ModelError(f"the tokenizer's files describe a token without content: {value!r}")
    flags = {flag: bool(value[flag]) for flag in _FLAGS if flag in value}
    return AddedToken(content, **{"normalized": not special, "special": special, **flags})


def _flags(token: AddedToken) -> tuple[bool, ...]:
    return tuple(getattr(token, flag) for flag in _FLAGS)
