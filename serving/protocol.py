"""Requests of the OpenAI API, with vLLM's extra fields.

What is listed here is served. Other fields are kept in ``model_extra``; `fjx.serving.fields` says
which of them are harmless, and refuses the others.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    WrapValidator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from fjx.sampling_params import MAX_BAD_WORDS, MAX_STOP_IDS, MAX_STOPS
from fjx.serving.errors import invalid
from fjx.serving.fields import IGNORED

MAX_CHOICES = 128
"""Most completions per prompt, as in the OpenAI API."""
MAX_LOGPROBS = 20
MAX_BIASES = 300
"""Most entries of logit_bias, as in the OpenAI API."""
MAX_FIELDS = 1_000
"""Pydantic looks at all fields of a request in one go, while everything else waits."""


def _expects(expected: str) -> WrapValidator:
    """Says in one sentence what a union accepts, instead of one error for each of its members."""

    def validate(value: Any, handler: Any) -> Any:
        try:
            return handler(value)
        except ValidationError:
            raise PydanticCustomError(
                "type", "must be {expected}", {"expected": expected}
            ) from None

    return WrapValidator(validate)


_Int = Annotated[int, Field(ge=-(2**63), lt=2**63)]
"""Python has no largest number; a sum of two must still be one that a message can show."""
_Count = Annotated[int, Field(ge=0, lt=2**63)]


def _at_most(most: int, what: str) -> BeforeValidator:
    """Refuses a large list or object before its entries are looked at."""

    def validate(value: Any) -> Any:
        if isinstance(value, dict | list) and len(value) > most:
            raise PydanticCustomError(
                "size", "must be at most {most} {what}", {"most": most, "what": what}
            )
        return value

    return BeforeValidator(validate)


_Strings = Annotated[list[str], Field(fail_fast=True)]
_TokenIds = Annotated[list[_Int], Field(fail_fast=True)]
_Prompt = Annotated[
    str | _Strings | _TokenIds | Annotated[list[_TokenIds], Field(fail_fast=True)],
    _expects("a string, a list of strings, a list of token ids, or a list of lists of token ids"),
]


_Objects = Annotated[list[dict[str, Any]], Field(fail_fast=True)]
_Stop = Annotated[
    str | _Strings | None,
    _expects("a string or a list of strings"),
    _at_most(MAX_STOPS, "strings"),
]


def _closed(schema: dict[str, Any]) -> None:
    """What the description of the interface says of fields that are not listed."""
    ignored = {name: {"description": f"Ignored: {why}."} for name, why in IGNORED.items()}
    schema["properties"] = {**ignored, **schema["properties"]}
    schema["additionalProperties"] = False


class _Request(BaseModel):
    model_config = ConfigDict(
        strict=True, extra="allow", allow_inf_nan=False, json_schema_extra=_closed
    )

    model: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _has_few_fields(cls, data: Any) -> Any:
        if isinstance(data, dict) and len(data) > MAX_FIELDS:
            raise invalid(f"a request has at most {MAX_FIELDS:,} fields, got {len(data):,}")
        return data


class StreamOptions(BaseModel):
    """What a stream carries besides the text."""

    model_config = ConfigDict(strict=True, extra="allow", json_schema_extra=_closed)

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    """Counts so far in every chunk."""


class Speculative(BaseModel):
    """How far a request is speculated on; that changes how fast its tokens come, not which."""

    model_config = ConfigDict(strict=True, extra="forbid")

    max_draft_tokens: _Count | None = None


_Speculative = Annotated[
    Speculative | None,
    _expects("an object with max_draft_tokens, a whole number of at least 0, and nothing else"),
]


class GenerationRequest(_Request):
    """The fields that completions and chat completions share."""

    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    best_of: _Int | None = None
    max_tokens: _Int | None = None
    temperature: float | None = None
    top_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: Annotated[dict[str, float] | None, _at_most(MAX_BIASES, "entries")] = None
    seed: _Int | None = None
    stop: _Stop = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    echo: bool | None = None

    top_k: _Int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    min_tokens: _Int | None = None
    ignore_eos: bool | None = None
    stop_token_ids: Annotated[_TokenIds | None, _at_most(MAX_STOP_IDS, "token ids")] = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    allowed_token_ids: _TokenIds | None = None
    bad_words: Annotated[_Strings | None, _at_most(MAX_BAD_WORDS, "strings")] = None
    prompt_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    truncate_prompt_tokens: Annotated[int, Field(ge=-1, lt=2**63)] | None = None
    """Keep this many tokens of a prompt; -1: as many as fit."""
    truncation_side: Literal["left", "right"] | None = None
    """Where the others are cut off; by default left, so that the last ones stay."""
    add_special_tokens: bool | None = None
    """By default, for text and not for what a chat template has made."""
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    cache_salt: Annotated[str, Field(min_length=1)] | None = None
    """Cached pages are shared with requests of the same salt only."""
    request_id: Annotated[str, Field(pattern=r"^[!-~]{1,128}$")] | None = None
    """Part of the answer's id; the header X-Request-Id goes before it."""
    priority: _Int | None = None
    speculative: _Speculative = None

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a chunk of usage."""
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def continuous_usage(self) -> bool:
        """Whether each chunk of a stream has the usage so far."""
        return self.include_usage and bool(
            self.stream_options and self.stream_options.continuous_usage_stats
        )


class CompletionRequest(GenerationRequest):
    """Body of POST /v1/completions."""

    prompt: _Prompt
    logprobs: Annotated[
        _Int | None, _expects("a whole number (true and top_logprobs are for chats)")
    ] = None


class ContentPart(BaseModel):
    """A piece of a message's content; only text is served."""

    model_config = ConfigDict(strict=True, extra="allow")

    type: str
    text: str | None = None
    refusal: str | None = None


