"""From a request's fields to ``SamplingParams``, and the fields that this server must refuse."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fjx import SamplingParams
from fjx.serving.errors import ApiError, invalid
from fjx.serving.protocol import ChatMessage, ChatRequest, CompletionRequest, GenerationRequest

_OFF: tuple[Any, ...] = (None, False, [], {}, "")

_NEUTRAL: dict[str, tuple[Any, ...]] = {
    # OpenAI
    "audio": _OFF,
    "function_call": (*_OFF, "none", "auto"),
    "functions": _OFF,
    "modalities": (*_OFF, ["text"]),
    "response_format": (*_OFF, {"type": "text"}),
    "suffix": _OFF,
    "tool_choice": (*_OFF, "none", "auto"),
    "tools": _OFF,
    "web_search_options": (None,),
    # vLLM
    "add_generation_prompt": (None, True),
    "allowed_token_ids": (None,),
    "bad_words": _OFF,
    "chat_template": (None,),
    "continue_final_message": _OFF,
    "documents": _OFF,
    "guided_choice": _OFF,
    "guided_grammar": _OFF,
    "guided_json": _OFF,
    "guided_regex": _OFF,
    "prompt_embeds": (None,),
    "prompt_logprobs": (None,),
    "structured_outputs": _OFF,
    "truncate_prompt_tokens": (None,),
    "use_beam_search": _OFF,
}
"""Fields that would change the answer, with the values that do not."""

_SAME_NAME = (
    "n",
    "min_tokens",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "stop",
    "stop_token_ids",
    "include_stop_str_in_output",
    "ignore_eos",
    "skip_special_tokens",
)


def refuse_unsupported(request: GenerationRequest) -> None:
    """Raise a 400 where ignoring a field would give another answer than was asked for."""
    _refuse_fields(request.model_extra or {}, "")
    if request.stream_options is not None and not request.stream:
        raise invalid("stream_options is only allowed with stream: true", "stream_options")
    if isinstance(request, CompletionRequest):
        if request.best_of not in (None, request.n or 1):
            raise _unsupported("best_of other than n", "best_of")
        if request.echo and request.logprobs is not None:
            raise _unsupported("echo together with logprobs", "echo")
    if isinstance(request, ChatRequest):
        if request.top_logprobs is not None and not request.logprobs:
            raise invalid("top_logprobs is only allowed with logprobs: true", "top_logprobs")
        for position, message in enumerate(request.messages):
            refuse_unsupported_message(message, f"messages[{position}]")


def refuse_unsupported_message(message: ChatMessage, path: str) -> None:
    """Raise a 400 where a message holds more than text; ``path`` names it."""
    if message.role in ("tool", "function"):
        raise _unsupported(f"messages of role {message.role!r}", f"{path}.role")
    for name in ("tool_calls", "function_call", "audio"):
        if (message.model_extra or {}).get(name):
            raise _unsupported(name, f"{path}.{name}")
    if message.content is None and message.role != "assistant":
        raise invalid(f"{path}.content is required", f"{path}.content")
    for part in message.content if isinstance(message.content, list) else ():
        if part.type != "text":
            raise _unsupported(f"content of type {part.type!r}", f"{path}.content")
        if part.text is None:
            raise invalid(f"{path}.content: a part of type 'text' needs text", f"{path}.content")


def sampling_params(
    request: GenerationRequest, *, max_tokens: int | None, logprobs: int | None, vocab_size: int
) -> SamplingParams:
    """The request's sampling parameters; a field that is absent or null keeps its default.

    Raises:
        RequestError: a value is outside its range.
        ApiError: a token id of ``logit_bias`` is none.
    """
    if max_tokens == 0:
        raise invalid("max_tokens must be at least 1, got 0", "max_tokens")
    given = {name: getattr(request, name) for name in _SAME_NAME}
    fields = {name: value for name, value in given.items() if value is not None}
    bias = {_token_id(key, vocab_size): value for key, value in (request.logit_bias or {}).items()}
    if request.speculative is not None:
        fields["max_draft_tokens"] = request.speculative.max_draft_tokens
    return SamplingParams(max_tokens=max_tokens, logprobs=logprobs, logit_bias=bias, **fields)


def _refuse_fields(extra: Mapping[str, Any], path: str) -> None:
    for name, value in extra.items():
        if name in _NEUTRAL and value not in _NEUTRAL[name]:
            raise _unsupported(name, f"{path}{name}")


def _unsupported(what: str, param: str) -> ApiError:
    return invalid(f"{what} is not supported by this server", param, code="unsupported_parameter")


def _token_id(key: str, vocab_size: int) -> int:
    if not key.isdecimal() or int(key) >= vocab_size:
        raise invalid(
            f"logit_bias: keys must be token ids below {vocab_size}, got {key!r}", "logit_bias"
        )
    return int(key)
