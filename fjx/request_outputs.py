"""From what steps bring to what callers get."""

from __future__ import annotations

from collections.abc import Sequence

from fjx.engine.progress import Progress
from fjx.outputs import CompletionOutput, PositionLogprobs, RequestOutput, RequestTiming
from fjx.sampling_params import SamplingParams
from fjx.scheduling.request import Request


def empty_output(
    id: str, prompt: str | None, prompt_ids: list[int], params: SamplingParams
) -> RequestOutput:
    """Of a request of which nothing has come; ``prompt``: its text, if it was given as text."""
    return RequestOutput(
        request_id=id,
        prompt=prompt,
        prompt_token_ids=prompt_ids,
        outputs=[
            CompletionOutput(index, logprobs=None if params.logprobs is None else [])
            for index in range(params.n)
        ],
        finished=False,
    )


def extend(output: RequestOutput, progress: Progress) -> None:
    """Add what a step brought to a request's output."""
    request = progress.request
    completion = output.outputs[request.index]
    completion.text += progress.text
    completion.token_ids += progress.token_ids
    if progress.logprobs is not None and completion.logprobs is not None:
        completion.logprobs += progress.logprobs
    completion.finish_reason = request.finish_reason
    _describe(request, output, completion)
    output.error = request.error or output.error
    if request.prompt_logprobs is not None:
        output.prompt_logprobs = request.prompt_logprobs
    output.finished = all(each.finish_reason is not None for each in output.outputs)
    output.num_cached_tokens = max(output.num_cached_tokens, request.cached_tokens)


def new_output(
    progress: Progress, prompt: str | None, prompt_ids: list[int], finished: bool
) -> RequestOutput:
    """What a step brought, alone; ``finished``: whether all completions have ended."""
    request = progress.request
    completion = CompletionOutput(
        index=request.index,
        text=progress.text,
        token_ids=progress.token_ids,
        logprobs=progress.logprobs,
        finish_reason=progress.finish_reason,
    )
    output = RequestOutput(
        request_id=request.id,
        prompt=prompt,
        prompt_token_ids=prompt_ids,
        outputs=[completion],
        finished=finished,
        num_cached_tokens=request.cached_tokens,
        error=request.error,
    )
    _describe(request, output, completion)
    return output


def _describe(request: Request, output: RequestOutput, completion: CompletionOutput) -> None:
    """How a completion came about so far."""
    completion.stop_reason = None if completion.finish_reason is None else request.stop_reason
    completion.steps = request.steps
    completion.drafted_tokens = request.drafted_tokens
    completion.accepted_tokens = request.accepted_tokens
    completion.pruned_tokens = request.pruned_tokens
    completion.preemptions = request.preemptions
    output.timing = RequestTiming(
        request.arrival, request.scheduled, request.first_token, request.ended
    )


class PromptScores:
    """The log-probabilities of a prompt, which its first completion brings, for all of them: what
    others bring before waits."""

    def __init__(self, params: SamplingParams) -> None:
        self._known = params.prompt_logprobs is None
        self._waiting: list[Progress] = []
        self._scores: list[PositionLogprobs | None] | None = None
        self._told: set[int] = set()

    def with_scores(self, progress: Progress) -> Sequence[Progress]:
        """What can be told now."""
        if self._known:
            return (progress,)
        if progress.request.index > 0:
            self._waiting.append(progress)
            return ()
        self._known = True
        self._scores = progress.request.prompt_logprobs
        waiting, self._waiting = self._waiting, []
        return (progress, *waiting)

    def of_first(self, progress: Progress) -> list[PositionLogprobs | None] | None:
        """The log-probabilities, if this is the first that is told of a completion."""
        index = progress.request.index
        if index in self._told:
            return None
        self._told.add(index)
        return self._scores
