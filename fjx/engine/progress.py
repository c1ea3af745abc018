"""What a step brought, as the engine reports it."""

from __future__ import annotations

from typing import Any, NamedTuple

from fjx.engine.request import Request
from fjx.outputs import FinishReason, PositionLogprobs, TokenLogprob
from fjx.pipeline.executor import StepOutput


class Progress(NamedTuple):
    """What a step brought to one request."""

    request: Request
    text: str
    token_ids: list[int]
    logprobs: list[PositionLogprobs] | None
    finish_reason: FinishReason | None
    """Why the request ended with this step; None: it goes on."""


def logprobs_of(output: StepOutput, row: int, token: int, k: int) -> PositionLogprobs:
    """Log-probabilities of a step's chosen token and of the k best ones, in one row."""
    read: Any = output.read_logprobs()
    chosen, rank, best, ids = (values[row] for values in read)
    top = tuple(TokenLogprob(int(ids[i]), float(best[i]), i + 1) for i in range(k))
    return PositionLogprobs(TokenLogprob(token, float(chosen), int(rank)), top)
