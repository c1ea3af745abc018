"""A step that belongs to no request: what two plans must agree on before one follows the other."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, NamedTuple

import jax
import numpy as np

from fjx.errors import RegranularizationError
from fjx.pipeline.batch import StepLayout
from fjx.pipeline.compiler import Compiler
from fjx.pipeline.placed_model import PlacedModel
from fjx.pipeline.programs import Programs

_TOLERANCE = 0.02
"""Largest difference of what two plans give. Another tensor degree sums in another order."""

Probe = Generator[None, None, np.ndarray]
"""A probe under way: it yields until it gives what is compared."""


class Probed(NamedTuple):
    """What a probe gives."""

    name: str
    relative: bool
    """Whether a difference counts relative to the largest value."""


LOGITS = Probed("logits", relative=True)
LOG_PROBABILITIES = Probed("log-probabilities", relative=False)


def run_probe(programs: Programs, compiler: Compiler, pieces: PlacedModel) -> Probe:
    """Run two tokens through all pieces.

    It sends one granule after another and yields in between, so that it can be spread over the gaps
    between steps. It writes page 0 alone, which is never handed out. Only the thread that
    dispatches steps may run it.

    Returns:
        The logits after the second token, [V].
    """
    limits = programs.limits
    layout = limits.layout(limits.row_buckets[0])
    T, packed = layout.rows, two_tokens(layout)
    x: Any = np.zeros(limits.max_num_seqs + 1, np.int32)  # what the embedding takes: no last tokens
    step: Any = None
    for shape in pieces.shapes:
        at = shape.placement
        x = jax.device_put(x, at.whole)
        if shape.first:
            x, step = compiler.get(("embed", T, at.key))(pieces.embed.params, x, packed)
        else:
            step = compiler.get(("step", T, at.key))(packed)
        for index in shape.granules:
            granule = pieces.granules[index]
            program = compiler.get(("granule", granule.depth, T, at.key))
            x, granule.kv_pages = program([*granule.arrays, x, granule.kv_pages, step])
            yield
    last = pieces.shapes[-1].placement.key
    x, _ = compiler.get(("select", T, last))(x, step)
    head = compiler.get(("head", limits.sample_buckets[0], last))
    logits = head(pieces.head.params, x)
    yield
    first: np.ndarray = np.asarray(logits)[0]
    return first


def compare(probed: Probed, number: int, expected: np.ndarray, got: np.ndarray) -> None:
    """Check what a replica of the new plan gave for the probe.

    Raises:
        RegranularizationError: the new plan does not compute what the old one does.
    """
    if not np.isfinite(got).all():
        raise RegranularizationError(
            f"replica {number} of the new plan gave {probed.name} that are not finite in its test "
            "step"
        )
    limit = _TOLERANCE * (float(np.abs(expected).max()) if probed.relative else 1.0)
    off = float(np.abs(got - expected).max())
    if off > limit:
        raise RegranularizationError(
            f"replica {number} of the new plan gave other {probed.name} in its test step: off by "
            f"{off:.3g}, at most {limit:.3g} is expected"
        )


def two_tokens(layout: StepLayout) -> np.ndarray:
    """The integers of a step with two tokens of no request, which write page 0."""
    packed = np.zeros(layout.size, np.int32)
    step = layout.split(packed)
    step.tokens[:2] = 0, 1
    step.token_slot[:] = -1
    step.rows.positions[:2] = 0, 1
    step.rows.request_of[2:] = -1
    step.rows.query_start[1:] = 2
    step.rows.context_len[0] = 2
    step.sample_rows[:] = 1
    step.sample_slots[:] = layout.slots
    return packed
