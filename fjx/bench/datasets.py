"""The requests of a benchmark: from a prompts file, or random."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fjx.bench.files import read_json_lines
from fjx.errors import UserError

Messages = tuple[dict[str, Any], ...]
Prompt = str | tuple[int, ...] | Messages

RANDOM_TOKENS = range(300, 1000)
"""Token ids of random prompts: in every vocabulary, above the control and byte tokens of most."""

_WORDS = (
    "time year people way day man thing woman life child world school state family student group "
    "country problem hand part place case week company system program question work government "
    "number night point home water room mother area money story fact month lot right study book "
    "eye job word business issue side kind head house service friend father power hour game line "
    "end member law car city community name president team minute idea body back parent face"
)
RANDOM_WORDS = _WORDS.split()
"""Words that are one token in most vocabularies, for random prompts that must be text."""


@dataclass(frozen=True, kw_only=True)
class BenchRequest:
    """One request: what to send, and when."""

    prompt: Prompt
    """Text, token ids, or chat messages."""
    max_tokens: int
    arrival: float | None = None
    """Seconds from the start, where a trace says so."""


def read_prompts(path: Path) -> list[str | Messages]:
    """Read a prompts file: JSON lines with ``messages``, ``prompt``, ``question`` or ``turns``.

    Of ``turns`` only the first is used. Other keys are ignored.

    Returns:
        Texts, or the messages of a chat.

    Raises:
        UserError: the file cannot be read or a line has none of the keys; the message names it.
    """
    prompts = [_prompt_of(line, f"{path} line {number}") for number, line in read_json_lines(path)]
    if not prompts:
        raise UserError(f"{path} holds no prompts")
    return prompts


def _prompt_of(line: dict[str, Any], where: str) -> str | Messages:
    if "messages" in line:
        return parse_messages(line["messages"], where)
    for key in ("prompt", "question", "turns"):
        if key in line:
            value = line[key]
            text = value[0] if key == "turns" and isinstance(value, list) and value else value
            if isinstance(text, str) and text:
                return text
            raise UserError(f"{where}: {key!r} must hold text, got {type(text).__name__}")
    raise UserError(
        f"{where}: expected one of the keys prompt, question, turns, messages; "
        f"got {', '.join(line) or 'none'}"
    )


def parse_messages(value: object, where: str) -> Messages:
    """Check that ``value`` is a list of chat messages.

    Raises:
        UserError: it is not; the message begins with ``where``.
    """
    if (
        isinstance(value, list)
        and value
        and all(isinstance(message, dict) and "role" in message for message in value)
    ):
        return tuple(value)
    raise UserError(f"{where}: 'messages' must be a list of objects with 'role' and 'content'")


def sample(prompts: Sequence[Any], count: int | None, seed: int, where: str) -> list[Any]:
    """Draw ``count`` prompts without repetition, in random order; all in their order if None.

    Raises:
        UserError: there are fewer; repeating them would measure the prefix cache.
    """
    if count is None:
        return list(prompts)
    if count > len(prompts):
        raise UserError(f"num_prompts is {count}, but {where} holds {len(prompts)}")
    return random.Random(seed).sample(list(prompts), count)


def random_tokens(
    length: int, source: random.Random, vocabulary: range = RANDOM_TOKENS
) -> tuple[int, ...]:
    """Draw a prompt of ``length`` token ids."""
    return tuple(source.choices(vocabulary, k=length))


def random_text(length: int, source: random.Random) -> str:
    """Draw a prompt of ``length`` common words: about as many tokens."""
    return " ".join(source.choices(RANDOM_WORDS, k=length))
