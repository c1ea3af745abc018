"""Sixteen requests that decode, which the measurements of pauses begin with."""

from __future__ import annotations

import random

import numpy as np
from elastic.loop import Gap, Streams

from fjx.bench.datasets import random_tokens
from fjx.engine.engine import Engine
from fjx.sampling_params import SamplingParams

RUNNING, CONTEXT = 16, 512
STEADY_STEPS = 40
_PROMPT_SEED = 0


def begin_decoding(engine: Engine) -> Streams:
    """Give the engine the requests anew, and step until all of them decode.

    Their prompts are always the same and are computed once for a single token: then they are in the
    prefix cache, and all requests begin to decode within a few steps, at about the same length.
    """
    engine.abort_all()
    for max_tokens in (1, None):
        while engine.has_work:
            engine.step()
        source, streams = random.Random(_PROMPT_SEED), Streams()
        params = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
        for i in range(RUNNING):
            engine.add(f"decoding-{i}", list(random_tokens(CONTEXT, source)), params)
    while len(streams.tokens) < RUNNING:
        streams.step(engine)
    for _ in range(3):  # the first steps still have a last chunk of prefill behind them
        streams.step(engine)
    return streams


def steady_gaps(engine: Engine, streams: Streams, steps: int = STEADY_STEPS) -> list[float]:
    """The inter-token gaps of so many steps, seconds."""
    begin = last_stamp(streams)
    for _ in range(steps):
        streams.step(engine)
    check_all_decode(streams)
    return [gap.seconds for gap in streams.gaps(begin)]


def last_stamp(streams: Streams) -> float:
    """When the last token came."""
    return max(stamps[-1] for stamps in streams.stamps.values())


def largest(gaps: list[Gap]) -> Gap:
    """The one that took longest."""
    return max(gaps, key=lambda gap: gap.seconds)


def check_all_decode(streams: Streams) -> None:
    """
    Raises:
        SystemExit: a request has ended, so that what is measured is no longer what it should be.
    """
    if streams.ended:
        raise SystemExit(
            f"{len(streams.ended)} of {RUNNING} requests reached the end of their context while "
            "they were measured; give the engine a longer max_model_len"
        )


def dispersion(values: list[float]) -> dict[str, float | list[float]]:
    """Median, extremes, and every value."""
    return {
        "median": float(np.median(values)),
        "min": min(values),
        "max": max(values),
        "values": values,
    }
