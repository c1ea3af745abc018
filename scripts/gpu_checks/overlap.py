"""Drafting beside a verification, in one program."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from fjx.kernels import mosaic
from fjx.pipeline.overlap import STREAM_OPTIONS, overlap

from .attention import paged, paged_arguments
from .models import MODELS, Load
from .timing import seconds_of

_MODEL, _LOAD = MODELS["Llama 3.1 8B"], Load(64, 8, 4096)
_DRAFT_LAYERS, _DRAFT_WIDTH, _DRAFT_MLP = 24, 1024, 8192


def lowered() -> Iterator[tuple[str, Callable[[], object]]]:
    """The program of both."""
    both = overlap(partial(paged, _MODEL), draft)
    verified = jax.eval_shape(partial(paged_arguments, _MODEL, _LOAD))
    drafted = jax.eval_shape(draft_arguments)
    yield "drafting beside a verification", partial(mosaic.lowers, both, verified, drafted)


def checks() -> dict[str, Callable[[], Any]]:
    """How much of the drafting hides."""
    return {"shares": shares}


def shares() -> Iterator[dict[str, Any]]:
    """What both cost alone and together, by the multiprocessors that the verification's attention
    may use."""
    verified = paged_arguments(_MODEL, _LOAD)
    drafted = draft_arguments()
    drafting = seconds_of(jax.jit(draft), drafted)
    for blocks in (132, 110, 88, 66, 44):
        verify = partial(paged, _MODEL, blocks=blocks)
        alone = seconds_of(jax.jit(verify), verified)
        run = jax.jit(overlap(verify, draft), compiler_options=STREAM_OPTIONS)
        both = seconds_of(run, (verified, drafted))
        yield {
            "blocks": blocks,
            "verification_microseconds": 1e6 * alone,
            "drafting_microseconds": 1e6 * drafting,
            "both_microseconds": 1e6 * both,
            "hidden_share_of_drafting": (alone + drafting - both) / drafting,
        }


def draft_arguments() -> tuple[Any, ...]:
    """Of `draft`."""
    keys = jax.random.split(jax.random.key(1), _DRAFT_LAYERS)
    shape = (_DRAFT_WIDTH, _DRAFT_MLP)
    weights = [0.03 * jax.random.normal(key, shape, jnp.bfloat16) for key in keys]
    return jnp.ones((64, _DRAFT_WIDTH), jnp.bfloat16), weights


def draft(x: Any, weights: list[Any]) -> Any:
    """About what a step of a small draft model multiplies."""
    for each in weights:
        x = x + jax.nn.silu(x @ each) @ each.T
    return x
