"""Drafting as one program, and beside a verification: no token changes, and drafts are the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest

from fjx.engine.engine import Engine
from fjx.pipeline.chain import Chain
from fjx.sampling_params import SamplingParams
from fjx.scheduling.request import Request
from fjx.scheduling.scheduler import ScheduledRows
from fjx.speculation.policy.cost import CostModel
from fjx.speculation.policy.lengths import Fixed
from fjx.speculation.runtime.draft_ahead import DraftAhead
from fjx.speculation.runtime.draft_model import DraftModel
from fjx.speculation.runtime.speculator import Speculator
from tests.unit.engine.plan_cases import MIXED, Ask, Served, answers, deep_engine, expected
from tests.unit.speculation.runtime.draft_cases import LONGEST
from tests.unit.speculation.runtime.test_speculation import draft_replica

PLAIN_ASKS = [
    Ask(ask.prompt, replace(ask.params, n=1))
    for ask in MIXED
    if not ask.params.edits_logits and ask.params.logprobs is None
]
"""Those whose drafting can be one program."""


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[Chain]:
    """The chains that were sent."""
    chains: list[Chain] = []
    take = Chain.take

    def noted(self: Chain, results: Any) -> None:
        chains.append(self)
        take(self, results)

    monkeypatch.setattr(Chain, "take", noted)
    return chains


@pytest.fixture
def engine() -> Iterator[Engine]:
    """With the fused program of its only stage."""
    engine = deep_engine(max_draft_rows=48, num_pages=97)
    engine.executor.compiler.compile_background()
    engine.executor.compiler.wait_background()
    yield engine
    engine.speculator = None


def drafting(engine: Engine, layers: int, ahead: Any = "off", length: int = 3) -> Speculator:
    """The engine drafts with a model of so many layers."""
    drafter = DraftModel("model", draft_replica(layers), LONGEST)
    buckets = engine.executor.limits.row_buckets
    engine.speculator = Speculator(drafter, Fixed(length), buckets, ahead=ahead)
    return engine.speculator


def serve(
    engine: Engine,
    layers: int,
    ahead: Any = "off",
    length: int = 3,
    asks: Sequence[Ask] = PLAIN_ASKS,
) -> Speculator:
    """The requests, again and again: programs of combinations are compiled once they were
    wanted."""
    for _ in range(4):
        speculator = drafting(engine, layers, ahead, length)
        for ask, got in zip(asks, answers(engine, asks), strict=True):
            assert got.tokens == expected(ask).tokens
        engine.check_idle()
        for compiler in (engine.executor.compiler, draft_replica(layers).executor.compiler):
            compiler.wait_background()
    return speculator


def test_a_draft_is_one_program(engine: Engine, sent: list[Chain]) -> None:
    """The model that drafts for itself is right in whatever way it runs."""
    stats = serve(engine, 8).stats()
    assert len(sent) > 5
    assert {len(chain.outputs) for chain in sent} >= {3}
    assert stats.num_accepted_tokens == stats.num_draft_tokens > 50


@pytest.mark.parametrize("length", [1, 3])
def test_what_was_drafted_ahead_is_the_next_draft(
    engine: Engine, sent: list[Chain], length: int
) -> None:
    stats = serve(engine, 8, "always", length).stats()
    assert stats.num_accepted_tokens == stats.num_draft_tokens > 50
    assert stats.ahead_steps > 5
    assert stats.drafts_ahead


def test_no_token_changes_where_it_was_wrong(engine: Engine, sent: list[Chain]) -> None:
    stats = serve(engine, 2, "always").stats()
    assert stats.ahead_steps > 10
    assert stats.num_accepted_tokens < stats.num_draft_tokens


def test_nothing_is_drafted_in_turn_while_all_is_right(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    asks = [Ask((5, 6, 7), SamplingParams(temperature=0.0, max_tokens=60))]
    serve(engine, 8, "always", asks=asks)
    speculator = drafting(engine, 8, "always")
    rounds: list[int] = []
    propose = DraftModel.propose

    def noted(self: DraftModel, *given: Any) -> Any:
        drafts = propose(self, *given)
        rounds.append(len(self.rounds.seconds))
        return drafts

    monkeypatch.setattr(DraftModel, "propose", noted)
    Served(engine, asks).finish()
    assert len(rounds) > 3
    assert speculator.stats().ahead_steps == len(rounds)
    assert rounds == [3] + [0] * (len(rounds) - 1)


@pytest.mark.parametrize("breaks", ["begin_ahead", "sent_ahead", "runs_on"])
def test_drafting_ahead_that_fails_is_left_out(
    engine: Engine, breaks: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever half of it was done."""
    serve(engine, 8, "always")
    works, calls = getattr(DraftModel, breaks), [0]

    def fails_later(self: DraftModel, *given: Any) -> Any:
        result = works(self, *given)
        calls[0] += 1
        if calls[0] > 3:
            raise ZeroDivisionError("of drafting ahead")
        return result

    monkeypatch.setattr(DraftModel, breaks, fails_later)
    speculator = drafting(engine, 8, "always")
    for ask, got in zip(PLAIN_ASKS, answers(engine, PLAIN_ASKS), strict=True):
        assert got.tokens == expected(ask).tokens
    assert calls[0] == 4
    ahead = speculator.stats().ahead_steps
    assert engine.speculator in (speculator, None)
    answers(engine, PLAIN_ASKS)
    assert speculator.stats().ahead_steps == ahead
    engine.check_idle()


