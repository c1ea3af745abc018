"""From the text of a request to token ids that the engine can take."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from fjx.serving.errors import invalid
from fjx.serving.protocol import ChatMessage
from fjx.serving.state import AsyncEngine, Tokenizer

_Result = TypeVar("_Result")

_INLINE_SIZE = 4_000
"""So many characters take about a millisecond: less than a thread's detour is worth."""


async def off_loop(size: int, work: Callable[[], _Result]) -> _Result:
    """The result of ``work``, which runs in a thread if it takes long: streams go on meanwhile.

    Args:
        size: characters or tokens to work on.
        work: encodes or decodes them.
    """
    if size <= _INLINE_SIZE:
        return work()
    return await asyncio.to_thread(work)


async def encode_chat(
    tokenizer: Tokenizer,
    messages: Sequence[ChatMessage],
    variables: dict[str, Any] | None,
    add_special_tokens: bool = False,
) -> list[int]:
    """Token ids of a conversation; the template itself writes the special tokens.

    Raises:
        RequestError: the model has no chat template, or its template refuses the conversation.
        ApiError: a variable would replace the conversation.
    """
    if variables and "messages" in variables:
        raise invalid("chat_template_kwargs must not hold 'messages'", "chat_template_kwargs")
    plain = [{"role": _role(message), "content": message_text(message)} for message in messages]

    def render_and_encode() -> list[int]:
        text = tokenizer.apply_chat_template(plain, **(variables or {}))
        return tokenizer.encode(text, add_special_tokens)

    return await off_loop(sum(len(message["content"]) for message in plain), render_and_encode)


def message_text(message: ChatMessage) -> str:
    """A message's content as one string; parts are joined by line breaks."""
    if isinstance(message.content, list):
        return "\n".join(part.text or "" for part in message.content)
    return message.content or ""


def check_token_ids(ids: Sequence[int], vocab_size: int, param: str) -> None:
    """Raise a 400 unless all ids are in the vocabulary."""
    if ids and (min(ids) < 0 or max(ids) >= vocab_size):
        wrong = next(token for token in ids if not 0 <= token < vocab_size)
        raise invalid(
            f"{param}: token id {wrong} is outside the vocabulary, 0 to {vocab_size - 1}", param
        )


def check_length(llm: AsyncEngine, ids: Sequence[int], max_tokens: int | None, param: str) -> None:
    """Raise a 400 unless the prompt, and the output that was asked for, fit into the context.

    Args:
        llm: knows the context.
        ids: the prompt.
        max_tokens: what the client asked for; None where it left the length to the server.
        param: the field that holds the prompt.
    """
    if not ids:
        raise invalid(f"{param} is empty: there must be at least one token", param)
    limit = llm.max_model_len
    if len(ids) >= limit:
        raise invalid(
            f"this model's context holds {limit} tokens, prompt and output together, but the "
            f"prompt has {len(ids)} tokens; shorten it",
            param,
            "context_length_exceeded",
        )
    if max_tokens is not None and len(ids) + max_tokens > limit:
        raise invalid(
            f"this model's context holds {limit} tokens, but {len(ids) + max_tokens} were asked "
            f"for ({len(ids)} in the prompt, {max_tokens} for the output); lower one of them",
            param,
            "context_length_exceeded",
        )


def _role(message: ChatMessage) -> str:
    # OpenAI's newer name for the same role; templates know only the older one.
    return "system" if message.role == "developer" else message.role
