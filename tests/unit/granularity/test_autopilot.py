"""The engine changes its plan by itself, and what it decided can be replayed."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from fjx.config import EngineConfig
from fjx.engine.engine import Engine
from fjx.errors import MemoryFitError, MeshError, UserError
from fjx.granularity.autopilot import Autopilot, start_autopilot
from fjx.granularity.decision_log import replay
from fjx.granularity.ladder import Ladder, ladder_from_graph
from fjx.granularity.policy import PolicyConfig
from fjx.granularity.rung_scorers import ServiceScorer
from fjx.regranularization import plan_runtime
from fjx.sampling_params import SamplingParams
from tests.unit.engine.tiny import run, tiny_engine, tokens_alone

PARAMS = SamplingParams(temperature=0.8, seed=3, max_tokens=40, ignore_eos=True)
TOKENS_PER_SECOND = {"single": 50.0, "pipeline-2": 5000.0}
"""What the test says of plans that are in truth equally fast: both run on one processor."""
IMPATIENT = PolicyConfig(
    scorer=ServiceScorer(itl_objective_seconds=10.0),
    hold_observations=1,
    finer_hold_seconds=0.0,
    coarser_hold_seconds=0.0,
    cooldown_seconds=0.0,
    aborted_cooldown_seconds=0.0,
)


def engine_with_pilot(clock: Callable[[], float], log: Path | None = None) -> Engine:
    engine = tiny_engine(layers=8, granule_layers=1, num_pages=131, clock=clock)
    planner = engine.plans.planner
    ladder = ladder_from_graph(
        planner.graph,
        {name: planner.plan(name) for name in ("single", "pipeline-2")},
        planner.workload,
        planner.topology,
    )
    rungs = (replace(r, tokens_per_second=TOKENS_PER_SECOND[r.name]) for r in ladder.rungs)
    ladder = Ladder(tuple(rungs), ladder.switch_bytes)
    engine.autopilot = Autopilot(ladder, IMPATIENT, log, now=0.0)
    return engine


def stages(engine: Engine) -> int:
    return engine.plans.deployment.replicas[0].granularity


def test_a_queue_makes_the_pipeline_finer_and_quiet_makes_it_coarse_again(
    tmp_path: Path,
) -> None:
    log = tmp_path / "decisions.jsonl"
    now = 1000.0
    engine = engine_with_pilot(lambda: now, log)
    prompts = [[7, 8, 9 + i] for i in range(40)]
    requests = [engine.add(str(i), prompt, PARAMS)[0] for i, prompt in enumerate(prompts)]
    seen = []
    for _ in range(2000):
        now += 2.0
        engine.step()
        engine.plans.wait(0.05)
        seen.append(stages(engine))
        if not engine.has_work and not engine.plans.active and 2 in seen and seen[-1] == 1:
            break
    assert sorted(set(seen)) == [1, 2]
    assert seen[-1] == 1
    done = engine.stats().plan
    assert done.switches == {"done": 2}
    assert done.decisions["quiet"] == 1
    assert {"queue", "load", "burst", "latency"}.intersection(done.decisions)
    for prompt, request in zip(prompts[:5], requests, strict=False):
        assert request.tokens[3:] == tokens_alone(tiny_engine(layers=8), prompt, PARAMS)
    decisions = list(replay(log.read_text().splitlines()))
    assert len(decisions) > 20
    assert all(recorded == recomputed for recorded, recomputed in decisions)


def test_a_change_that_is_refused_is_logged_and_the_engine_serves_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = 1000.0
    engine = engine_with_pilot(lambda: now)

    def refuse(*_: object) -> None:
        raise MemoryFitError("both plans need more than there is")

    monkeypatch.setattr(plan_runtime, "check_fits", refuse)
    requests = [engine.add(str(i), [5, 6, i], PARAMS)[0] for i in range(30)]
    with caplog.at_level(logging.WARNING):
        while engine.has_work:
            now += 2.0
            engine.step()
    run(engine)
    assert stages(engine) == 1
    assert any("both plans need more" in record.getMessage() for record in caplog.records)
    assert all(request.finish_reason == "length" for request in requests)


def test_without_a_ladder_nothing_decides() -> None:
    planner = tiny_engine(layers=8, granule_layers=1).plans.planner
    assert start_autopilot(EngineConfig(), planner, 0.0) is None


def test_a_ladder_and_its_log_must_be_usable(tmp_path: Path) -> None:
    planner = tiny_engine(layers=8, granule_layers=1).plans.planner
    with pytest.raises(MeshError, match="there is no mesh 'pipelin-2'"):
        start_autopilot(EngineConfig(plan_ladder=("pipelin-2",)), planner, 0.0)
    log = tmp_path / "no folder" / "log.jsonl"
    with pytest.raises(UserError, match=r"decision_log: cannot write .* is missing"):
        EngineConfig(plan_ladder=("pipeline-2",), decision_log=log)
    log.parent.mkdir()
    config = EngineConfig(plan_ladder=("pipeline-2",), decision_log=log)
    log.parent.rmdir()
    with pytest.raises(UserError, match="cannot write the decision log"):
        start_autopilot(config, planner, 0.0)
    with pytest.raises(UserError, match="name them with plan_ladder"):
        EngineConfig(decision_log=tmp_path / "log.jsonl")


def test_the_current_mesh_is_part_of_the_ladder() -> None:
    planner = tiny_engine(layers=8, granule_layers=1).plans.planner
    config = EngineConfig(plan_ladder=("pipeline-4", "pipeline-2"))
    pilot = start_autopilot(config, planner, 0.0)
    assert pilot is not None
    assert [rung.name for rung in pilot.ladder.rungs] == ["single", "pipeline-2", "pipeline-4"]