_Parts = Annotated[list[ContentPart], Field(fail_fast=True)]
_Content = Annotated[
    str | _Parts | None,
    _expects('a string or a list of parts such as {"type": "text", "text": "..."}'),
]


class FunctionCall(BaseModel):
    """Which function was called, and with what."""

    model_config = ConfigDict(strict=True, extra="allow")

    name: str
    arguments: Annotated[
        str | dict[str, Any] | None, _expects("a JSON object, or a string that holds one")
    ] = None


class ToolCall(BaseModel):
    """A call that the assistant made earlier in the conversation."""

    model_config = ConfigDict(strict=True, extra="allow")

    id: str | None = None
    type: str = "function"
    function: FunctionCall


class ChatMessage(BaseModel):
    """One message of a conversation; the chat template sees all of it."""

    model_config = ConfigDict(strict=True, extra="allow")

    role: Annotated[str, Field(min_length=1, max_length=64)]
    content: _Content = None
    name: str | None = None
    tool_calls: Annotated[list[ToolCall], Field(fail_fast=True)] | None = None
    tool_call_id: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    """The older name of ``reasoning``; the template gets both."""


_Messages = Annotated[list[ChatMessage], Field(min_length=1, fail_fast=True)]


class _Conversation(_Request):
    """The fields that make a prompt out of messages."""

    add_generation_prompt: bool | None = None
    """End the prompt with the beginning of an answer; by default, unless one is continued."""
    continue_final_message: bool | None = None
    """Leave the last message open, to be continued."""
    documents: _Objects | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    tools: _Objects | None = None


class ChatRequest(GenerationRequest, _Conversation):
    """Body of POST /v1/chat/completions."""

    messages: _Messages
    max_completion_tokens: _Int | None = None
    logprobs: Annotated[
        bool | None, _expects("true or false (how many there are is top_logprobs)")
    ] = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    reasoning_effort: str | None = None
    tool_choice: Any = None


class TokenizeRequest(_Conversation):
    """Body of POST /tokenize: either a prompt or messages."""

    prompt: str | None = None
    messages: _Messages | None = None
    add_special_tokens: bool | None = None
    """By default as a completion or a chat completion would be encoded."""
    return_token_strs: bool | None = None


class DetokenizeRequest(_Request):
    """Body of POST /detokenize."""

    tokens: _TokenIds
