"""Drafts for a target on a cluster: who drafts is in the driver's process; no token changes."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray", reason="Ray is not installed; the extra `cluster` has it")

from benchmarks.local_cluster.workers import pid_of
from fjx.config import EngineConfig
from fjx.engine.start_speculator import remote_speculator
from fjx.speculation.policy.lengths import Fixed
from fjx.speculation.runtime.draft_model import DraftModel
from fjx.speculation.runtime.drafter import Drafter, PromptLookup
from tests.unit.cluster.cluster_cases import cluster_engine, spread
from tests.unit.engine.plan_cases import MIXED, PATIENCE, Ask, Served, expected
from tests.unit.speculation.runtime.draft_cases import LONGEST
from tests.unit.speculation.runtime.test_speculation import draft_replica

pytestmark = pytest.mark.slow

# Two tokens alone are possible, so that what comes has often been there before.
_BIASED = replace(MIXED[1].params, logit_bias={5: 40.0, 6: 40.0})
ASKS = (
    *MIXED[:6],
    Ask((5, 6) * 8, _BIASED),
    Ask((6, 6, 6, 5) * 5, replace(_BIASED, temperature=0)),
)
DRAFTERS: dict[str, Callable[[], Drafter]] = {
    "prompt lookup": lambda: PromptLookup(LONGEST),
    "a small model": lambda: DraftModel("small", draft_replica(2), LONGEST),
    "the target itself": lambda: DraftModel("itself", draft_replica(8), LONGEST),
}


@pytest.mark.parametrize("kind", DRAFTERS)
def test_drafts_change_no_token_when_a_stage_is_killed_or_the_plan_changes(
    nodes: Any, cache: Path, kind: str
) -> None:
    engine, started = cluster_engine(spread(3, 3, 2), cache, max_draft_rows=48)
    speculator = remote_speculator(EngineConfig(), engine.executor.limits, DRAFTERS[kind](), 3)
    speculator.policy, speculator.throttle = Fixed(3), None
    engine.speculator, right = speculator, [expected(ask).tokens for ask in ASKS]
    try:
        served = Served(engine, ASKS)
        served.step(6)
        os.kill(pid_of(started.executors[0].workers[1]), signal.SIGKILL)
        assert [each.tokens for each in served.finish()] == right
        assert len(started.plan_runtime.repairs) == 1
        again = Served(engine, ASKS, "again")
        again.step(4)
        engine.regranularize(spread(5, 3))
        engine.plans.wait(PATIENCE)
        assert [each.tokens for each in again.finish()] == right
        stats = speculator.stats()
        assert stats.num_draft_tokens > 20
        if kind == "the target itself":
            # What edits the logits is not drafted for by the same rule.
            assert stats.num_accepted_tokens > 0.8 * stats.num_draft_tokens
        engine.check_idle()
    finally:
        engine.plans.close("the test ends")
