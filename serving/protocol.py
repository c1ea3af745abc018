"""Requests and responses of the OpenAI API, with vLLM's extra fields.

Fields that are not listed are ignored, unless they would change the answer: see
``refuse_unsupported``.
"""

from __future__ import annotations

import time
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, WrapValidator
from pydantic_core import PydanticCustomError

MAX_CHOICES = 128
"""Most completions per prompt, as in the OpenAI API."""
MAX_BIASES = 300
"""Most entries of logit_bias, as in the OpenAI API."""


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


def _few_entries(most: int) -> BeforeValidator:
    """Refuses a large object before it collects one error for each of its entries."""

    def validate(value: Any) -> Any:
        if isinstance(value, dict) and len(value) > most:
            raise PydanticCustomError("size", "must be at most {most} entries", {"most": most})
        return value

    return BeforeValidator(validate)


_Strings = Annotated[list[str], Field(fail_fast=True)]
_TokenIds = Annotated[list[int], Field(fail_fast=True)]
_Prompt = Annotated[
    str | _Strings | _TokenIds | Annotated[list[_TokenIds], Field(fail_fast=True)],
    _expects("a string, a list of strings, a list of token ids, or a list of lists of token ids"),
]
_Stop = Annotated[str | _Strings | None, _expects("a string or a list of strings")]


class _Request(BaseModel):
    # Fields that are not ours are kept in model_extra, for refuse_unsupported.
    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)

    model: str | None = None


class StreamOptions(BaseModel):
    """What a stream carries besides the text."""

    model_config = ConfigDict(strict=True)

    include_usage: bool | None = None


class Speculative(BaseModel):
    """How far a request is speculated on; that changes how fast its tokens come, not which."""

    model_config = ConfigDict(strict=True, extra="forbid")

    max_draft_tokens: Annotated[int, Field(ge=0)] | None = None


_Speculative = Annotated[
    Speculative | None,
    _expects("an object with max_draft_tokens, a whole number of at least 0, and nothing else"),
]


class GenerationRequest(_Request):
    """The fields that completions and chat completions share."""

    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: Annotated[dict[str, float] | None, _few_entries(MAX_BIASES)] = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: _Stop = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    min_tokens: int | None = None
    ignore_eos: bool | None = None
    stop_token_ids: _TokenIds | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    priority: int | None = None
    speculative: _Speculative = None

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a chunk of usage."""
        return bool(self.stream_options and self.stream_options.include_usage)


class CompletionRequest(GenerationRequest):
    """Body of POST /v1/completions."""

    prompt: _Prompt
    echo: bool | None = None
    logprobs: int | None = None
    best_of: int | None = None


class ContentPart(BaseModel):
    """A piece of a message's content; only text is served."""

    model_config = ConfigDict(strict=True)

    type: str
    text: str | None = None


_Parts = Annotated[list[ContentPart], Field(fail_fast=True)]
_Content = Annotated[
    str | _Parts | None,
    _expects('a string or a list of parts such as {"type": "text", "text": "..."}'),
]


class ChatMessage(BaseModel):
    """One message of a conversation."""

    model_config = ConfigDict(strict=True, extra="allow")

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Annotated[str | _Parts | None, _expects("a string or a list of parts")] = None


class ChatRequest(GenerationRequest):
    """Body of POST /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, fail_fast=True)]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class TokenizeRequest(_Request):
    """Body of POST /tokenize: either a prompt or messages."""

    prompt: str | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1, fail_fast=True)] | None = None
    add_special_tokens: bool | None = None
    """By default as a completion or a chat completion would be encoded."""
    return_token_strs: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class TokenizeResponse(BaseModel):
    """Answer of POST /tokenize."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class DetokenizeRequest(_Request):
    """Body of POST /detokenize."""

    tokens: _TokenIds


class DetokenizeResponse(BaseModel):
    """Answer of POST /detokenize."""

    prompt: str


class PromptTokensDetails(BaseModel):
    """Where the prompt's keys and values came from."""

    cached_tokens: int


class CompletionTokensDetails(BaseModel):
    """What speculation brought."""

    accepted_prediction_tokens: int
    rejected_prediction_tokens: int
    """Unlike OpenAI's, not among the ``completion_tokens``."""
    drafted_tokens: int
    """The sum of both: drafted tokens that were verified."""


class Usage(BaseModel):
    """Tokens of one HTTP request, over all its prompts and choices."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: Annotated[
        CompletionTokensDetails | None, Field(exclude_if=lambda details: details is None)
    ] = None
    """Absent where nothing was drafted."""


class CompletionLogprobs(BaseModel):
    """Log-probabilities of a completion, one entry a token in each list."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]
    """Character of the choice's text where the token begins."""


class CompletionChoice(BaseModel):
    """One completion, or what is new of it."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None


class _Response(BaseModel):
    id: str
    created: int = Field(default_factory=lambda: int(time.time()))
    model: str
    usage: Usage | None = None


class CompletionResponse(_Response):
    """Answer, or chunk of the answer, of POST /v1/completions."""

    object: Literal["text_completion"] = "text_completion"
    choices: list[CompletionChoice]


class TopLogprob(BaseModel):
    """A token that was likely at some position."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    """The token that was chosen, and the likeliest ones."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    """Log-probabilities of a message, one entry a token."""

    content: list[TokenLogprob]


class AnswerMessage(BaseModel):
    """What the model said."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatChoice(BaseModel):
    """One answer."""

    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None
    stop_reason: int | str | None = None


class ChatResponse(_Response):
    """Answer of POST /v1/chat/completions."""

    object: Literal["chat.completion"] = "chat.completion"
    choices: list[ChatChoice]


class Delta(BaseModel):
    """What is new of a message."""

    role: Literal["assistant"] | None = None
    content: str | None = None


class ChatChunkChoice(BaseModel):
    """What is new of an answer."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None


class ChatChunk(_Response):
    """One event of a streamed chat completion."""

    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    choices: list[ChatChunkChoice]


class ModelCard(BaseModel):
    """The model that is served."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "fjx"
    root: str
    """The model as it was given to the engine."""
    max_model_len: int


class ModelList(BaseModel):
    """Answer of GET /v1/models."""

    object: Literal["list"] = "list"
    data: list[ModelCard]
