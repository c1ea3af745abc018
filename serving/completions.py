"""POST /v1/completions."""

from __future__ import annotations

import time
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, cast

from fastapi import APIRouter, Request, Response

from fjx import CompletionOutput
from fjx.serving.bodies import BodyRoute
from fjx.serving.errors import invalid
from fjx.serving.generation import (
    Job,
    TokenCounter,
    collect,
    for_each,
    says_nothing,
    size_of,
    stream_outputs,
)
from fjx.serving.logprobs import (
    TextOffsets,
    TokenNames,
    completion_logprobs,
    echo_logprobs,
    prompt_logprobs,
)
from fjx.serving.openapi import GENERATION
from fjx.serving.params import check_generation, sampling_params
from fjx.serving.prompts import (
    check_count,
    check_echo,
    check_length,
    check_scores,
    check_token_ids,
    encode_text,
    truncated,
)
from fjx.serving.protocol import CompletionRequest
from fjx.serving.request_id import engine_id, request_id
from fjx.serving.responses import (
    CompletionChoice,
    CompletionLogprobs,
    CompletionResponse,
    PromptLogprobs,
    written,
)
from fjx.serving.sse import Events, EventStream
from fjx.serving.state import ServerState
from fjx.serving.workers import ENCODING, off_loop


def completion_routes(state: ServerState) -> APIRouter:
    """The route, bound to an engine."""
    router = APIRouter(route_class=BodyRoute)

    @router.post("/v1/completions", response_model=CompletionResponse, responses=GENERATION)
    async def create_completion(body: CompletionRequest, request: Request) -> Response:
        """Continue one prompt or several."""
        arrival = time.monotonic()
        state.check_serving()
        state.check_model(body.model)
        check_generation(body)
        answer = _CompletionAnswer(state, body, f"cmpl-{request_id(request, body.request_id)}")
        jobs = await _jobs(state, body, answer.id, arrival)
        if body.stream:
            return EventStream(lambda events: answer.stream(jobs, events))
        return Response(await answer.whole(jobs), media_type="application/json")

    return router


class _CompletionAnswer:
    """One answer in the making."""

    def __init__(self, state: ServerState, body: CompletionRequest, answer_id: str) -> None:
        self.id = answer_id
        self._state = state
        self._body = body
        self._names = TokenNames(state.llm.tokenizer, bool(body.return_tokens_as_token_ids))
        self._counter = TokenCounter()
        self._common: dict[str, Any] = {
            "id": answer_id,
            "object": "text_completion",
            "created": int(time.time()),
            "model": state.model_name,
        }

    async def whole(self, jobs: list[Job]) -> bytes:
        """The answer of a request that does not stream, as JSON."""

        async def choices(job: Job) -> list[CompletionChoice]:
            completions = await collect(self._state, job, self._counter)
            choices = _Choices(self._body, job, self._names)
            return [await choices.add(each) for each in completions]

        results = await for_each(jobs, choices)
        made = [choice for result in results for choice in result]

        def answer() -> bytes:
            # A large answer is copied at its end: choice by choice, other threads run between.
            usage = self._counter.usage()
            around = written(CompletionResponse(**self._common, choices=[], usage=usage))
            head, name, tail = around.partition(b'"choices":[')
            separated = [part for choice in made for part in (b",", written(choice))]
            return b"".join((head, name, *separated[1:], tail))

        return await off_loop(sum(_size(choice) for choice in made), answer)

    async def stream(self, jobs: list[Job], events: Events) -> None:
        """Send the answer of a streaming request."""

        async def send(job: Job) -> None:
            choices = _Choices(self._body, job, self._names)
            async with aclosing(stream_outputs(self._state, job, self._counter)) as parts:
                async for part in parts:
                    if not says_nothing(part, self._body.return_token_ids):
                        await events.emit(await self._chunk(await choices.add(part)))

        await for_each(jobs, send)
        if self._body.include_usage:
            last = CompletionResponse(**self._common, choices=[], usage=self._counter.usage())
            await events.emit(last.model_dump_json(exclude_unset=True))

    async def _chunk(self, choice: CompletionChoice) -> str:
        usage: dict[str, Any] = {}
        if self._body.include_usage:
            usage["usage"] = self._counter.usage() if self._body.continuous_usage else None
        chunk = CompletionResponse(**self._common, choices=[choice], **usage)
        return await off_loop(_size(choice), lambda: chunk.model_dump_json(exclude_unset=True))


