"""What a step brought, as the engine reports it."""

from __future__ import annotations

from typing import Any, NamedTuple

from fjx.engine.detokenizer import Detokenizer
from fjx.outputs import FinishReason, PositionLogprobs, TokenLogprob
from fjx.pipeline.step_output import StepOutput
from fjx.scheduling.request import Request


class Progress(NamedTuple):
    """What a step brought to one request."""

    request: Request
    text: str
    token_ids: list[int]
    logprobs: list[PositionLogprobs] | None
    finish_reason: FinishReason | None
    """Why the request ended with this step; None: it goes on."""


class Verified(NamedTuple):
    """What became of a request's draft in a step."""

    drafted: int
    """Tokens of it that rows were there to verify."""
    accepted: int
    """Drafted tokens that the target chose, too."""


def commit(
    request: Request, chosen: list[int], output: StepOutput, first: int, transcripts: Detokenizer
) -> tuple[Progress, Verified]:
    """Take what a request's rows chose, up to the first token that was drafted otherwise, or that
    ends the request.

    Args:
        request: must not have ended.
        chosen: a token for each of its rows.
        output: of the step.
        first: the first of the rows in ``output``.
        transcripts: of all requests.
    """
    if request.max_len <= request.prompt_len:  # nothing was asked for but the prompt
        text = transcripts.end(request)
        nothing: list[PositionLogprobs] | None = None if request.params.logprobs is None else []
        return Progress(request, text, [], nothing, "length"), Verified(0, 0)
    drafted, before = min(len(request.draft), len(chosen)), request.accepted_tokens
    took: list[int] = []
    best = request.params.logprobs
    logprobs: list[PositionLogprobs] = []
    text, reason = "", None
    for row, token in enumerate(chosen, start=first):
        right = request.commit(token)
        took.append(token)
        if best is not None:
            logprobs.append(logprobs_of(output, row, token, best))
        new, reason = transcripts.add(request, token)
        text += new
        if reason is not None or not right:
            break
    request.steps += 1
    request.drafted_tokens += drafted
    progress = Progress(request, text, took, None if best is None else logprobs, reason)
    return progress, Verified(drafted, request.accepted_tokens - before)


def score(request: Request, position: int, output: StepOutput, row: int) -> None:
    """Take the log-probability of the prompt's token behind a row.

    Args:
        request: asks for them.
        position: of the row.
        output: of the step.
        row: of the step's rows that bring something, the one of ``position``.
    """
    best, scores = request.params.prompt_logprobs, request.prompt_logprobs
    # A request that lost its pages is computed again; what was read before stands.
    if scores is not None and best is not None and position + 1 == len(scores):
        scores.append(logprobs_of(output, row, request.tokens[position + 1], best))


def logprobs_of(output: StepOutput, row: int, token: int, k: int) -> PositionLogprobs:
    """Log-probabilities of a step's chosen token and of the k best ones, in one row."""
    read: Any = output.read_logprobs()
    chosen, rank, best, ids = (values[row] for values in read)
    top = tuple(TokenLogprob(int(ids[i]), float(best[i]), i + 1) for i in range(k))
    return PositionLogprobs(TokenLogprob(token, float(chosen), int(rank)), top)
