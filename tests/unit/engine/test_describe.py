"""What the log says of an engine, and of its changes of plan."""

from __future__ import annotations

import logging

import pytest

from fjx.engine.change_log import ChangeLog
from fjx.engine.describe import engine_lines, kv_bytes
from fjx.outputs import SwitchRecord
from fjx.sampling_params import SamplingParams
from fjx.sharding.costs.table import deployment_line
from fjx.sharding.plan.plan import Deployment
from fjx.speculation.policy.lengths import Fixed
from fjx.speculation.runtime.drafter import PromptLookup
from fjx.speculation.runtime.speculator import Speculator
from tests.unit.engine.tiny import cpus, staged, tiny_engine, tokens_alone


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.name.startswith("fjx.")]


def test_an_engine_is_described_by_model_memory_drafter_and_plan() -> None:
    engine = tiny_engine(max_draft_rows=16, num_pages=65)
    pages = [granule.kv_pages.nbytes for granule in engine.executor.pieces.granules]
    assert kv_bytes(engine.executor.programs) == sum(pages)
    model, memory, drafter, plan = engine_lines(engine)
    assert model == ("model: smollm2-135m (llama, 4 layers) in float32, context of 256 tokens")
    assert memory.startswith("KV memory: 1,024 tokens, ")
    assert memory.endswith("MiB; steps of up to 8 requests and 32 tokens")
    assert drafter == "drafter: off"
    assert plan == "plan: 1 stage (cpu:0)"
    buckets = engine.executor.limits.row_buckets
    engine.speculator = Speculator(PromptLookup(4), Fixed(3), buckets)
    try:
        assert list(engine_lines(engine))[2] == "drafter: ngram, up to 4 tokens, policy fixed:3"
    finally:
        engine.speculator = None


def test_a_deployment_fits_into_a_line() -> None:
    plan = staged((2, (0, 1)), (2, (2,)), microbatches=2)
    assert deployment_line(Deployment((plan,))) == "2 stages (cpu:0-1 -> cpu:2), 2 microbatches"
    replicas = Deployment((staged((4, (0,))), staged((4, (1,)))))
    assert deployment_line(replicas) == "2 replicas: 1 stage (cpu:0); 1 stage (cpu:1)"
    long = Deployment((staged(*((1, (i,)) for i in range(40))),))
    assert deployment_line(long).startswith("40 stages (cpu:0 -> cpu:1 -> ")
    assert deployment_line(long).endswith(" -> ... -> cpu:39)")
    assert cpus(0).devices[0].index == 0


def test_a_change_of_plan_says_from_what_to_what_and_what_it_took(
    caplog: pytest.LogCaptureFixture,
) -> None:
    engine = tiny_engine(num_pages=33)
    two = Deployment((staged((1, (0,)), (1, (1,))),))
    with caplog.at_level(logging.INFO, logger="fjx"):
        engine.regranularize(two, "request")
        while engine.plans.active:
            engine.step()
            engine.plans.wait(0.005)
        tokens_alone(engine, [1, 2, 3], SamplingParams(max_tokens=3))
    begins, *_, done = messages(caplog)
    assert begins == (
        "change of plan 1 begins (request): from 1 stage (cpu:0) to 2 stages (cpu:0 -> cpu:1)"
    )
    assert done.startswith("change of plan 1 done in ")
    assert "iB moved, a pause of " in done
    assert done.endswith("; now 2 stages (cpu:0 -> cpu:1)")


def test_a_change_that_lasts_says_how_far_it_is(caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    log = ChangeLog(lambda: now)
    one, two = Deployment((staged((4, (0,))),)), Deployment((staged((2, (0,)), (2, (1,))),))
    record = SwitchRecord(
        3, "request", one, two, "copying", 0.25, planned_bytes=4 << 30, parameter_bytes=1 << 30
    )
    with caplog.at_level(logging.INFO, logger="fjx"):
        log.begun(record)
        assert not log.is_due
        now = 6.0
        assert log.is_due
        log.progress(record)
        assert not log.is_due
        now = 15.0
        assert not log.is_due  # the longer it lasts, the more seldom it is told
        now = 17.0
        assert log.is_due
        log.begun(record)
        now = 23.0
        assert log.is_due
    assert messages(caplog)[1] == "change of plan 3: copying, 25%, 1 GiB of 4 GiB moved"
