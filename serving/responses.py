"""Responses of the OpenAI API, with vLLM's extra fields."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, PlainSerializer, field_serializer
from pydantic_core import to_json

_where_asked_for: Any = Field(exclude_if=lambda value: value is None)
"""For fields that are absent, rather than null, where nobody has asked for them."""


def written(answer: BaseModel) -> bytes:
    """An answer as JSON."""
    return to_json(answer)


_PIECE = 8192
"""Entries of a list that are written at once, within a millisecond."""


def _as_it_is(value: Any) -> Any:
    # An answer may have many thousands of these, and is checked and written in one go: where that
    # calls Python, other threads get their turn.
    return value


class TokenizeResponse(BaseModel):
    """Answer of POST /tokenize."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None

    def written(self) -> bytes:
        """It as JSON, made of pieces, so that other threads get their turn between them."""
        strings = b"null" if self.token_strs is None else _list_written(self.token_strs)
        tokens = _list_written(self.tokens)
        return b'{"count":%d,"max_model_len":%d,"tokens":%b,"token_strs":%b}' % (
            self.count,
            self.max_model_len,
            tokens,
            strings,
        )


def _list_written(values: Sequence[int] | Sequence[str]) -> bytes:
    parts = (values[i : i + _PIECE] for i in range(0, len(values), _PIECE))
    return b"[" + b",".join(to_json(part)[1:-1] for part in parts) + b"]"


class TokenizerInfo(BaseModel):
    """Answer of GET /tokenizer_info: what a client needs to make prompts by itself."""

    tokenizer_class: str
    bos_token: str | None
    eos_token: str | None
    chat_template: str | None
    model_max_length: int


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
    completion_tokens_details: Annotated[CompletionTokensDetails | None, _where_asked_for] = None
    """Absent where nothing was drafted."""


_Likeliest = Annotated[
    dict[str, float] | None,
    BeforeValidator(_as_it_is),
    PlainSerializer(_as_it_is, return_type=dict[str, float] | None),
]


class CompletionLogprobs(BaseModel):
    """Log-probabilities of a completion, one entry a token in each list.

    The first token of an echoed prompt follows nothing, so that it has none.
    """

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[_Likeliest]
    text_offset: list[int]
    """Character of the choice's text where the token begins."""

    def then(self, later: CompletionLogprobs | None) -> CompletionLogprobs:
        """These, and those of the tokens that follow."""
        if later is None:
            return self
        return CompletionLogprobs.model_construct(  # what has been checked is not checked again
            tokens=self.tokens + later.tokens,
            token_logprobs=self.token_logprobs + later.token_logprobs,
            top_logprobs=self.top_logprobs + later.top_logprobs,
            text_offset=self.text_offset + later.text_offset,
        )


class PromptLogprob(BaseModel):
    """How likely a token was at a place in the prompt."""

    logprob: float
    rank: int
    """1 for the most likely token."""
    decoded_token: str


_OfPosition = Annotated[
    dict[int, PromptLogprob] | None,
    BeforeValidator(_as_it_is),
    PlainSerializer(_as_it_is, return_type=dict[int, PromptLogprob] | None),
]
PromptLogprobs = list[_OfPosition]
"""By token id, for each token of the prompt: the token itself and the likeliest ones; null for the
first, which follows nothing."""


class CompletionChoice(BaseModel):
    """One completion, or what is new of it."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    prompt_logprobs: PromptLogprobs | None = None
    prompt_token_ids: list[int] | None = None
    token_ids: list[int] | None = None

    @field_serializer("text")
    def _as_it_is(self, text: str) -> str:
        return text  # see _as_it_is


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


class ChatTokenLogprob(TopLogprob):
    """The token that was chosen, and the likeliest ones."""

    top_logprobs: list[TopLogprob]

    @field_serializer("token")
    def _as_it_is(self, token: str) -> str:
        return token  # see _as_it_is


class ChatLogprobs(BaseModel):
    """Log-probabilities of a message, one entry a token."""

    content: list[ChatTokenLogprob]


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
    token_ids: list[int] | None = None


class ChatResponse(_Response):
    """Answer of POST /v1/chat/completions."""

    object: Literal["chat.completion"] = "chat.completion"
    choices: list[ChatChoice]
    prompt_logprobs: PromptLogprobs | None = None
    prompt_token_ids: list[int] | None = None


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
    token_ids: Annotated[list[int] | None, _where_asked_for] = None


class ChatChunk(_Response):
    """One event of a streamed chat completion."""

    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    choices: list[ChatChunkChoice]
    prompt_token_ids: Annotated[list[int] | None, _where_asked_for] = None


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


class ErrorInfo(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    """The field that was wrong."""
    code: str | None


class ErrorResponse(BaseModel):
    """Every error, as the OpenAI API shapes it."""

    error: ErrorInfo


class Version(BaseModel):
    """Answer of GET /version."""

    version: str


class Load(BaseModel):
    """Answer of GET /load."""

    server_load: int
    """HTTP requests that are being answered."""


class Switch(BaseModel):
    """A change of plan."""

    number: int
    reason: str
    state: str
    progress: float
    error: str | None
    seconds: dict[str, float]
    pause_seconds: float | None
    planned_bytes: int
    moved_bytes: int
    parameter_bytes: int
    kv_bytes: int
    dirty_bytes: int
    dirty_pages: int
    rounds: int
    before: Annotated[dict[str, Any], Field(alias="from")]
    after: Annotated[dict[str, Any], Field(alias="to")]


class PlanResponse(BaseModel):
    """Answer of every method of /v1/plan."""

    object: Literal["plan"] = "plan"
    stages: int
    """Of the first replica."""
    replicas: list[dict[str, Any]]
    state: str
    switch: Switch | None
    last_switch: Switch | None
