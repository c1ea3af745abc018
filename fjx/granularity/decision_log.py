"""The decision log: why the policy did what it did, and the proof that it would do so again.

The log is lines of JSON. The first has the ladder, the configuration and the policy's state; each
further one an observation and the decision that followed. The policy is a pure function, so these
lines determine every decision: `replay` makes them again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, fields
from typing import Any

from fjx.errors import UserError
from fjx.granularity.arrivals import WindowFigures
from fjx.granularity.ladder import Ladder, Rung
from fjx.granularity.observation import Observation
from fjx.granularity.policy import Backoff, Decision, PolicyConfig, PolicyState, Streak, decide
from fjx.granularity.rung_scorers import FlexPipeRungScorer, ServiceScorer
from fjx.sharding.plan.plan_json import deployment_from_json, deployment_to_json
from fjx.wording import listed

VERSION = 1
"""Of the format."""

SCORERS: Mapping[str, type[Any]] = {each.name: each for each in (FlexPipeRungScorer, ServiceScorer)}
"""Scorers by the name that the log has."""


def header_to_json(
    ladder: Ladder, config: PolicyConfig, state: PolicyState | None = None
) -> dict[str, Any]:
    """The first line of a log, as values for `json.dumps`.

    Args:
        ladder: The rungs.
        config: How it is decided. Its scorer is a dataclass with a name.
        state: Of the decision before the log's first one; None: there is none.
    """
    scorer: Any = config.scorer
    return {
        "version": VERSION,
        "ladder": {
            "rungs": [_rung_to_json(rung) for rung in ladder.rungs],
            "switch_bytes": [[a, b, size] for (a, b), size in ladder.switch_bytes.items()],
        },
        "config": _shallow(config) | {"scorer": {"name": scorer.name, **asdict(scorer)}},
        "state": asdict(state or PolicyState()),
    }


def decision_to_json(decision: Decision, observation: Observation) -> dict[str, Any]:
    """Any further line of a log, as values for `json.dumps`."""
    return {"observation": asdict(observation), "decision": asdict(decision)}


def replay(
    lines: Iterable[str], scorers: Mapping[str, type[Any]] = SCORERS
) -> Iterator[tuple[Decision, Decision]]:
    """Decide again what a log has recorded.

    The state runs on from decision to decision as they are made again, not as they were recorded.
    So where the two first differ, that line is wrong, or another version of the policy wrote it.

    Args:
        lines: Of the log.
        scorers: By name, for a log of other scorers than these two.

    Yields:
        The recorded decision and the one that is made again, for the second line and each further
        one.

    Raises:
        UserError: a line is not of the format; the message has its number.
    """
    numbered = enumerate(lines, start=1)
    with _at_line(1):
        ladder, config, state = _header(json.loads(next(numbered, (1, ""))[1]), scorers)
    for number, line in numbered:
        with _at_line(number):
            values = json.loads(line)
            observation = _observation(values["observation"])
            recorded = _decision(values["decision"])
            recomputed = decide(observation, state, ladder, config)
        yield recorded, recomputed
        state = recomputed.state


@contextmanager
def _at_line(number: int) -> Iterator[None]:
    """Say in which line of the log an error is."""
    try:
        yield
    except KeyError as error:
        raise UserError(f"decision log, line {number}: lacks the key {error}") from error
    except (AttributeError, TypeError, ValueError, UserError) as error:
        raise UserError(f"decision log, line {number}: {error}") from error


def _header(
    values: Any, scorers: Mapping[str, type[Any]]
) -> tuple[Ladder, PolicyConfig, PolicyState]:
    if values["version"] != VERSION:
        raise UserError(f"the format is version {values['version']!r}, expected {VERSION}")
    ladder = Ladder(
        tuple(_rung(each) for each in values["ladder"]["rungs"]),
        {(a, b): size for a, b, size in values["ladder"]["switch_bytes"]},
    )
    scorer = dict(values["config"]["scorer"])
    name = scorer.pop("name")
    if name not in scorers:
        raise UserError(f"the scorer {name!r} is not known; known are {listed(scorers)}")
    config = PolicyConfig(**values["config"] | {"scorer": scorers[name](**scorer)})
    return ladder, config, _state(values["state"])


def _rung_to_json(rung: Rung) -> dict[str, Any]:
    return _shallow(rung) | {"deployment": deployment_to_json(rung.deployment)}


def _rung(values: Any) -> Rung:
    return Rung(**values | {"deployment": deployment_from_json(values["deployment"])})


def _observation(values: Any) -> Observation:
    windows = tuple(WindowFigures(**each) for each in values["windows"])
    return Observation(**values | {"windows": windows})


def _decision(values: Any) -> Decision:
    return Decision(**values | {"state": _state(values["state"])})


def _state(values: Any) -> PolicyState:
    streaks = tuple(Streak(**each) for each in values["streaks"])
    backoffs = tuple(Backoff(**each) for each in values["backoffs"])
    return PolicyState(**values | {"streaks": streaks, "backoffs": backoffs})


def _shallow(value: Any) -> dict[str, Any]:
    """The fields of a dataclass as they are."""
    return {field.name: getattr(value, field.name) for field in fields(value)}
