"""Workloads on kinds of engines: some to learn costs from, others to predict."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from pathlib import Path

from fjx.sim.workload import SimRequest, from_trace, gamma_arrivals, limited

DATA = Path(__file__).resolve().parents[2] / ".." / "shared" / "data"
TRACE = DATA / "traces" / "azure_llm_2023_conv.csv"
LONGEST = 1024
"""Tokens of a request, at most."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A workload on a kind of engine."""

    name: str
    mesh: str = "single"
    policy: str = "off"
    """Of drafting."""
    count: int = 24
    rate: float | None = None
    """Arrivals a second; None: all at once."""
    cv: float = 1.0
    prompt: int = 64
    output: int = 32
    trace: bool = False
    """Arrivals and lengths are those of Azure's conversations of 2023, an eighth as long; prompt,
    output and CV do not count."""

    @property
    def engine(self) -> tuple[str, bool]:
        """Which kind of engine: its mesh, and whether it drafts."""
        return self.mesh, self.policy != "off"

    def workload(self, seed: int, share: float) -> list[SimRequest]:
        """Its requests, with lengths from half to one and a half times the given ones.

        Args:
            seed: Fixes them.
            share: Of the requests.
        """
        source, count = random.Random(seed), max(4, round(self.count * share))
        if self.trace:
            begin = seed * count
            found = from_trace(TRACE, begin + count, rate=self.rate, scale=1 / 8)[begin:]
            since = found[0].arrival
            return limited([replace(e, arrival=e.arrival - since) for e in found], LONGEST)
        arrivals = [0.0] * count
        if self.rate is not None:
            arrivals = gamma_arrivals(count, self.rate, self.cv, seed)
        return [
            SimRequest(at, _around(self.prompt, source), _around(self.output, source))
            for at in arrivals
        ]


CASES = (
    Case(name="one after the other", rate=0.4, count=10),
    Case(name="low rate", rate=1.0),
    Case(name="middle rate", rate=2.5, count=40),
    Case(name="bursts, CV 3", rate=1.5, cv=3.0),
    Case(name="16 at once", count=16, output=64),
    Case(name="48 at once, a queue", count=48),
    Case(name="long prompts", rate=0.5, prompt=400, output=16, count=16),
    Case(name="short prompts, long outputs", rate=0.8, prompt=12, output=96, count=16),
    Case(name="many short requests", rate=6.0, prompt=24, output=8, count=80),
    Case(name="8 at once, long outputs", count=8, prompt=200, output=100),
    Case(name="a real trace", rate=1.5, count=40, trace=True),
    Case(name="two stages", mesh="pipeline-2", rate=1.5),
    Case(name="two stages, 24 at once", mesh="pipeline-2", count=24),
    Case(name="four stages, 16 at once", mesh="pipeline-4", count=16),
    Case(name="drafts of 3, at once", policy="fixed:3", count=4, output=64),
    Case(name="drafts of 3", policy="fixed:3", rate=1.0, count=20),
    Case(name="drafts that pay", policy="marginal", rate=1.0, count=20),
)
CALIBRATION = (
    Case(name="alone", rate=0.5, prompt=90, output=40, count=5),
    Case(name="few", count=3, prompt=150, output=40),
    Case(name="some", count=7, prompt=40, output=40),
    Case(name="all", count=24, prompt=100, output=40),
    Case(name="prompts", rate=2.0, prompt=70, output=2, count=40),
    Case(name="mixed", rate=2.0, prompt=200, output=24, count=24),
)
"""Of other rates, lengths and numbers than any case."""


def _around(length: int, source: random.Random) -> int:
    return max(2, round(length * source.uniform(0.5, 1.5)))
