"""POST /v1/chat/completions."""

from __future__ import annotations

import time
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request, Response

from fjx import CompletionOutput
from fjx.serving.bodies import BodyRoute
from fjx.serving.conversation import conversation_of, message_text
from fjx.serving.generation import Job, TokenCounter, collect, says_nothing, size_of, stream_outputs
from fjx.serving.logprobs import TokenNames, chat_logprobs, prompt_logprobs
from fjx.serving.openapi import GENERATION
from fjx.serving.params import check_generation, sampling_params
from fjx.serving.prompts import check_length, check_scores, encode_chat, truncated
from fjx.serving.protocol import ChatRequest
from fjx.serving.request_id import engine_id, request_id
from fjx.serving.responses import (
    AnswerMessage,
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatResponse,
    Delta,
    PromptLogprobs,
    written,
)
from fjx.serving.sse import Events, EventStream
from fjx.serving.state import ServerState
from fjx.serving.workers import off_loop


def chat_routes(state: ServerState) -> APIRouter:
    """The route, bound to an engine."""
    router = APIRouter(route_class=BodyRoute)

    @router.post("/v1/chat/completions", response_model=ChatResponse, responses=GENERATION)
    async def create_chat_completion(body: ChatRequest, request: Request) -> Response:
        """Answer the last message of a conversation."""
        arrival = time.monotonic()
        state.check_serving()
        state.check_model(body.model)
        check_generation(body)
        answer_id = f"chatcmpl-{request_id(request, body.request_id)}"
        job = await _job(state, body, answer_id, arrival)
        answer = _ChatAnswer(state, body, job, answer_id)
        if body.stream:
            return EventStream(answer.stream)
        return Response(await answer.whole(), media_type="application/json")

    return router


class _ChatAnswer:
    """One answer in the making."""

    def __init__(self, state: ServerState, body: ChatRequest, job: Job, answer_id: str) -> None:
        self._state = state
        self._body = body
        self._job = job
        self._names = TokenNames(state.llm.tokenizer, bool(body.return_tokens_as_token_ids))
        self._counter = TokenCounter()
        self._common: dict[str, Any] = {
            "id": answer_id,
            "created": int(time.time()),
            "model": state.model_name,
        }

    async def whole(self) -> bytes:
        """The answer of a request that does not stream, as JSON."""
        completions = await collect(self._state, self._job, self._counter)
        of_prompt = await self._prompt_logprobs()

        def answer() -> bytes:
            choices = [
                ChatChoice(
                    index=each.index,
                    message=AnswerMessage(content=self._job.echo + each.text),
                    logprobs=chat_logprobs(self._names, each),
                    finish_reason=each.finish_reason,
                    stop_reason=each.stop_reason,
                    token_ids=self._token_ids(each),
                )
                for each in completions
            ]
            return written(
                ChatResponse(
                    **self._common,
                    choices=choices,
                    usage=self._counter.usage(),
                    prompt_logprobs=of_prompt,
                    prompt_token_ids=self._job.prompt_ids if self._body.return_token_ids else None,
                )
            )

        return await off_loop(size_of(completions) + 20 * len(of_prompt or ()), answer)

    async def stream(self, events: Events) -> None:
        """Send the answer of a streaming request; each choice begins with its role."""
        silent = set(range(self._job.params.n))
        async with aclosing(stream_outputs(self._state, self._job, self._counter)) as parts:
            async for part in parts:
                if says_nothing(part, self._body.return_token_ids):
                    continue
                if part.index in silent:
                    shows_prompt = self._body.return_token_ids and len(silent) == self._job.params.n
                    more: dict[str, Any] = {}
                    if shows_prompt:
                        more["prompt_token_ids"] = self._job.prompt_ids
                    if self._body.continuous_usage:
                        more["usage"] = self._counter.usage(without=part)
                    silent.remove(part.index)
                    await events.emit(self._chunk(self._first_choice(part.index), **more))
                await events.emit(self._chunk(self._choice(part)))
        if self._body.include_usage:
            await events.emit(self._chunk(None, usage=self._counter.usage()))

    def _first_choice(self, index: int) -> ChatChunkChoice:
        delta = Delta(role="assistant", content=self._job.echo)
        return ChatChunkChoice(index=index, delta=delta, logprobs=None, finish_reason=None)

    def _choice(self, part: CompletionOutput) -> ChatChunkChoice:
        return ChatChunkChoice(
            index=part.index,
            delta=Delta(content=part.text) if part.text else Delta(),
            logprobs=chat_logprobs(self._names, part),
            finish_reason=part.finish_reason,
            stop_reason=part.stop_reason,
            token_ids=self._token_ids(part),
        )

    def _chunk(self, choice: ChatChunkChoice | None, **fields: Any) -> str:
        if self._body.include_usage:
            fields.setdefault(
                "usage", self._counter.usage() if self._body.continuous_usage else None
            )
        chunk = ChatChunk(
            **self._common,
            object="chat.completion.chunk",
            choices=[] if choice is None else [choice],
            **fields,
        )
        return chunk.model_dump_json(exclude_unset=True)

    def _token_ids(self, part: CompletionOutput) -> list[int] | None:
        return part.token_ids if self._body.return_token_ids else None

    async def _prompt_logprobs(self) -> PromptLogprobs | None:
        count, job = self._body.prompt_logprobs, self._job
        if count is None:
            return None
        return await off_loop(
            len(job.prompt_ids) * (1 + count),
            lambda: prompt_logprobs(self._names.tokenizer, job.prompt_logprobs, count),
        )


async def _job(state: ServerState, body: ChatRequest, answer_id: str, arrival: float) -> Job:
    llm = state.llm
    max_tokens = body.max_tokens
    if body.max_completion_tokens is not None:
        max_tokens = body.max_completion_tokens
    params = await sampling_params(
        body,
        max_tokens=max_tokens,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        prompt_logprobs=body.prompt_logprobs,
        vocab_size=llm.vocab_size,
    )
    ids = await encode_chat(
        state,
        lambda: conversation_of(body, body.messages, llm.tokenizer.chat_template),
        bool(body.add_special_tokens),
    )
    ids = truncated(llm, ids, body, max_tokens)
    check_length(llm, ids, max_tokens, "messages")
    check_scores(len(ids), body.prompt_logprobs, 1)
    last = body.messages[-1]
    return Job(
        request_id=engine_id(answer_id),
        first_choice=0,
        prompt_ids=ids,
        params=params,
        priority=body.priority or 0,
        arrival=arrival,
        echo=message_text(last) if body.echo and last.role == "assistant" else "",
        cache_salt=body.cache_salt,
    )
