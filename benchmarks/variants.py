"""Who speculates in benchmarks/speculation.py: policies, and ours with a part taken away."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from fjx.engine.engine import Engine
from fjx.scheduling.microbatches import Microbatch, MicrobatchGroup
from fjx.scheduling.request import Request
from fjx.speculation.policy.frontiers import FrontierDepth
from fjx.speculation.policy.lengths import LengthPolicy, MarginalGain, Off, policy_by_name
from fjx.speculation.runtime.drafter import ContinueDrafting, Draft, Drafter, LookupOrHead
from fjx.speculation.runtime.speculator import Speculator

PLAIN = "plain"
OURS = "marginal"
PRUNING = "with pruning"
FIXED = tuple(f"fixed:{k}" for k in (1, 2, 3, 5))
POLICIES = (PLAIN, *FIXED, "batch", "confidence", "faser", OURS)


class AlwaysDeepest(FrontierDepth):
    """As many steps as may be are under way."""

    @property
    def depth(self) -> int:
        """See `FrontierDepth`."""
        return self.deepest


@dataclass(frozen=True)
class _WithoutRests(MarginalGain):
    weighs_plain: ClassVar[bool] = False


class Wrapper:
    """A drafter with something changed."""

    def __init__(self, drafter: Drafter) -> None:
        self.drafter = drafter

    def __getattr__(self, name: str) -> Any:
        return getattr(self.drafter, name)


class NeverStops(Wrapper):
    """It drafts as much as it was asked to."""

    stops = False

    def propose(
        self, requests: Sequence[Request], lengths: Sequence[int], _: ContinueDrafting
    ) -> list[Draft]:
        """See `Drafter`."""
        return self.drafter.propose(requests, lengths, lambda _: True)


class Plain(Speculator):
    """It never drafts, and steps overlap; the drafter learns what is read and what is not."""

    def __init__(self, drafter: Drafter, buckets: Sequence[int], *, reads: bool) -> None:
        super().__init__(drafter, Off(), buckets)
        self._take = drafter.feed if reads else drafter.miss

    def due(self, groups: Sequence[MicrobatchGroup]) -> bool:
        """Never."""
        return False

    def sent(self, step: Sequence[Microbatch]) -> None:
        """See `Speculator`."""
        for microbatch in step:
            self._take(microbatch)

    def observe_step(self, *_: Any) -> None:
        """Nothing is learned."""


@dataclass(frozen=True)
class Variant:
    """A way to speculate."""

    policy: LengthPolicy
    lookup: bool = True
    head: bool = True
    stops: bool = True
    """Whether the head stops where another token does not pay."""
    frontiers: int = 1
    """Most steps with drafts under way at once."""
    prunes: bool = False
    ahead: bool = False
    """Whether a draft model drafts while a step verifies, where that pays; never on a CPU."""
    always: bool = False
    """Whether frontiers are sent and tokens pruned even where that does not pay."""


_OURS = Variant(MarginalGain(), frontiers=4, ahead=True)
ABLATIONS = {
    "without head": replace(_OURS, head=False),
    "without prompt lookup": replace(_OURS, lookup=False),
    "without stopping": replace(_OURS, stops=False),
    "without rests": replace(_OURS, policy=_WithoutRests()),
    "without frontiers": replace(_OURS, frontiers=1),
    "without drafting ahead": replace(_OURS, ahead=False),
    PRUNING: replace(_OURS, prunes=True),
}


def variants_of(names: Sequence[str]) -> dict[str, Variant | None]:
    """The variants of these policies' and ablations' names; None: plain decoding."""
    known = {PLAIN: None, OURS: _OURS, **ABLATIONS}
    return {name: known[name] if name in known else Variant(policy_by_name(name)) for name in names}


class Lineup:
    """The variants on one engine, each with a speculator of its own, which learns from run to run.

    They share the engine's drafter, or its parts.
    """

    def __init__(
        self,
        engine: Engine,
        variants: Mapping[str, Variant | None],
        wrapped: Callable[[Drafter], Drafter] = lambda drafter: drafter,
    ) -> None:
        """``wrapped``: what drafts in the place of a drafter."""
        assert engine.speculator is not None
        self._engine, self._own = engine, engine.speculator
        self._wrapped = wrapped
        self._speculators = {name: self._speculator(each) for name, each in variants.items()}

    def use(self, name: str) -> AbstractContextManager[None]:
        """Let a variant speculate."""
        return self._use(self._speculators[name])

    def read_along(self) -> AbstractContextManager[None]:
        """Decode plainly while the drafter reads, so that it knows the prompts."""
        return self._use(self._plain(reads=True))

    @contextmanager
    def _use(self, speculator: Speculator) -> Iterator[None]:
        self._engine.speculator = speculator
        try:
            yield
        finally:
            self._engine.speculator = self._own

    def _speculator(self, variant: Variant | None) -> Speculator:
        if variant is None:
            return self._plain(reads=False)
        executor, pruning = self._engine.executor, self._own.pruning
        depth = AlwaysDeepest if variant.always else FrontierDepth
        return Speculator(
            self._wrapped(self._drafter(variant)),
            variant.policy,
            executor.limits.row_buckets,
            depth(variant.frontiers, len(executor.plan.stages)),
            pruning.lens if variant.prunes and pruning is not None else None,
            variant.always,
            ("always" if variant.always else "auto") if variant.ahead else "off",
        )

    def _plain(self, *, reads: bool) -> Plain:
        return Plain(self._own.drafter, self._engine.executor.limits.row_buckets, reads=reads)

    def _drafter(self, variant: Variant) -> Drafter:
        drafter = self._own.drafter
        if not isinstance(drafter, LookupOrHead):
            return drafter
        if not variant.head:
            return drafter.lookup
        head = drafter.head if variant.stops else NeverStops(drafter.head)
        return LookupOrHead(drafter.lookup, head) if variant.lookup else head
