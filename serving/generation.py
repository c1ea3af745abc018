"""Runs the engine's requests behind one HTTP request: all its prompts, each with n choices."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TypeVar

from fjx import (
    CompletionOutput,
    EngineDeadError,
    PositionLogprobs,
    QueueFullError,
    RequestOutput,
    SamplingParams,
)
from fjx.serving.errors import ApiError, unavailable
from fjx.serving.metrics import RequestMeter
from fjx.serving.responses import CompletionTokensDetails, PromptTokensDetails, Usage
from fjx.serving.state import ServerState

logger = logging.getLogger("fjx.server")

_Result = TypeVar("_Result")

_LONGEST_PAUSE = 1.0
"""Seconds between two tries to have a prompt admitted."""


@dataclass(frozen=True)
class Job:
    """One prompt of an HTTP request; the engine sees it as one request with n completions."""

    request_id: str
    first_choice: int
    """Choice index of the prompt's first completion."""
    prompt_ids: list[int]
    params: SamplingParams
    priority: int
    arrival: float
    """Seconds of time.monotonic."""
    echo: str = ""
    """Text that comes before each completion."""
    cache_salt: str | None = None
    prompt_logprobs: list[PositionLogprobs | None] = field(default_factory=list)
    """Filled before the first part of a completion, where asked for."""


@dataclass
class TokenCounter:
    """Counts the tokens of an HTTP request."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: dict[str, int] = field(default_factory=dict)
    """Cached prompt tokens, by the id of the engine's request."""
    drafts: dict[tuple[str, int], tuple[int, int]] = field(default_factory=dict)
    """Drafted and accepted tokens of each engine request's completions."""

    def add(self, output: RequestOutput) -> None:
        """Count what is new of an engine request."""
        if output.request_id not in self.cached_tokens:
            self.prompt_tokens += len(output.prompt_token_ids)
        self.cached_tokens[output.request_id] = output.num_cached_tokens
        for part in output.outputs:
            self.completion_tokens += len(part.token_ids)
            self.drafts[output.request_id, part.index] = part.drafted_tokens, part.accepted_tokens

    def usage(self, without: CompletionOutput | None = None) -> Usage:
        """The counts as the API reports them; ``without``: before this part came."""
        completion_tokens = self.completion_tokens
        if without is not None:
            completion_tokens -= len(without.token_ids)
        return Usage(
            prompt_tokens=self.prompt_tokens,
            completion_tokens=completion_tokens,
            total_tokens=self.prompt_tokens + completion_tokens,
            prompt_tokens_details=PromptTokensDetails(
                cached_tokens=sum(self.cached_tokens.values())
            ),
            completion_tokens_details=self._draft_details(),
        )

    def _draft_details(self) -> CompletionTokensDetails | None:
        drafted = sum(drafted for drafted, _ in self.drafts.values())
        accepted = sum(accepted for _, accepted in self.drafts.values())
        if drafted == 0:
            return None
        return CompletionTokensDetails(
            accepted_prediction_tokens=accepted,
            rejected_prediction_tokens=drafted - accepted,
            drafted_tokens=drafted,
        )


async def stream_outputs(
    state: ServerState, job: Job, counter: TokenCounter
) -> AsyncGenerator[CompletionOutput, None]:
    """Yield what is new of a job's completions, counted, measured and logged.

    Raises:
        ApiError: the engine gave the request up.
        RequestError, QueueFullError, EngineDeadError: it never took it, or died.
    """
    meter = RequestMeter(state.metrics, job.arrival, job.params)
    outcome = "aborted"
    try:
        async with aclosing(_admitted(state, job, counter)) as outputs:
            async for output in outputs:
                meter.observe(output)
                counter.add(output)
                if output.prompt_logprobs is not None and not job.prompt_logprobs:
                    job.prompt_logprobs.extend(output.prompt_logprobs)
                for completion in output.outputs:
                    _check_not_given_up(output, completion)
                    if output.finished:
                        outcome = completion.finish_reason or outcome
                    yield completion
    except EngineDeadError as error:
        outcome = f"failed ({error})"
        if state.draining:
            raise _cut_short() from error
        raise
    except Exception as error:
        outcome = f"failed ({error})"
        raise
    finally:
        if state.config.log_requests:
            _log(job, meter, outcome)


