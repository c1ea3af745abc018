"""Acceptance from a record, as benchmarks/speculation.py replays it."""

from __future__ import annotations

import importlib
import random
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from fjx.engine.engine import Engine
from fjx.speculation.policy.lengths import Fixed
from fjx.speculation.runtime.speculator import Speculator
from tests.unit.engine.plan_cases import MIXED, answers, deep_engine, expected
from tests.unit.speculation.runtime.test_speculation import Guesses

BENCHMARKS = Path(__file__).resolve().parents[3] / "benchmarks"


@pytest.fixture
def replay(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("replay")


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = deep_engine(max_draft_rows=48)
    yield engine
    engine.speculator = None


@cache
def right_answers() -> list[list[int]]:
    return [expected(ask).tokens for ask in MIXED]


def served(engine: Engine, drafter: Any) -> tuple[int, int]:
    """Drafted and accepted tokens of all requests, with the tokens of plain decoding."""
    engine.speculator = Speculator(drafter, Fixed(4), engine.executor.limits.row_buckets)
    for got, right in zip(answers(engine, MIXED), right_answers(), strict=True):
        assert got.tokens == right
    stats = engine.speculator.stats()
    return stats.num_draft_tokens, stats.num_accepted_tokens


def test_a_replay_accepts_what_the_recorded_drafts_were_right_in(
    replay: Any, engine: Engine, tmp_path: Path
) -> None:
    known = {f"{i}": tokens for i, tokens in enumerate(right_answers())}
    recorder = replay.Recorder(Guesses(random.Random(0), 0.3))
    recorder.drafter.known = known
    recorded = served(engine, recorder)
    path = tmp_path / "recording.json"
    replay.write_recording(path, recorder.recording(right_answers()))
    drafter = Guesses(random.Random(1), 1.0)
    drafter.known = known
    assert served(engine, drafter)[1] < recorded[1] / 4
    replayed = replay.Replayed(drafter, right_answers(), replay.read_recording(path))
    drafted, accepted = served(engine, replayed)
    assert accepted / drafted == pytest.approx(recorded[1] / recorded[0], abs=0.05)
    assert accepted > 50


def test_another_text_gets_the_recorded_acceptance(replay: Any, engine: Engine) -> None:
    drafter = Guesses(random.Random(1), 1.0)
    drafter.known = {f"{i}": tokens for i, tokens in enumerate(right_answers())}
    recording = [[replay.RecordedDraft((0.9, 0.8, 0.7, 0.6), right) for right in (4, 0)]]
    drafted, accepted = served(engine, replay.Replayed(drafter, right_answers(), recording))
    assert 0.4 < accepted / drafted < 0.6