class _Choices:
    """The completions of one prompt; the first part of each brings what was asked of the prompt."""

    def __init__(self, body: CompletionRequest, job: Job, names: TokenNames) -> None:
        self._body = body
        self._job = job
        self._names = names
        skip = job.params.skip_special_tokens
        self._offsets = [TextOffsets(names.tokenizer, skip) for _ in range(job.params.n)]
        self._begun: set[int] = set()
        self._of_prompt: _OfPrompt | None = None

    async def add(self, part: CompletionOutput) -> CompletionChoice:
        """A completion, or what is new of it."""
        body, job = self._body, self._job
        logprobs = await off_loop(
            size_of([part]),
            lambda: completion_logprobs(
                self._names,
                part,
                self._offsets[part.index],
                count=body.logprobs or 0,
                start=len(job.echo),
            ),
        )
        choice = CompletionChoice(
            index=job.first_choice + part.index,
            text=part.text,
            logprobs=logprobs,
            finish_reason=part.finish_reason,
            stop_reason=part.stop_reason,
        )
        if body.return_token_ids:
            choice.token_ids = part.token_ids
        if part.index not in self._begun:
            self._begun.add(part.index)
            await self._begin(choice)
        return choice

    async def _begin(self, choice: CompletionChoice) -> None:
        if self._of_prompt is None:
            size = len(self._job.prompt_ids) * (1 + (self._job.params.prompt_logprobs or 0))
            self._of_prompt = await off_loop(size, self._describe_prompt)
        of_prompt = self._of_prompt
        choice.text = self._job.echo + choice.text
        if of_prompt.echo is not None:
            choice.logprobs = of_prompt.echo.then(choice.logprobs)
        if of_prompt.logprobs is not None:
            choice.prompt_logprobs = of_prompt.logprobs
        if self._body.return_token_ids:
            choice.prompt_token_ids = self._job.prompt_ids

    def _describe_prompt(self) -> _OfPrompt:
        body, job, names = self._body, self._job, self._names
        positions = job.prompt_logprobs
        return _OfPrompt(
            echo=echo_logprobs(names, job.prompt_ids, positions, job.echo, body.logprobs)
            if body.echo and body.logprobs is not None
            else None,
            logprobs=prompt_logprobs(names.tokenizer, positions, body.prompt_logprobs)
            if body.prompt_logprobs is not None
            else None,
        )


def _size(choice: CompletionChoice) -> int:
    """How much there is to write, for ``off_loop``."""
    of_prompt = len(choice.prompt_logprobs or ()) + len(choice.prompt_token_ids or ())
    described = 0 if choice.logprobs is None else len(choice.logprobs.tokens)
    return len(choice.text) + 20 * (of_prompt + described)


@dataclass(frozen=True)
class _OfPrompt:
    """Log-probabilities of a prompt, where asked for."""

    echo: CompletionLogprobs | None
    """The echoed prompt's log-probabilities, which go before the completion's own."""
    logprobs: PromptLogprobs | None


async def _jobs(
    state: ServerState, body: CompletionRequest, answer_id: str, arrival: float
) -> list[Job]:
    llm = state.llm
    asked = (body.prompt_logprobs, body.logprobs if body.echo else None)
    params = await sampling_params(
        body,
        max_tokens=16 if body.max_tokens is None else body.max_tokens,
        logprobs=body.logprobs,
        prompt_logprobs=max((count for count in asked if count is not None), default=None),
        vocab_size=llm.vocab_size,
    )
    prompts = _prompts(body)
    check_count(len(prompts), params.n, llm.config.max_waiting_requests)
    encoded = await off_loop(
        sum(len(prompt) for prompt in prompts),
        lambda: [_encode(state, prompt, body) for prompt in prompts],
        workers=ENCODING,
    )
    check_echo(sum(len(text) for _, text in encoded), params.n, state.config.max_body_bytes)
    check_scores(sum(len(ids) for ids, _ in encoded), params.prompt_logprobs, params.n)
    return [
        Job(
            request_id=engine_id(f"{answer_id}-{position}"),
            first_choice=position * params.n,
            prompt_ids=ids,
            params=params,
            priority=body.priority or 0,
            arrival=arrival,
            echo=echo,
            cache_salt=body.cache_salt,
        )
        for position, (ids, echo) in enumerate(encoded)
    ]


def _encode(
    state: ServerState, prompt: str | list[int], body: CompletionRequest
) -> tuple[list[int], str]:
    """A prompt's token ids, and the text to put before each completion."""
    llm = state.llm
    if isinstance(prompt, str):
        whole = encode_text(state, prompt, "prompt", body.add_special_tokens is not False)
    else:
        check_token_ids(prompt, llm.vocab_size, "prompt")
        whole = prompt
    ids = truncated(llm, whole, body, body.max_tokens)
    check_length(llm, ids, body.max_tokens, "prompt")
    if not body.echo:
        return ids, ""
    if isinstance(prompt, str) and len(ids) == len(whole):
        return ids, prompt
    return ids, llm.tokenizer.decode(ids, False)


def _prompts(body: CompletionRequest) -> list[str | list[int]]:
    if isinstance(body.prompt, str):
        return [body.prompt]
    if not body.prompt:
        raise invalid("prompt is empty: there must be at least one", "prompt")
    if isinstance(body.prompt[0], int):
        return [body.prompt]
    return cast("list[str | list[int]]", body.prompt)
