"""Plans, requests and what they must give, for the tests of stages and of changes of plan.

All engines here are of one model of eight layers, each a granule of its own, and every step is
padded to one size: few programs, and all engines of one type share them.
"""

from __future__ import annotations

import dataclasses
import gc
import threading
from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import jax

from fjx.engine.engine import Engine
from fjx.kernels.matmul import Quantization
from fjx.outputs import PositionLogprobs, SwitchRecord
from fjx.pipeline import background
from fjx.pipeline.compiler import Compiler
from fjx.sampling_params import SamplingParams
from fjx.scheduling.request import Request
from fjx.sharding.plan.plan import Deployment, Plan, Stage
from tests.unit.engine.tiny import VOCABULARY, cpus, staged, tiny_engine

NEAR_TIE = 1e-3
"""Largest difference of two logits that another order of sums may turn round."""
PATIENCE = 120.0
"""Seconds after which preparing a change of plan counts as hanging."""

GREEDY = SamplingParams(temperature=0, max_tokens=48, ignore_eos=True)
SAMPLED = SamplingParams(temperature=0.8, top_p=0.9, seed=7, max_tokens=48, ignore_eos=True)
PENALIZED = SamplingParams(
    temperature=0.8,
    top_p=0.9,
    seed=8,
    repetition_penalty=1.3,
    presence_penalty=0.4,
    frequency_penalty=0.2,
    max_tokens=48,
    ignore_eos=True,
)
SCORED = SamplingParams(temperature=0.8, top_k=20, seed=9, logprobs=3, max_tokens=16)
MASKED = SamplingParams(
    temperature=1.5,
    seed=10,
    max_tokens=24,
    min_tokens=12,
    allowed_token_ids=tuple(range(0, VOCABULARY, 48)),
    bad_words=tuple(chr(0x4E00 + 48 * i) + chr(0x4E00 + 48 * (i + 1)) for i in range(6)),
    prompt_logprobs=2,
)


class Ask(NamedTuple):
    """A request of a test."""

    prompt: tuple[int, ...]
    params: SamplingParams


class Answer(NamedTuple):
    """What it brought."""

    tokens: list[int]
    logprobs: list[PositionLogprobs]
    prompt_logprobs: list[PositionLogprobs | None]


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
            (45, MASKED),
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


PLAIN_TARGETS: dict[str, Any] = {
    "1 stage": even(1),
    "2 stages": 2,
    "3 stages, 2 microbatches": dataclasses.replace(
        shared((3, (0,)), (3, (4,)), (2, (2,))), microbatches=2
    ),
    "4 stages": 4,
    "4 stages, 1 replica": even(4),
    "8 stages": 8,
    "another device": even(1, first_device=5),
    "2 replicas": Deployment((even(1), even(2, first_device=3))),
    "2 replicas, the other way round": Deployment((even(2, first_device=3), even(1))),
    "one device for all": shared((3, (1,)), (3, (0,)), (2, (1,)), microbatches=3),
}
"""Plans to change to, without tensor parallelism: there every token stays the same."""


TENSOR_TARGETS: dict[str, Any] = {
    "1 stage": even(1),
    "tensor 2": staged((8, (0, 1))),
    "the other way round": staged((8, (1, 0))),
    "pipeline 2, tensor 2": staged((3, (4, 0)), (5, (1, 2)), microbatches=2),
    "tensor 1, then tensor 2": staged((4, (1,)), (4, (2, 3))),
    "tensor 2 and a replica": Deployment((staged((8, (0, 1))), even(2, first_device=2))),
}
"""With tensor parallelism: another degree splits every piece anew."""


@cache
def programs(
    dtype: str, kv_heads: int, quantization: Quantization | None, **sizes: Any
) -> Compiler:
    """The programs of all engines of one type and sizes."""
    # Tests wait for what is compiled in the background; where others use the machine, a thread of
    # low priority would hardly get on.
    background._NICENESS = 0
    return Compiler(cache_dir=None)


def deep_engine(
    *replicas: Plan,
    dtype: str = "float32",
    kv_heads: int = 2,
    num_pages: int = 65,
    max_draft_rows: int = 0,
    hidden: bool = False,
    quantization: Quantization | None = None,
    **more: Any,
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
        compiler=programs(
            dtype,
            kv_heads,
            quantization,
            num_pages=num_pages,
            max_draft_rows=max_draft_rows,
            hidden=hidden,
        ),
        max_draft_rows=max_draft_rows,
        hidden=hidden,
        quantization=quantization,
        **more,
    )


