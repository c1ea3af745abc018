"""The end of a step: rows of the residual stream become tokens."""

from __future__ import annotations

from typing import Any, NamedTuple

from fjx.pipeline.batch import Batch
from fjx.pipeline.compiler import Compiler
from fjx.pipeline.placed_model import PlacedParams


class Choice(NamedTuple):
    """What the rows of a step chose, on the devices of ``head``."""

    tokens: Any
    """[C] int32, padded to one size."""
    last_token: Any
    """[N + 1] int32: the last token of each slot after this step."""
    logprobs: Any
    """See `StepOutput.read_logprobs`; None: nobody asked."""
    confidences: Any
    """[S] float32: the probability of each token; None: nobody asked."""


def choose_tokens(
    compiler: Compiler,
    head: PlacedParams,
    batch: Batch,
    rows: tuple[Any, Any],
    last_token: Any,
    confidences: bool,
) -> Choice:
    """Dispatch the programs behind the last granule.

    Args:
        compiler: has them.
        head: the last piece.
        batch: must have rows that choose a token.
        rows: those rows ``[C, D]``, and the slot of each, as `Stage.run` returns them.
        last_token: that of each slot so far; its memory is taken.
        confidences: whether the tokens' probabilities are wanted.
    """
    x, slots = rows
    S, at, get = batch.sample_bucket, head.placement.key, compiler.get
    raw = logits = get(("head", S, at))(head.params, x)
    if batch.sampling is None:
        tokens, last_token = get(("greedy", S, at))(logits, last_token, slots)
    else:
        if batch.edits is not None:
            edit = get(("edit", S, at))
            logits = edit(raw, last_token, batch.edits, batch.pending_slot)
        choose = get(("choose", S, at))
        tokens, last_token = choose(logits, last_token, slots, batch.sampling)
    logprobs = None
    if batch.logprobs:
        logprobs = get(("score", S, at))(raw, tokens, batch.scored)
    sure = get(("confidence", S, at))(raw, tokens) if confidences else None
    return Choice(tokens, last_token, logprobs, sure)
