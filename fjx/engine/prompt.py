"""From what Python callers give as prompts to token ids."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable
from numbers import Integral
from typing import Any

from fjx.errors import RequestError
from fjx.models.tokenizer import Tokenizer


def prompts_of(prompts: Any) -> list[Any]:
    """One prompt or several, as a list.

    Raises:
        RequestError: they are neither text nor a list.
    """
    if isinstance(prompts, str):
        return [prompts]
    many = _as_list(prompts)
    if many is None:
        raise _no_prompt(prompts)
    return [many] if many and isinstance(many[0], Integral) else many


def token_ids(tokenizer: Tokenizer, prompt: Any) -> list[int]:
    """The token ids of one prompt.

    Raises:
        RequestError: it is neither text nor token ids, or holds a lone surrogate.
    """
    if isinstance(prompt, str):
        return tokenizer.encode(prompt)
    ids = _as_list(prompt)
    if ids is None:
        raise _no_prompt(prompt)
    for each in ids:
        if isinstance(each, bool) or not isinstance(each, Integral):
            raise RequestError(f"a prompt's token ids must be whole numbers, got {each!r:.80}")
    return [int(each) for each in ids]


def _as_list(values: Any) -> list[Any] | None:
    """The entries of a list, an array and the like; None: it is none."""
    if isinstance(values, bytes | bytearray | dict) or not isinstance(values, Iterable):
        return None
    try:
        return list(values)
    except TypeError:  # an array without dimensions calls itself iterable
        return None


def _no_prompt(value: Any) -> RequestError:
    given = f"{type(value).__name__} {reprlib.repr(value)}"
    return RequestError(f"a prompt must be text or a list of token ids, got {given}")
