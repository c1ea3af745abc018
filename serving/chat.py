"""POST /v1/chat/completions."""

from __future__ import annotations

import time
import uuid
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Response

from fjx import CompletionOutput
from fjx.serving.generation import Job, Tally, collect, says_nothing, stream_outputs
from fjx.serving.logprobs import chat_logprobs
from fjx.serving.params import refuse_unsupported, sampling_params
from fjx.serving.prompts import check_length, encode_chat
from fjx.serving.protocol import (
    AnswerMessage,
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatRequest,
    ChatResponse,
    Delta,
    Usage,
)
from fjx.serving.sse import Events, EventStream
from fjx.serving.state import ServerState


def chat_routes(state: ServerState) -> APIRouter:
    """The route, bound to an engine."""
    router = APIRouter()

    @router.post("/v1/chat/completions", response_model=ChatResponse)
    async def create_chat_completion(body: ChatRequest) -> Response:
        """Answer the last message of a conversation."""
        arrival = time.monotonic()
        state.check_serving()
        state.check_model(body.model)
        refuse_unsupported(body)
        job = await _job(state, body, arrival)
        answer = _Answer(state, body, job)
        if body.stream:
            return EventStream(answer.stream)
        return Response(await answer.whole(), media_type="application/json")

    return router


class _Answer:
    """One answer in the making."""

    def __init__(self, state: ServerState, body: ChatRequest, job: Job) -> None:
        self._state = state
        self._body = body
        self._job = job
        self._tally = Tally()
        self._common: dict[str, Any] = {
            "id": job.request_id,
            "created": int(time.time()),
            "model": state.model_name,
        }

    async def whole(self) -> str:
        """The answer of a request that does not stream, as JSON."""
        completions = await collect(self._state, self._job, self._tally)
        choices = [
            ChatChoice(
                index=each.index,
                message=AnswerMessage(content=each.text),
                logprobs=chat_logprobs(self._state.llm.tokenizer, each),
                finish_reason=each.finish_reason,
                stop_reason=each.stop_reason,
            )
            for each in completions
        ]
        return ChatResponse(
            **self._common, choices=choices, usage=self._tally.usage()
        ).model_dump_json()

    async def stream(self, events: Events) -> None:
        """Send the answer of a streaming request; each choice begins with its role."""
        silent = set(range(self._job.params.n))
        async with aclosing(stream_outputs(self._state, self._job, self._tally)) as parts:
            async for part in parts:
                if says_nothing(part):
                    continue
                if part.index in silent:
                    silent.remove(part.index)
                    await events.emit(self._chunk(_role_choice(part.index)))
                await events.emit(self._chunk(self._choice(part)))
        if self._body.include_usage:
            await events.emit(self._chunk(None, usage=self._tally.usage()))

    def _choice(self, part: CompletionOutput) -> ChatChunkChoice:
        return ChatChunkChoice(
            index=part.index,
            delta=Delta(content=part.text) if part.text else Delta(),
            logprobs=chat_logprobs(self._state.llm.tokenizer, part),
            finish_reason=part.finish_reason,
            stop_reason=part.stop_reason,
        )

    def _chunk(self, choice: ChatChunkChoice | None, usage: Usage | None = None) -> str:
        fields: dict[str, Any] = {"usage": usage} if self._body.include_usage else {}
        chunk = ChatChunk(
            **self._common,
            object="chat.completion.chunk",
            choices=[] if choice is None else [choice],
            **fields,
        )
        return chunk.model_dump_json(exclude_unset=True)


async def _job(state: ServerState, body: ChatRequest, arrival: float) -> Job:
    llm = state.llm
    max_tokens = body.max_tokens
    if body.max_completion_tokens is not None:
        max_tokens = body.max_completion_tokens
    params = sampling_params(
        body,
        max_tokens=max_tokens,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        vocab_size=llm.vocab_size,
    )
    ids = await encode_chat(state, body.messages, body.chat_template_kwargs)
    check_length(llm, ids, max_tokens, "messages")
    return Job(
        request_id=f"chatcmpl-{uuid.uuid4().hex}",
        first_choice=0,
        prompt_ids=ids,
        params=params,
        priority=body.priority or 0,
        arrival=arrival,
    )


def _role_choice(index: int) -> ChatChunkChoice:
    delta = Delta(role="assistant", content="")
    return ChatChunkChoice(index=index, delta=delta, logprobs=None, finish_reason=None)
