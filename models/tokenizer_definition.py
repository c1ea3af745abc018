"""What a model's files say about its tokenizer, whatever their format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import tokenizers


@dataclass(frozen=True)
class TokenizerDefinition:
    """All that makes one tokenizer different from another."""

    backend: tokenizers.Tokenizer
    """Text to ids; its decoder tells how pieces spell text."""
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    """Tokens that end a text or a turn; the most usual one first."""
    prefix: tuple[int, ...] = ()
    """Ids put before every text."""
    suffix: tuple[int, ...] = ()
    """Ids put after every text."""
    chat_template: str | None = None
    named_templates: Mapping[str, str] = field(default_factory=dict)
    """Others by name; "tool_use" is for requests with tools."""
    special_tokens: Mapping[str, str] = field(default_factory=dict)
    """Special tokens by role ("bos_token", "eos_token", ...), for the chat template."""