async def _admitted(
    state: ServerState, job: Job, counter: TokenCounter
) -> AsyncGenerator[RequestOutput, None]:
    """What the engine brings to a job. A job that is refused, or displaced by a more urgent one,
    waits where other prompts of its HTTP request have begun: their work is not thrown away."""
    while True:
        outputs = state.llm.generate(
            job.prompt_ids, job.params, job.request_id, job.priority, job.cache_salt
        )
        try:
            async with aclosing(outputs):
                async for output in outputs:
                    yield output
            return
        except QueueFullError as error:
            if not counter.cached_tokens:
                raise
            await asyncio.sleep(min(error.retry_after, _LONGEST_PAUSE))


async def collect(state: ServerState, job: Job, counter: TokenCounter) -> list[CompletionOutput]:
    """A job's completions, whole, in the order of their indices."""
    whole = [
        CompletionOutput(index=index, logprobs=None if job.params.logprobs is None else [])
        for index in range(job.params.n)
    ]
    async with aclosing(stream_outputs(state, job, counter)) as parts:
        async for part in parts:
            completion = whole[part.index]
            completion.text += part.text
            completion.token_ids += part.token_ids
            if completion.logprobs is not None:
                completion.logprobs += part.logprobs or []
            completion.finish_reason = part.finish_reason or completion.finish_reason
            if part.stop_reason is not None:
                completion.stop_reason = part.stop_reason
            completion.steps = part.steps
            completion.drafted_tokens = part.drafted_tokens
            completion.accepted_tokens = part.accepted_tokens
            completion.pruned_tokens = part.pruned_tokens
            completion.preemptions = part.preemptions
    return whole


def says_nothing(part: CompletionOutput, shows_ids: bool | None) -> bool:
    """Whether a part need not be sent: its text waits for more of a character or stop string.

    Args:
        part: what is new of a completion.
        shows_ids: whether the client wants to see token ids, too.
    """
    return not (part.text or part.logprobs or part.finish_reason or (shows_ids and part.token_ids))


def size_of(completions: Sequence[CompletionOutput]) -> int:
    """How much there is to format, for ``off_loop``: a log-probability is worth ten characters."""
    return sum(
        len(each.text) + 10 * sum(1 + len(position.top) for position in each.logprobs or ())
        for each in completions
    )


async def for_each(jobs: Sequence[Job], work: Callable[[Job], Awaitable[_Result]]) -> list[_Result]:
    """Work on all jobs at once; the first failure ends the others and is raised."""

    async def one(job: Job) -> _Result:
        return await work(job)

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(job)) for job in jobs]
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [task.result() for task in tasks]


def _check_not_given_up(output: RequestOutput, completion: CompletionOutput) -> None:
    match completion.finish_reason:
        case "error":
            reason = output.error or "the engine gave no reason"
            raise ApiError(
                HTTPStatus.INTERNAL_SERVER_ERROR, f"the request failed: {reason}", code="failed"
            )
        case "abort":
            raise _cut_short()


def _cut_short() -> ApiError:
    return unavailable(
        "the server is shutting down and the request did not finish in time", "shutting_down"
    )


def _log(job: Job, meter: RequestMeter, outcome: str) -> None:
    first = "-" if meter.first_token is None else f"{meter.first_token:.3f} s"
    logger.info(
        "%s %s: %d prompt + %d output tokens, first token %s, total %.3f s",
        job.request_id,
        outcome,
        len(job.prompt_ids),
        meter.generated,
        first,
        meter.elapsed,
    )
