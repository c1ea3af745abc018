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


def begin_decoding(engine: Engine, seed: int) -> Streams:
    """Give the engine new requests, and step until all have their context and some tokens."""
    engine.abort_all()
    while engine.has_work:
        engine.step()
    streams, source = Streams(), random.Random(seed)
    params = SamplingParams(temperature=0.0, max_tokens=None, ignore_eos=True)
    for i in range(RUNNING):
        engine.add(f"decoding-{seed}-{i}", list(random_tokens(CONTEXT, source)), params)
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
