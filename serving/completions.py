"""POST /v1/completions."""

from __future__ import annotations

import time
import uuid
from contextlib import aclosing
from typing import Any, cast

from fastapi import APIRouter, Response

from fjx import CompletionOutput
from fjx.serving.errors import invalid
from fjx.serving.generation import Job, Tally, collect, for_each, says_nothing, stream_outputs
from fjx.serving.logprobs import TextOffsets, completion_logprobs
from fjx.serving.params import refuse_unsupported, sampling_params
from fjx.serving.prompts import check_count, check_echo, check_length, check_token_ids, encode_text
from fjx.serving.protocol import CompletionChoice, CompletionRequest, CompletionResponse
from fjx.serving.sse import Events, EventStream
from fjx.serving.state import ServerState
from fjx.serving.workers import off_loop


def completion_routes(state: ServerState) -> APIRouter:
    """The route, bound to an engine."""
    router = APIRouter()

    @router.post("/v1/completions", response_model=CompletionResponse)
    async def create_completion(body: CompletionRequest) -> Response:
        """Continue one prompt or several."""
        arrival = time.monotonic()
        state.check_serving()
        state.check_model(body.model)
        refuse_unsupported(body)
        answer = _Answer(state, body, f"cmpl-{uuid.uuid4().hex}")
        jobs = await _jobs(state, body, answer.id, arrival)
        if body.stream:
            return EventStream(lambda events: answer.stream(jobs, events))
        return Response(await answer.whole(jobs), media_type="application/json")

    return router


class _Answer:
    """One answer in the making."""

    def __init__(self, state: ServerState, body: CompletionRequest, answer_id: str) -> None:
        self.id = answer_id
        self._state = state
        self._body = body
        self._tally = Tally()
        self._common: dict[str, Any] = {
            "id": answer_id,
            "object": "text_completion",
            "created": int(time.time()),
            "model": state.model_name,
        }

    async def whole(self, jobs: list[Job]) -> str:
        """The answer of a request that does not stream, as JSON."""

        async def choices(job: Job) -> list[CompletionChoice]:
            completions = await collect(self._state, job, self._tally)
            return [
                self._choice(job, each, self._offsets(job), job.prompt_text) for each in completions
            ]

        results = await for_each(jobs, choices)
        return CompletionResponse(
            **self._common,
            choices=[choice for result in results for choice in result],
            usage=self._tally.usage(),
        ).model_dump_json()

    async def stream(self, jobs: list[Job], events: Events) -> None:
        """Send the answer of a streaming request."""
        usage: dict[str, Any] = {"usage": None} if self._body.include_usage else {}

        async def send(job: Job) -> None:
            offsets = [self._offsets(job) for _ in range(job.params.n)]
            echo = dict.fromkeys(range(job.params.n), job.prompt_text)
            async with aclosing(stream_outputs(self._state, job, self._tally)) as parts:
                async for part in parts:
                    if says_nothing(part):
                        continue
                    choice = self._choice(job, part, offsets[part.index], echo.pop(part.index, ""))
                    chunk = CompletionResponse(**self._common, choices=[choice], **usage)
                    await events.emit(chunk.model_dump_json(exclude_unset=True))

        await for_each(jobs, send)
        if self._body.include_usage:
            last = CompletionResponse(**self._common, choices=[], usage=self._tally.usage())
            await events.emit(last.model_dump_json(exclude_unset=True))

    def _offsets(self, job: Job) -> TextOffsets:
        return TextOffsets(self._state.llm.tokenizer, job.params.skip_special_tokens)

    def _choice(
        self, job: Job, output: CompletionOutput, offsets: TextOffsets, echo: str
    ) -> CompletionChoice:
        return CompletionChoice(
            index=job.first_choice + output.index,
            text=echo + output.text,
            logprobs=completion_logprobs(self._state.llm.tokenizer, output, offsets),
            finish_reason=output.finish_reason,
            stop_reason=output.stop_reason,
        )


async def _jobs(
    state: ServerState, body: CompletionRequest, answer_id: str, arrival: float
) -> list[Job]:
    llm = state.llm
    params = sampling_params(
        body,
        max_tokens=16 if body.max_tokens is None else body.max_tokens,
        logprobs=body.logprobs,
        vocab_size=llm.vocab_size,
    )
    prompts = _prompts(body)
    check_count(len(prompts), params.n, llm.config.max_waiting_requests)
    encoded = await off_loop(
        sum(len(prompt) for prompt in prompts),
        lambda: [_encode(state, prompt, body) for prompt in prompts],
    )
    check_echo(sum(len(text) for _, text in encoded), params.n, state.config.max_body_bytes)
    return [
        Job(
            request_id=f"{answer_id}-{position}",
            first_choice=position * params.n,
            prompt_ids=ids,
            params=params,
            priority=body.priority or 0,
            arrival=arrival,
            prompt_text=text,
        )
        for position, (ids, text) in enumerate(encoded)
    ]


def _encode(
    state: ServerState, prompt: str | list[int], body: CompletionRequest
) -> tuple[list[int], str]:
    """A prompt's token ids, and the text to put before each completion."""
    if isinstance(prompt, str):
        ids, text = encode_text(state, prompt, "prompt"), prompt if body.echo else ""
        check_length(state.llm, ids, body.max_tokens, "prompt")
        return ids, text
    check_token_ids(prompt, state.llm.vocab_size, "prompt")
    check_length(state.llm, prompt, body.max_tokens, "prompt")
    return prompt, state.llm.tokenizer.decode(prompt, False) if body.echo else ""


def _prompts(body: CompletionRequest) -> list[str | list[int]]:
    if isinstance(body.prompt, str):
        return [body.prompt]
    if not body.prompt:
        raise invalid("prompt is empty: there must be at least one", "prompt")
    if isinstance(body.prompt[0], int):
        return [body.prompt]
    return cast("list[str | list[int]]", body.prompt)
