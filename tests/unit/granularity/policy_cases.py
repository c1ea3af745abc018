"""Ladders and observations for the tests of the granularity policy."""

from __future__ import annotations

from hypothesis import strategies as st

from fjx.granularity.arrivals import WindowFigures
from fjx.granularity.ladder import Ladder, Rung
from fjx.granularity.observation import Observation
from fjx.sharding.plan.plan import Deployment, Device, Mesh, Plan, Stage

GRANULES = 16


def deployment(stages: int) -> Deployment:
    """Equal stages on devices of their own."""
    part = GRANULES // stages
    return Deployment(
        (
            Plan(
                tuple(
                    Stage(range(i * part, (i + 1) * part), Mesh((Device("a", "gpu", i),)))
                    for i in range(stages)
                ),
                microbatches=stages,
            ),
        )
    )


def rung(stages: int, **figures: float) -> Rung:
    """A pipeline whose figures grow with its stages, but for those that are given."""
    values = {
        "tokens_per_second": 1000.0 * stages,
        "latency_seconds": 0.040 + 0.002 * stages,
        "kv_tokens": 10_000 * stages,
        "devices": stages,
        "best_cv": 1.0 if stages == 1 else 3.0 * stages**2,
    }
    return Rung(name=f"pipeline-{stages}", deployment=deployment(stages), **(values | figures))


GIGABYTE = 10**9
NAMES = ("pipeline-1", "pipeline-2", "pipeline-4")
LADDER = Ladder(
    (rung(1), rung(2), rung(4)),
    {(a, b): 2 * GIGABYTE for a in NAMES for b in NAMES if a != b},
)


def see(now: float = 0.0, serving: str | None = "pipeline-1", **figures: object) -> Observation:
    """An observation of a service with 100 tokens a request, quiet but for what is given.

    ``rate`` and ``cv`` are those of its only window.
    """
    window = WindowFigures(60.0, 100, figures.pop("rate", 0.0), figures.pop("cv", None))  # type: ignore[arg-type]
    values = {"tokens_per_request": 100.0, "windows": (window,)} | figures
    return Observation(now=now, serving=serving, **values)  # type: ignore[arg-type]


def positive(least: float, most: float) -> st.SearchStrategy[float]:
    return st.floats(least, most, allow_nan=False, allow_infinity=False)


@st.composite
def ladders(draw: st.DrawFn) -> Ladder:
    """Ladders of any figures: finer rungs need not be better in anything."""
    stages = sorted(draw(st.sets(st.sampled_from([1, 2, 4, 8]), min_size=2)))
    return Ladder(
        tuple(
            rung(
                each,
                tokens_per_second=draw(positive(1, 1e5)),
                latency_seconds=draw(positive(1e-3, 2)),
                kv_tokens=draw(st.integers(100, 10**6)),
                best_cv=draw(positive(0, 50)),
            )
            for each in stages
        )
    )


@st.composite
def observations(draw: st.DrawFn, ladder: Ladder) -> Observation:
    """What an engine may report on one of a ladder's rungs."""
    optional = st.none() | positive(0, 10)
    windows = []
    for seconds in (10.0, 60.0, 300.0):
        cv = draw(st.none() | positive(0, 20))
        windows.append(
            WindowFigures(seconds, draw(st.integers(0, 1000)), draw(positive(0, 50)), cv)
        )
    return Observation(
        now=draw(positive(0, 1e6)),
        serving=draw(st.sampled_from([each.name for each in ladder.rungs])),
        windows=tuple(windows),
        queue_depth=draw(st.integers(0, 100)),
        running=draw(st.integers(0, 64)),
        kv_usage=draw(positive(0, 1)),
        step_seconds=draw(positive(0, 1)),
        ttft_seconds=draw(optional),
        itl_seconds=draw(optional),
        preemptions=draw(st.integers(0, 5)),
        tokens_per_request=draw(st.none() | positive(1, 5000)),
    )
