"""Plans, requests and what they must give, for the tests of stages and of changes of plan.

All engines here are of one model of eight layers, each a granule of its own, and every step is
padded to one size: few programs, and all engines of one type share them.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import jax

from fjx.engine.engine import Engine, Progress
from fjx.outputs import PositionLogprobs, SwitchRecord
from fjx.pipeline.compiler import Compiler
from fjx.sampling_params import SamplingParams
from fjx.sharding.plan import Deployment, Plan, Stage
from tests.unit.engine.tiny import VOCABULARY, cpus, tiny_engine

GREEDY = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)
SAMPLED = SamplingParams(temperature=0.8, top_p=0.9, seed=7, max_tokens=24, ignore_eos=True)
PENALIZED = SamplingParams(
    temperature=0.8,
    top_p=0.9,
    seed=8,
    repetition_penalty=1.3,
    presence_penalty=0.4,
    frequency_penalty=0.2,
    max_tokens=24,
    ignore_eos=True,
)
SCORED = SamplingParams(temperature=0.8, top_k=20, seed=9, logprobs=3, max_tokens=16)


class Ask(NamedTuple):
    """A request of a test."""

    prompt: tuple[int, ...]
    params: SamplingParams


class Answer(NamedTuple):
    """What it brought."""

    tokens: list[int]
    logprobs: list[PositionLogprobs]


def _prompt(stem: int, length: int) -> tuple[int, ...]:
    return tuple((stem * 41 + 13 * i) % VOCABULARY for i in range(length))


MIXED = tuple(
    Ask(_prompt(number % 3, length), params)
    for number, (length, params) in enumerate(
        [
            (3, GREEDY),
            (50, SAMPLED),
            (17, PENALIZED),
            (40, SCORED),
            (1, SAMPLED),
            (33, GREEDY),
            (70, PENALIZED),
            (16, SCORED),
        ]
    )
)
"""Requests of every kind, short and long, some with a common beginning."""


def shared(*stages: tuple[int, tuple[int, ...]], microbatches: int = 1) -> Plan:
    """Like `staged`, where stages may have devices in common."""
    begin, made = 0, []
    for count, indices in stages:
        made.append(Stage(range(begin, begin + count), cpus(*indices)))
        begin += count
    return Plan(tuple(made), microbatches, shared_devices=True)


def even(stages: int, microbatches: int = 1, first_device: int = 0, tensor: int = 1) -> Plan:
    """The eight granules in equal stages, on devices one after the other."""
    runs = [
        (8 // stages, tuple(range(first_device + i * tensor, first_device + (i + 1) * tensor)))
        for i in range(stages)
    ]
    return shared(*runs, microbatches=microbatches)


@cache
def programs(dtype: str, kv_heads: int, **sizes: Any) -> Compiler:
    """The programs of all engines of one type and sizes."""
    return Compiler(cache_dir=None)


def deep_engine(
    *replicas: Plan, dtype: str = "float32", kv_heads: int = 2, num_pages: int = 65, **more: Any
) -> Engine:
    """An engine that serves by these plans; by default all on the first device."""
    return tiny_engine(
        dtype,
        num_pages=num_pages,
        one_bucket=True,
        granule_layers=1,
        layers=8,
        kv_heads=kv_heads,
        deployment=Deployment(replicas or (even(1),)),
        compiler=programs(dtype, kv_heads, num_pages=num_pages),
        **more,
    )


def answers(engine: Engine, asks: Sequence[Ask], between: Any = None) -> list[Answer]:
    """Serve requests side by side; ``between`` is called after each step."""
    found = [Answer([], []) for _ in asks]
    numbers = {}
    for number, ask in enumerate(asks):
        (request,) = engine.add(str(number), list(ask.prompt), ask.params)
        numbers[request] = number
    while engine.has_work:
        for each in engine.step():
            take(found[numbers[each.request]], each)
        if between is not None:
            between()
    return found


def take(answer: Answer, progress: Progress) -> None:
    """Add what a step brought."""
    answer.tokens.extend(progress.token_ids)
    answer.logprobs.extend(progress.logprobs or [])


@cache
def _expected(dtype: str, kv_heads: int, prompt: tuple[int, ...], params: str) -> Answer:
    engine = deep_engine(dtype=dtype, kv_heads=kv_heads, overlap=False, enable_prefix_caching=False)
    (answer,) = answers(engine, [Ask(prompt, _PARAMS[params])])
    engine.check_idle()
    return answer


_PARAMS: dict[str, SamplingParams] = {}


def expected(ask: Ask, dtype: str = "float32", kv_heads: int = 2) -> Answer:
    """What the request gives alone, on one device, one step after the other, without a prefix
    cache."""
    _PARAMS[repr(ask.params)] = ask.params  # parameters have no hash
    return _expected(dtype, kv_heads, ask.prompt, repr(ask.params))


def finish_change(engine: Engine) -> SwitchRecord:
    """Step until the change of plan has ended."""
    while engine.plans.active:
        engine.step()
        engine.plans.wait(0.002)
    last = engine.plans.status().last
    assert last is not None
    return last


def change(engine: Engine, target: Any) -> SwitchRecord:
    """Change the plan of an engine; it must succeed."""
    engine.regranularize(target)
    record = finish_change(engine)
    assert record.state == "done", record.error
    return record


def live_bytes() -> dict[str, int]:
    """Bytes of all arrays on each device."""
    gc.collect()
    held: dict[str, int] = {}
    for array in jax.live_arrays():
        for shard in array.addressable_shards:
            held[str(shard.device)] = held.get(str(shard.device), 0) + shard.data.nbytes
    gc.collect()
    return held


def change_threads() -> list[str]:
    """Threads of changes of plan that still run."""
    return [each.name for each in threading.enumerate() if "regranularize" in each.name]