@cache
def changing() -> Engine:
    """An engine with the programs of one and of two stages."""
    engine = deep_engine(num_pages=33)
    for target in (2, 1):
        change(engine, target)
    return engine


class Served:
    """Requests that an engine serves side by side, and what they have brought."""

    def __init__(self, engine: Engine, asks: Sequence[Ask], name: str = "") -> None:
        self.engine = engine
        self.answers = [Answer([], [], []) for _ in asks]
        self._answer_of: dict[Request, Answer] = {}
        for number, (ask, answer) in enumerate(zip(asks, self.answers, strict=True)):
            (request,) = engine.add(f"{name}{number}", list(ask.prompt), ask.params)
            self._answer_of[request] = answer

    def step(self, count: int = 1) -> None:
        """Run some steps."""
        for _ in range(count):
            for progress in self.engine.step():
                answer = self._answer_of[progress.request]
                answer.tokens.extend(progress.token_ids)
                answer.logprobs.extend(progress.logprobs or [])
                answer.prompt_logprobs[:] = progress.request.prompt_logprobs or []

    def finish(self) -> list[Answer]:
        """Step until nothing is left."""
        while self.engine.has_work:
            self.step()
        return self.answers


def answers(engine: Engine, asks: Sequence[Ask]) -> list[Answer]:
    """What requests give that are served side by side."""
    return Served(engine, asks).finish()


@cache
def _expected(prompt: tuple[int, ...], params: str, **model: Any) -> Answer:
    engine = deep_engine(**model, overlap=False, enable_prefix_caching=False)
    (answer,) = answers(engine, [Ask(prompt, _PARAMS[params])])
    engine.check_idle()
    return answer


_PARAMS: dict[str, SamplingParams] = {}


def expected(
    ask: Ask,
    dtype: str = "float32",
    kv_heads: int = 2,
    quantization: Quantization | None = None,
) -> Answer:
    """What the request gives alone, on one device, one step after the other, without a prefix
    cache."""
    _PARAMS[repr(ask.params)] = ask.params  # parameters have no hash
    return _expected(
        ask.prompt, repr(ask.params), dtype=dtype, kv_heads=kv_heads, quantization=quantization
    )


def is_near_tie(
    ask: Ask,
    tokens: Sequence[int],
    kv_heads: int = 2,
    quantization: Quantization | None = None,
) -> bool:
    """Whether the first token that differs is one of two that are nearly equally likely.

    Raises:
        AssertionError: it is not.
    """
    right = expected(ask, kv_heads=kv_heads, quantization=quantization)
    for token, other, at in zip(tokens, right.tokens, right.logprobs, strict=False):
        if token != other:
            best, second = (each.logprob for each in at.top[:2])
            assert best - second < NEAR_TIE, f"{token} instead of {other}"
            return True
    return False


def finish_change(engine: Engine) -> SwitchRecord:
    """Step until the change of plan has ended."""
    while engine.plans.active:
        engine.step()
        engine.plans.wait(0.002)
    last = engine.plans.status().last
    assert last is not None
    return last


def serve_through(
    engine: Engine, asks: Sequence[Ask], targets: Sequence[Any], steps_apart: int = 3
) -> tuple[list[Answer], list[SwitchRecord]]:
    """Serve requests side by side, and change the plan meanwhile: what is prepared in the
    background is waited for, so that the requests are still there when pages are copied."""
    served = Served(engine, asks)
    records = []
    for target in targets:
        served.step(steps_apart)
        engine.regranularize(target)
        engine.plans.wait(PATIENCE)
        while engine.plans.active:
            served.step()
        last = engine.plans.status().last
        assert last is not None
        assert last.state == "done", last.error
        records.append(last)
    return served.finish(), records


def change(engine: Engine, target: Any) -> SwitchRecord:
    """Change the plan of an engine; it must succeed."""
    engine.regranularize(target)
    record = finish_change(engine)
    assert record.state == "done", record.error
    return record


def live_bytes() -> dict[str, int]:
    """Bytes of all arrays on each device."""
    gc.collect()
    # An array of several devices and its parts are different objects of the same memory.
    sizes = {
        (str(shard.device), shard.data.unsafe_buffer_pointer()): shard.data.nbytes
        for array in jax.live_arrays()
        if not array.is_deleted()
        for shard in array.addressable_shards
    }
    held: Counter[str] = Counter()
    for (device, _), size in sizes.items():
        held[device] += size
    return dict(held)


def change_threads() -> list[str]:
    """Threads of changes of plan that still run."""
    return [each.name for each in threading.enumerate() if "regranularize" in each.name]
