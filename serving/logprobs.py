"""Log-probabilities in the two shapes of the OpenAI API."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from fjx import CompletionOutput, PositionLogprobs, TokenLogprob
from fjx.serving import responses
from fjx.serving.state import TokenizerLike

LOWEST_LOGPROB = -9999.0
"""Stands for minus infinity, which JSON does not have."""


class TextOffsets:
    """Where in a choice's text each of its tokens begins, in characters.

    A token that holds only a part of a character begins where that character does.
    """

    def __init__(self, tokenizer: TokenizerLike, skip_special_tokens: bool) -> None:
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


@dataclass(frozen=True)
class TokenNames:
    """What tokens are called in an answer."""

    tokenizer: TokenizerLike
    as_ids: bool = False
    """Name tokens ``token_id:42``, rather than by their text."""

    def __call__(self, token_id: int) -> str:
        """A token's text, or its id."""
        return f"token_id:{token_id}" if self.as_ids else token_name(self.tokenizer, token_id)

    def top(self, position: PositionLogprobs, count: int) -> dict[str, float]:
        """The chosen token, then the likeliest ones.

        Of tokens whose texts are equal, the chosen one has the text, or else the likeliest, and the
        others are called ``token_id:42``.
        """
        owners: dict[str, int] = {}
        top = {}
        for token in (position.sampled, *position.top[:count]):
            name = self(token.token_id)
            if owners.setdefault(name, token.token_id) != token.token_id:
                name = f"token_id:{token.token_id}"
            top[name] = finite(token.logprob)
        return top


def completion_logprobs(
    names: TokenNames, output: CompletionOutput, offsets: TextOffsets, count: int, start: int = 0
) -> responses.CompletionLogprobs | None:
    """Log-probabilities of a completion's tokens; None where none were asked for.

    Args:
        names: what tokens are called.
        output: the completion, or what is new of it.
        offsets: where its tokens begin.
        count: how many of the likeliest tokens to name besides the chosen one.
        start: characters before the completion (echo).
    """
    if output.logprobs is None:
        return None
    return responses.CompletionLogprobs(
        tokens=[names(each.sampled.token_id) for each in output.logprobs],
        token_logprobs=[finite(each.sampled.logprob) for each in output.logprobs],
        top_logprobs=[names.top(each, count) for each in output.logprobs],
        text_offset=[start + offset for offset in offsets.add(output.token_ids)],
    )


def echo_logprobs(
    names: TokenNames,
    ids: Sequence[int],
    positions: Sequence[PositionLogprobs | None],
    text: str,
    count: int,
) -> responses.CompletionLogprobs:
    """Log-probabilities of a prompt that comes before its completion; null for the first token.

    Args:
        names: what tokens are called.
        ids: the prompt.
        positions: what the engine says of each token; None for the first.
        text: the prompt as it comes before the completion.
        count: how many of the likeliest tokens to name besides the prompt's own.
    """
    return responses.CompletionLogprobs(
        tokens=[names(token_id) for token_id in ids],
        token_logprobs=[
            None if each is None else finite(each.sampled.logprob) for each in positions
        ],
        top_logprobs=[None if each is None else names.top(each, count) for each in positions],
        text_offset=_prompt_offsets(names.tokenizer, ids, text),
    )


def prompt_logprobs(
    tokenizer: TokenizerLike, positions: Sequence[PositionLogprobs | None], count: int
) -> responses.PromptLogprobs:
    """Log-probabilities of a prompt in vLLM's shape, by token id."""

    def described(token: TokenLogprob) -> responses.PromptLogprob:
        return responses.PromptLogprob(
            logprob=finite(token.logprob),
            rank=token.rank,
            decoded_token=token_name(tokenizer, token.token_id),
        )

    return [
        None
        if each is None
        else {token.token_id: described(token) for token in (each.sampled, *each.top[:count])}
        for each in positions
    ]


def chat_logprobs(names: TokenNames, output: CompletionOutput) -> responses.ChatLogprobs | None:
    """Log-probabilities of a message's tokens; None where none were asked for."""
    if output.logprobs is None:
        return None

    def described(token: TokenLogprob) -> responses.TopLogprob:
        return responses.TopLogprob(
            token=names(token.token_id),
            logprob=finite(token.logprob),
            bytes=list(names.tokenizer.token_bytes(token.token_id)),
        )

    content = [
        responses.ChatTokenLogprob(
            **described(each.sampled).model_dump(),
            top_logprobs=[described(token) for token in each.top],
        )
        for each in output.logprobs
    ]
    return responses.ChatLogprobs(content=content)


def token_name(tokenizer: TokenizerLike, token_id: int) -> str:
    r"""A token's text, or ``bytes:\xe2\x80`` where it holds only a part of a character."""
    raw = tokenizer.token_bytes(token_id)
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def finite(logprob: float) -> float:
    """The log-probability, or the lowest one that JSON can say."""
    return logprob if logprob > LOWEST_LOGPROB else LOWEST_LOGPROB


def _prompt_offsets(tokenizer: TokenizerLike, ids: Sequence[int], text: str) -> list[int]:
    """Where in a prompt's text each of its tokens begins, in characters.

    What the tokenizer has put before a text, such as a token that begins it, begins where the text
    does.
    """
    stream = tokenizer.stream(skip_special_tokens=False)
    lengths = [len(stream.add([token_id])) for token_id in ids]
    before = sum(lengths) + len(stream.flush()) - len(text)
    offsets = accumulate(lengths[:-1], initial=-before)
    return [min(max(offset, 0), len(text)) for offset in offsets]
