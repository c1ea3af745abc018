"""From a request's fields to ``SamplingParams``, and the combinations that make no sense."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fjx import SamplingParams
from fjx.serving.endpoints import check_own_fields
from fjx.serving.errors import invalid
from fjx.serving.fields import check_fields, unsupported
from fjx.serving.prompts import check_token_ids
from fjx.serving.protocol import ChatRequest, GenerationRequest, StreamOptions
from fjx.serving.workers import off_loop
from fjx.wording import shortened

_SHOWN = 5
"""Wrong keys that a message names."""

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


def check_generation(request: GenerationRequest) -> None:
    """Raise a 400 where a field is not served, or makes no sense beside another one."""
    check_own_fields(request)
    options = request.stream_options
    if options is not None:
        check_fields(options.model_extra, StreamOptions.model_fields, "stream_options.")
        if not request.stream:
            raise invalid("stream_options is only allowed with stream: true", "stream_options")
    if request.best_of not in (None, request.n or 1):
        raise unsupported(
            "best_of other than n", "best_of", "every completion that is made is returned; see n"
        )
    if request.prompt_logprobs is not None and request.stream:
        raise invalid("prompt_logprobs is only allowed without stream", "prompt_logprobs")
    if isinstance(request, ChatRequest):
        if request.top_logprobs is not None and not request.logprobs:
            raise invalid("top_logprobs is only allowed with logprobs: true", "top_logprobs")
        if request.tool_choice not in (None, False, "none", "auto", ""):
            raise unsupported("tool_choice", "tool_choice", "tools are not called")
        if request.tools and request.tool_choice != "none":
            raise unsupported(
                "tools", "tools", 'tools are not called; send tool_choice: "none" to go without'
            )


async def sampling_params(
    request: GenerationRequest,
    *,
    max_tokens: int | None,
    logprobs: int | None,
    prompt_logprobs: int | None,
    vocab_size: int,
) -> SamplingParams:
    """The request's sampling parameters; a field that is absent or null keeps its default.

    Raises:
        RequestError: a value is outside its range.
        ApiError: a token id is none.
    """
    return await off_loop(
        len(request.allowed_token_ids or ()),
        lambda: _params(request, max_tokens, logprobs, prompt_logprobs, vocab_size),
    )


def _params(
    request: GenerationRequest,
    max_tokens: int | None,
    logprobs: int | None,
    prompt_logprobs: int | None,
    vocab_size: int,
) -> SamplingParams:
    given = {name: getattr(request, name) for name in _SAME_NAME}
    fields: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if prompt_logprobs is not None:
        fields["prompt_logprobs"] = prompt_logprobs
    if request.allowed_token_ids is not None:
        if len(request.allowed_token_ids) > vocab_size:
            raise invalid(
                f"allowed_token_ids has more ids than there are: {vocab_size}", "allowed_token_ids"
            )
        check_token_ids(request.allowed_token_ids, vocab_size, "allowed_token_ids")
        fields["allowed_token_ids"] = tuple(request.allowed_token_ids)
    if request.bad_words is not None:
        fields["bad_words"] = tuple(request.bad_words)
    if request.speculative is not None:
        fields["max_draft_tokens"] = request.speculative.max_draft_tokens
    bias = _biases(request.logit_bias or {}, vocab_size)
    return SamplingParams(max_tokens=max_tokens, logprobs=logprobs, logit_bias=bias, **fields)


def _biases(given: Mapping[str, float], vocab_size: int) -> dict[int, float]:
    """The biases by token id; raises a 400 that names what is none."""
    ids = {key: _token_id(key, vocab_size) for key in given}
    wrong = [repr(shortened(key)) for key, token in ids.items() if token is None]
    if wrong:
        raise invalid(
            f"logit_bias: keys must be token ids below {vocab_size}, got "
            f"{', '.join(wrong[:_SHOWN])}{' and others' if len(wrong) > _SHOWN else ''}",
            "logit_bias",
        )
    return {token: given[key] for key, token in ids.items() if token is not None}


def _token_id(key: str, vocab_size: int) -> int | None:
    # Python reads digits of other scripts, too, and refuses to read thousands of them.
    digits = key.lstrip("0") or "0"
    is_id = key.isascii() and key.isdecimal() and len(digits) <= 18 and int(digits) < vocab_size
    return int(digits) if is_id else None
