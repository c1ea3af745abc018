"""Time of deciding what many requests draft and verify.

    python benchmarks/allocation.py --output FILE.json

Draws rounds at random: how likely each request's drafted tokens are, and costs that are a staircase
over the rows of a step. Times the allocation alone, for drafting that is free and drafting that has
its cost, and all that the policy `marginal` decides in a round of a draft head: whether to draft a
second token, and what is verified. Prints milliseconds.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from report import about_this_run, write

from fjx.bench.metrics import distribution
from fjx.pipeline.buckets import row_buckets
from fjx.speculation.policy.acceptance import AcceptanceModel
from fjx.speculation.policy.allocation import allocate
from fjx.speculation.policy.cost import CostModel
from fjx.speculation.policy.lengths import MarginalGain
from fjx.speculation.policy.view import RequestView, RoundView

_MAX_ROWS = 4096
_CONTEXT = 101
"""Tokens of each request."""


def main() -> None:
    """Measure and print."""
    options = parse_options()
    draw, seconds = np.random.default_rng(options.seed), defaultdict[str, list[float]](list)
    for _ in range(options.rounds):
        view, confidences = a_round(draw, options.requests, options.draft_length)
        for name, decide in decisions(view, confidences).items():
            gc.collect(0)
            begun = time.perf_counter()
            decide()
            seconds[name].append(time.perf_counter() - begun)
    figures = {name: distribution(name, each, (50, 99)) for name, each in seconds.items()}
    asked = {name: getattr(options, name) for name in ("requests", "draft_length", "rounds")}
    write(options.output, {"about": about_this_run(), **asked, "figures": figures})
    print(json.dumps(figures, indent=2))


def a_round(
    draw: np.random.Generator, requests: int, draft_length: int
) -> tuple[RoundView, list[list[float]]]:
    """A round on a device whose steps take twice as long with ``requests`` more rows."""
    buckets = row_buckets(_MAX_ROWS)
    target, drafting = CostModel(buckets, padded=True), CostModel(buckets)
    for rows in buckets * 3:
        target.observe(rows, 0, 0.01 * (1 + rows / requests))
        drafting.observe(rows, 0, 0.0005 * (1 + rows / requests))
    view = RoundView(
        requests=tuple(RequestView(key, draft_length, _CONTEXT) for key in range(requests)),
        other_rows=0,
        max_rows=_MAX_ROWS - requests,
        acceptance=AcceptanceModel(),
        target_cost=target,
        draft_cost=drafting,
        first_cost=drafting,
        stops=True,
    )
    return view, draw.uniform(0.2, 1.0, (requests, draft_length)).tolist()


def decisions(view: RoundView, confidences: list[list[float]]) -> dict[str, Callable[[], Any]]:
    """What is timed."""
    survivals = [np.cumprod(each).tolist() for each in confidences]
    first = [each[:1] for each in confidences]
    policy, anew = MarginalGain(), (replace(view), replace(view))
    verify_seconds, draft_seconds = view.verify_seconds, view.draft_seconds

    def allocation(drafting: Any) -> Callable[[], Any]:
        return lambda: allocate(
            survivals,
            view.max_rows,
            verify_seconds,
            drafting,
            base_rows=view.base_rows,
            base_tokens=view.base_rows,
        )

    return {
        "allocation": allocation(None),
        "allocation_with_drafting": allocation(draft_seconds),
        "another_token": lambda: policy.continue_drafting(anew[0], first),
        "verified_tokens": lambda: policy.verify_lengths(anew[1], confidences),
    }


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add: Callable[..., Any] = parser.add_argument
    add("--requests", type=int, default=256)
    add("--draft-length", type=int, default=8)
    add("--rounds", type=int, default=500)
    add("--seed", type=int, default=0)
    add("--output", type=Path, help="also write the result to this file")
    return parser.parse_args()


if __name__ == "__main__":
    main()
