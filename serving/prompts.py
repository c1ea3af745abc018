"""From the text of a request to token ids that the engine can take."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fjx.serving.conversation import Conversation
from fjx.serving.errors import invalid
from fjx.serving.protocol import GenerationRequest
from fjx.serving.state import AsyncEngine, ServerState
from fjx.serving.workers import ENCODING, RENDERING, off_loop

_MAX_SCORES = 4_000_000


def encode_text(
    state: ServerState, text: str, param: str, add_special_tokens: bool = True
) -> list[int]:
    """Token ids of a text, unless it is so long that encoding it would take seconds.

    Args:
        state: knows the tokenizer and the limit.
        text: what to encode.
        param: the field that holds it.
        add_special_tokens: see ``Tokenizer``.

    Raises:
        ApiError: the text is too long.
        RequestError: it is not valid Unicode.
    """
    limit = state.config.longest_text(state.llm.max_model_len)
    # A character has at least one byte.
    size = len(text) if len(text) > limit else len(text.encode(errors="surrogatepass"))
    if size > limit:
        raise invalid(
            f"{param} has {size} bytes of text, more than the {limit} that this server turns into "
            "tokens at a time (--max-text-bytes); shorten it",
            param,
            "context_length_exceeded",
        )
    return state.llm.tokenizer.encode(text, add_special_tokens)


async def encode_chat(
    state: ServerState,
    conversation_of_request: Callable[[], Conversation],
    add_special_tokens: bool = False,
) -> list[int]:
    """Token ids of a conversation; the template itself writes the special tokens.

    Args:
        state: knows the tokenizer and the limit.
        conversation_of_request: makes the conversation out of a request.
        add_special_tokens: see ``Tokenizer``.

    Raises:
        RequestError: the model has no chat template, or its template refuses the conversation.
        ApiError: the template drops a message, or its text is too long.
    """

    def render() -> str:
        conversation = conversation_of_request()
        text = state.llm.tokenizer.apply_chat_template(
            conversation.messages,
            add_generation_prompt=conversation.add_generation_prompt,
            continue_final_message=conversation.continue_final_message,
            **conversation.variables,
        )
        conversation.check_nothing_dropped(text)
        return text

    text = await RENDERING.run(render)
    return await off_loop(
        len(text),
        lambda: encode_text(state, text, "messages", add_special_tokens),
        workers=ENCODING,
    )


def check_token_ids(ids: Sequence[int], vocab_size: int, param: str) -> None:
    """Raise a 400 unless all ids are in the vocabulary."""
    if ids and (min(ids) < 0 or max(ids) >= vocab_size):
        wrong = next(token for token in ids if not 0 <= token < vocab_size)
        raise invalid(
            f"{param}: token id {wrong} is out of vocabulary, 0 to {vocab_size - 1}", param
        )


def check_count(prompts: int, n: int, most: int) -> None:
    """Raise a 400 where a request has more completions than may ever wait at once."""
    if prompts * n > most:
        raise invalid(
            f"prompt has {prompts} prompts with {n} completions each, but only {most} requests may "
            "wait in this server (--max-waiting-requests); send fewer at a time",
            "prompt",
        )


def check_echo(length: int, n: int, most: int) -> None:
    """Raise a 400 where echoing prompts of this length ``n`` times makes an answer beyond all
    bounds."""
    if length * n > most:
        raise invalid(
            f"echo of {length} characters in {n} completions makes an answer of more than {most} "
            "bytes, the most that this server takes of a request; lower n or echo less",
            "echo",
        )


def check_scores(tokens: int, count: int | None, n: int) -> None:
    """Raise a 400 where the log-probabilities of prompts make an answer beyond all bounds.

    Args:
        tokens: of all prompts.
        count: likeliest tokens to name for each; None: none were asked for.
        n: completions per prompt, each of which has them.
    """
    if count is not None and tokens * (1 + count) * n > _MAX_SCORES:
        raise invalid(
            f"log-probabilities of {1 + count} tokens at {tokens} places of the prompt, for each "
            f"of {n} completions, are more than {_MAX_SCORES} at a time; lower one of them",
            "prompt_logprobs",
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


def truncated(
    llm: AsyncEngine, ids: list[int], request: GenerationRequest, max_tokens: int | None
) -> list[int]:
    """Of a prompt what ``truncate_prompt_tokens`` and ``truncation_side`` keep.

    Raises:
        ApiError: that is nothing.
    """
    keep = request.truncate_prompt_tokens
    if keep is None:
        return ids
    if keep == 0:
        raise invalid(
            "truncate_prompt_tokens must be at least 1, or -1 for as many as fit, got 0",
            "truncate_prompt_tokens",
        )
    if keep < 0:
        keep = max(1, llm.max_model_len - max(1, max_tokens or 1))
    return ids[:keep] if request.truncation_side == "right" else ids[-keep:]
