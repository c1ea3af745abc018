"""Nothing compiles on the request path."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from fjx.engine.start_speculator import _waits_for
from fjx.pipeline.compiler import Compiler
from fjx.sampling_params import SamplingParams
from fjx.scheduling.replica import Replica
from fjx.speculation.policy.lengths import Fixed
from fjx.speculation.runtime.draft_model import DraftModel
from fjx.speculation.runtime.drafter import LookupOrHead, PromptLookup
from fjx.speculation.runtime.speculator import Speculator
from tests.unit.engine.tiny import VOCABULARY, tiny_engine, tokens_alone
from tests.unit.speculation.runtime.draft_cases import head_drafter


def drawn_params(random: np.random.Generator) -> SamplingParams:
    """Any mixture of what a request may ask for."""
    sampled = bool(random.random() < 0.6)
    penalized = bool(random.random() < 0.3)
    return SamplingParams(
        temperature=float(random.choice([0.5, 1.0])) if sampled else 0.0,
        top_k=int(random.choice([0, 0, 5])),
        top_p=float(random.choice([1.0, 0.9])),
        min_p=float(random.choice([0.0, 0.05])),
        repetition_penalty=1.2 if penalized else 1.0,
        presence_penalty=0.5 if penalized else 0.0,
        logit_bias={7: 2.0} if random.random() < 0.1 else {},
        logprobs=int(random.integers(0, 21)) if random.random() < 0.2 else None,
        min_tokens=1 if random.random() < 0.1 else 0,
        n=2 if random.random() < 0.1 else 1,
        seed=int(random.integers(2**62)) if random.random() < 0.5 else None,
        max_tokens=int(random.integers(1, 20)),
    )


@pytest.mark.parametrize("speculates", [False, True])
def test_500_mixed_requests_compile_nothing_after_warm_up(speculates: bool) -> None:
    # of its own: other tests do not warm up
    engine = tiny_engine(num_pages=23, max_draft_rows=16 if speculates else 0, hidden=speculates)
    if speculates:
        drafter = LookupOrHead(PromptLookup(4), head_drafter(engine))
        engine.speculator = Speculator(drafter, Fixed(3), engine.executor.limits.row_buckets)
    engine.executor.compiler.compile_all(progress=False)
    random = np.random.default_rng(0)
    stems = random.integers(0, VOCABULARY, (3, 200))
    aborted = 0
    for i in range(500):
        length = int(random.choice([1, 3, 20, 60, 150], p=[0.2, 0.3, 0.3, 0.15, 0.05]))
        prompt = [*stems[i % 3, : length - 1].tolist(), int(random.integers(VOCABULARY))]
        engine.add(str(i), prompt, drawn_params(random))
        while engine.scheduler.num_waiting > int(random.integers(0, 12)):
            engine.step()
        if random.random() < 0.05:
            aborted += len(engine.abort(str(int(random.integers(0, i + 1)))))
    while engine.has_work:
        engine.step()
    engine.check_idle()
    after = engine.stats()
    engine.executor.compiler.wait_background()
    assert set(after.compiles) <= {"warmup", "background"}
    assert engine.stats().compiles["background"] > 0, "too few steps for the stage programs"
    assert sum(after.requests_finished.values()) >= 500
    assert aborted > 0
    assert after.num_preemptions > 0
    assert after.prefix_cache_hits > 0
    assert not speculates or after.speculation.num_accepted_tokens > 0


def test_one_request_without_warm_up_compiles_only_what_its_steps_need() -> None:
    warm, cold = (
        tiny_engine(max_draft_rows=16, compiler=Compiler(None, on_demand=demand))
        for demand in (False, True)
    )
    warm.executor.compiler.compile_all(progress=False)
    params = SamplingParams(max_tokens=12, temperature=0.0)
    tokens = [tokens_alone(engine, [5, 3, 9, 5, 3], params) for engine in (warm, cold)]
    assert tokens[0] == tokens[1]
    (needed,) = cold.stats().compiles.items()
    assert needed[0] == "on_demand"
    # prompts of 5 rows and steps of 1: two sizes, and neither sampling, edits nor scores
    names = {key[0] for key in cold.executor.compiler._programs}
    assert names == {"embed", "granule", "select", "head", "greedy"}
    assert needed[1] < warm.stats().compiles["warmup"] / 3


def test_steps_that_waited_for_the_compiler_teach_the_cost_model_nothing() -> None:
    engine = tiny_engine(max_draft_rows=16, compiler=Compiler(None, on_demand=True))
    compiler = engine.executor.compiler
    speculator = engine.speculator = Speculator(
        PromptLookup(4),
        Fixed(3),
        engine.executor.limits.row_buckets,
        compiled=lambda: compiler.compiled_in_steps,
    )
    offers: list[float] = []
    speculator._target_cost.offer = lambda rows, context, seconds: offers.append(seconds)  # type: ignore[method-assign]
    reads: list[tuple[int, int]] = []
    """Programs compiled and times offered, after each step that was read."""
    observe = speculator.observe_step

    def read(*arguments: Any) -> None:
        observe(*arguments)
        reads.append((compiler.compiled_in_steps, len(offers)))

    speculator.observe_step = read  # type: ignore[method-assign]
    tokens_alone(engine, [5, 3, 9] * 4, SamplingParams(max_tokens=40, temperature=0.0))
    waited = 0
    for (compiled, offered), (compiled_then, offered_then) in pairwise([(0, 0), *reads]):
        if compiled_then > compiled:
            waited += 1
            assert offered_then == offered
    assert waited > 1
    assert offers, "nothing was learned from the other steps"


def test_drafts_that_waited_for_the_draft_models_programs_teach_nothing_either() -> None:
    target, of_draft = (
        tiny_engine(
            layers=layers,
            max_draft_rows=16 if layers == 4 else 0,
            confidences=layers == 2,
            compiler=Compiler(None, on_demand=True),
        )
        for layers in (4, 2)
    )
    drafter = DraftModel("small", Replica(of_draft.executor, False, frozenset()), 4)
    compiled = _waits_for(target.executor.compiler, drafter)
    buckets = target.executor.limits.row_buckets
    speculator = target.speculator = Speculator(drafter, Fixed(3), buckets, compiled=compiled)
    learned: list[int] = []
    speculator._first_cost.offer = lambda *_: learned.append(compiled())  # type: ignore[method-assign]
    tokens_alone(target, [5, 3, 9], SamplingParams(max_tokens=12, temperature=0.0))
    counts = [e.executor.compiler.compiled_in_steps for e in (target, of_draft)]
    assert compiled() == sum(counts)
    assert min(counts) > 0
    proposals = speculator.stats().num_drafts
    assert len(learned) < proposals, "the first draft waited for the compiler"
