"""From the log alone, the same decisions come out again."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fjx.errors import UserError
from fjx.granularity.decision_log import SCORERS, decision_to_json, header_to_json, replay
from fjx.granularity.ladder import Ladder
from fjx.granularity.observation import Observation
from fjx.granularity.policy import Decision, PolicyConfig, PolicyState, decide
from fjx.granularity.rung_scorers import FlexPipeRungScorer, ServiceScorer
from tests.unit.granularity.policy_cases import LADDER, ladders, observations, see

QUICK = PolicyConfig(hold_observations=1, finer_hold_seconds=0.0, coarser_hold_seconds=0.0)


def written(
    seen: Iterable[Observation],
    ladder: Ladder = LADDER,
    config: PolicyConfig = QUICK,
    state: PolicyState | None = None,
) -> tuple[list[str], list[Decision]]:
    """A log as its writer writes it, and the decisions in it."""
    lines, decisions = [json.dumps(header_to_json(ladder, config, state))], []
    state = state or PolicyState()
    for observation in seen:
        decisions.append(decide(observation, state, ladder, config))
        lines.append(json.dumps(decision_to_json(decisions[-1], observation)))
        state = decisions[-1].state
    return lines, decisions


def eventful() -> list[Observation]:
    """Changes that are done, aborted, and someone else's."""
    plans = ["pipeline-1"] * 3 + ["pipeline-2"] * 80 + ["pipeline-4"] * 80 + [None] * 3
    return [
        see(now=2.5 * i, serving=plan, switching=i % 7 == 1, rate=0.3 * (i % 60), cv=0.1 * i)
        for i, plan in enumerate(plans)
    ]


def tampered(line: str, *path: Any, value: Any) -> str:
    values = json.loads(line)
    place = values
    for key in path[:-1]:
        place = place[key]
    assert place[path[-1]] != value
    place[path[-1]] = value
    return json.dumps(values)


def differing(lines: list[str]) -> list[int]:
    """Numbers of the lines whose decisions do not come out again."""
    pairs = enumerate(replay(lines), start=2)
    return [number for number, (recorded, again) in pairs if recorded != again]


@given(st.data())
@settings(max_examples=40)
def test_replaying_random_observations_gives_exactly_the_recorded_decisions(
    data: st.DataObject,
) -> None:
    ladder = data.draw(ladders())
    seen = data.draw(st.lists(observations(ladder), min_size=1, max_size=15))
    scorer = data.draw(st.sampled_from([ServiceScorer(), FlexPipeRungScorer(sigma=0.3)]))
    lines, decisions = written(seen, ladder, replace(QUICK, scorer=scorer))
    replayed = list(replay(lines))
    assert [recorded for recorded, _ in replayed] == decisions
    assert [again for _, again in replayed] == decisions


def test_an_eventful_log_replays_with_every_kind_of_state() -> None:
    lines, decisions = written(eventful(), config=replace(QUICK, finer_hold_seconds=5.0))
    assert differing(lines) == []
    assert any(each.target for each in decisions)
    assert any(each.state.streaks for each in decisions)
    assert any(each.state.backoffs for each in decisions)
    assert {each.reason for each in decisions} >= {"switching", "cooling_down", "off_ladder"}


def test_a_log_may_begin_in_the_middle() -> None:
    seen = eventful()
    _, decisions = written(seen)
    lines, later = written(seen[50:], state=decisions[49].state)
    assert later == decisions[50:]
    assert differing(lines) == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("decision", "target"), "pipeline-4"),
        (("decision", "reason"), "load"),
        (("decision", "scores", "pipeline-2"), 0.5),
        (("decision", "terms", "pipeline-1", "room"), 0.5),
        (("decision", "state", "cooling_until"), 1e9),
        (("observation", "kv_usage"), 0.99),
        (("observation", "queue_depth"), 1000),
        (("observation", "windows", 0, "rate"), 99.0),
    ],
)
def test_a_tampered_line_is_found(path: tuple[Any, ...], value: Any) -> None:
    calm = [see(now=float(i), rate=1.0) for i in range(5)]
    lines, _ = written(calm, config=PolicyConfig())
    lines[3] = tampered(lines[3], *path, value=value)
    assert differing(lines)[0] == 4


def test_a_tampered_configuration_is_found() -> None:
    calm = [see(now=float(i), rate=8.0, cv=2.0) for i in range(5)]
    lines, _ = written(calm)
    lines[0] = tampered(lines[0], "config", "scorer", "ttft_objective_seconds", value=0.1)
    assert differing(lines) == [2, 3, 4, 5, 6]


@dataclass(frozen=True)
class Contrarian(ServiceScorer):
    """Somebody's own scorer."""

    name: ClassVar[str] = "contrarian"

    def score(self, rung: Any, observation: Observation, ladder: Ladder) -> float:
        return 1 - super().score(rung, observation, ladder)


def test_a_scorer_of_ones_own_replays_if_replay_is_told_of_it() -> None:
    lines, _ = written(eventful(), config=replace(QUICK, scorer=Contrarian()))
    with pytest.raises(
        UserError, match="'contrarian' is not known; known are flexpipe and service"
    ):
        list(replay(lines))
    scorers = dict(SCORERS) | {"contrarian": Contrarian}
    assert all(recorded == again for recorded, again in replay(lines, scorers))


@pytest.mark.parametrize(
    ("number", "line", "message"),
    [
        (1, "", "decision log, line 1: "),
        (1, "{}", "decision log, line 1: lacks the key 'version'"),
        (1, '{"version": 2}', "decision log, line 1: the format is version 2, expected 1"),
        (3, '{"observation": {', "decision log, line 3: "),
        (3, '{"decision": {}}', "decision log, line 3: lacks the key 'observation'"),
        (3, "[]", "decision log, line 3: "),
    ],
)
def test_a_line_that_is_not_of_the_format_is_named(number: int, line: str, message: str) -> None:
    lines, _ = written(see(now=float(i)) for i in range(5))
    lines[number - 1] = line
    with pytest.raises(UserError, match=f"^{message}"):
        list(replay(lines))


def test_a_number_out_of_its_range_is_named() -> None:
    lines, _ = written([see()])
    lines[1] = tampered(lines[1], "observation", "kv_usage", value=2.0)
    with pytest.raises(UserError, match="line 2: observation: kv_usage must be a finite number"):
        list(replay(lines))


def test_an_empty_log_is_an_error() -> None:
    with pytest.raises(UserError, match="decision log, line 1"):
        list(replay([]))