def test_requests_that_end_or_are_cancelled_meanwhile(engine: Engine) -> None:
    serve(engine, 8, "always")
    drafting(engine, 8, "always")
    served = Served(engine, PLAIN_ASKS)
    served.step(6)
    assert engine.stats().speculation.ahead_steps > 0
    for request_id in engine._unfinished.ids[::2]:
        engine.abort(request_id)
    while engine.has_work:
        engine.step()
    engine.check_idle()


class Fake:
    """Drafts, as far as `DraftAhead` sees."""

    longest = 4

    def __init__(self) -> None:
        self.asked: list[list[int]] = []
        self.there = True
        self.given_up = 0

    def runs_on(self, placement: Any) -> bool:
        return True

    def begin_ahead(self, requests: Any, lengths: Any) -> Any:
        self.asked.append(list(lengths))
        return object()

    def sent_ahead(self) -> None: ...

    def give_up_ahead(self) -> None:
        self.given_up += 1


class Target:
    """An executor, as far as `DraftAhead` sees."""

    def __init__(self, there: bool = True) -> None:
        self.there = there
        self.plan = type("Plan", (), {"microbatches": 1})
        self.pieces = type("Pieces", (), {"shapes": (type("Shape", (), {"placement": 0}),)})

    def overlap_chain(self, batch: Any, chain: Any) -> Any:
        return chain if self.there else None


class Rows8:
    num_rows = 8


def verification(drafted: int, left: int = 100) -> list[ScheduledRows]:
    """A step of one request with a draft."""
    tokens = [1, 2, 3]
    request = Request(
        "a", 3, tokens, SamplingParams(), 0, len(tokens) + drafted + left, 0.0,
        draft=[7] * drafted, computed=3 + drafted,
    )  # fmt: skip
    return [ScheduledRows(request, 2, 1 + drafted, 1 + drafted)]


def known_cost() -> CostModel:
    cost = CostModel((1, 2, 4, 8), padded=True)
    for _ in range(8):
        cost.observe(4, 0, 0.010)
    return cost


def steps_ahead(ahead: DraftAhead, steps: int, seconds: float, drafting: float) -> int:
    """Of so many steps, beside how many something is drafted; they take ``seconds`` then, and the
    drafts behind them take ``drafting`` instead of 0.006."""
    count = 0
    for _ in range(steps):
        rows = verification(3)
        overlapped = ahead.begin(Target(), rows, Rows8())  # type: ignore[arg-type]
        if overlapped is not None:
            count += 1
            ahead.sent()
            assert ahead.observe_step(rows, seconds)
        else:
            assert not ahead.observe_step(rows, 0.010)
        ahead.observe_drafting(0.006, drafting if overlapped is not None else 0.006)
    return count


def test_it_is_done_where_it_hides_more_than_it_costs() -> None:
    ahead = DraftAhead(Fake(), known_cost())
    steps_ahead(ahead, 200, seconds=0.012, drafting=0.001)
    assert ahead.pays
    assert steps_ahead(ahead, 320, seconds=0.012, drafting=0.001) in range(300, 320)
    assert ahead.hidden_seconds > 2 * ahead.slowdown_seconds > 0


def test_it_is_hardly_done_where_it_costs_more() -> None:
    ahead = DraftAhead(Fake(), known_cost())
    steps_ahead(ahead, 2000, seconds=0.014, drafting=0.005)
    assert not ahead.pays
    assert steps_ahead(ahead, 2000, seconds=0.014, drafting=0.005) < 10


@pytest.mark.parametrize(
    ("drafted", "left", "asked"),
    [(3, 100, 4), (9, 100, 5), (3, 4, 3), (3, 2, None), (0, 100, None)],
    ids=["as last", "the longest", "to the end", "nothing left", "nothing drafted"],
)
def test_how_much_is_drafted_ahead(drafted: int, left: int, asked: int | None) -> None:
    fake = Fake()
    ahead = DraftAhead(fake, known_cost(), always=True)
    ahead.begin(Target(), verification(drafted, left), Rows8())  # type: ignore[arg-type]
    assert fake.asked == ([] if asked is None else [[asked]])


def test_it_is_given_up_while_there_is_no_program_of_both() -> None:
    fake = Fake()
    ahead = DraftAhead(fake, known_cost(), always=True)
    target: Any = Target(there=False)
    assert ahead.begin(target, verification(3), Rows8()) is None  # type: ignore[arg-type]
    assert fake.given_up == 1
    assert ahead.steps == 0
