"""Log-probabilities in the two shapes of the OpenAI API."""

from __future__ import annotations

from collections.abc import Sequence

from fjx import CompletionOutput
from fjx.serving import protocol
from fjx.serving.state import Tokenizer

LOWEST_LOGPROB = -9999.0
"""Stands for minus infinity, which JSON does not have."""


class TextOffsets:
    """Where in a choice's text each of its tokens begins, in characters.

    A token that holds only a part of a character begins where that character does.
    """

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool) -> None:
        # As the engine decodes a choice, or the offsets would be those of another text.
        self._stream = tokenizer.stream(skip_special_tokens, continuation=True)
        self._length = 0

    def add(self, token_ids: Sequence[int]) -> list[int]:
        """Offsets of the next tokens."""
        offsets = []
        for token_id in token_ids:
            offsets.append(self._length)
            self._length += len(self._stream.add([token_id]))
        return offsets


def completion_logprobs(
    tokenizer: Tokenizer, output: CompletionOutput, offsets: TextOffsets
) -> protocol.CompletionLogprobs | None:
    """Log-probabilities of a completion's tokens; None where none were asked for.

    ``top_logprobs`` holds the likeliest tokens and the chosen one.
    """
    if output.logprobs is None:
        return None
    positions = output.logprobs
    return protocol.CompletionLogprobs(
        tokens=[token_name(tokenizer, each.sampled.token_id) for each in positions],
        token_logprobs=[finite(each.sampled.logprob) for each in positions],
        top_logprobs=[
            {
                token_name(tokenizer, token.token_id): finite(token.logprob)
                for token in (*each.top, each.sampled)
            }
            for each in positions
        ],
        text_offset=offsets.add(output.token_ids),
    )


def chat_logprobs(tokenizer: Tokenizer, output: CompletionOutput) -> protocol.ChatLogprobs | None:
    """Log-probabilities of a message's tokens; None where none were asked for."""
    if output.logprobs is None:
        return None

    def described(token_id: int, logprob: float) -> protocol.TopLogprob:
        return protocol.TopLogprob(
            token=token_name(tokenizer, token_id),
            logprob=finite(logprob),
            bytes=list(tokenizer.token_bytes(token_id)),
        )

    content = [
        protocol.TokenLogprob(
            **described(each.sampled.token_id, each.sampled.logprob).model_dump(),
            top_logprobs=[described(token.token_id, token.logprob) for token in each.top],
        )
        for each in output.logprobs
    ]
    return protocol.ChatLogprobs(content=content)


def token_name(tokenizer: Tokenizer, token_id: int) -> str:
    r"""A token's text, or ``bytes:\xe2\x80`` where it holds only a part of a character."""
    raw = tokenizer.token_bytes(token_id)
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def finite(logprob: float) -> float:
    """The log-probability, or the lowest one that JSON can say."""
    return max(logprob, LOWEST_LOGPROB)
