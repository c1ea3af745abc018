"""Prometheus metrics: vLLM's names under ``fjx:``, so that its dashboards work unchanged."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from fjx import EngineStats, PlanStats, RequestOutput, SpeculationStats

TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1,
                 0.15, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0, 40.0)  # fmt: skip
"""Bucket bounds of the time between two tokens: fine where a person notices the difference."""
REQUEST_SECONDS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.15, 0.25, 0.5, 0.75, 1.0, 1.5,
                   2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0)  # fmt: skip
"""Bucket bounds of a request's phases, from an idle server's queue to an overloaded one's."""
TOKEN_COUNTS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000,
                100_000, 200_000)  # fmt: skip
"""Bucket bounds of prompt and output lengths, in tokens."""
PAUSE_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Bucket bounds of the pause of a change of plan: a token's time is the aim, seconds a failure."""
DRAFT_LENGTHS = (0, 1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 24, 32, 48, 64)
"""Bucket bounds of draft lengths, in tokens: each length that is usual."""

FINISH_REASONS = ("stop", "length", "abort", "error")
COMPILE_PLACES = ("warmup", "background", "on_demand", "hot_path")
SWITCH_OUTCOMES = ("done", "aborted")
SWITCH_STATES = ("planned", "compiling", "copying", "switching")
MOVED_KINDS = ("parameters", "kv", "dirty")

_LABELS = ["model_name"]


class Metrics:
    """The server's registry: the engine's counters, read at each scrape, and latency histograms."""

    def __init__(self, model_name: str, stats: Callable[[], EngineStats]) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_EngineCollector(model_name, stats))

        def histogram(name: str, text: str, buckets: Iterable[float]) -> Histogram:
            family = Histogram(
                f"fjx:{name}", text, _LABELS, registry=self.registry, buckets=tuple(buckets)
            )
            return family.labels(model_name)

        def seconds(name: str, text: str) -> Histogram:
            return histogram(name, text, REQUEST_SECONDS)

        self.time_to_first_token = seconds(
            "time_to_first_token_seconds", "From arrival to the first token."
        )
        self.inter_token_latency = histogram(
            "inter_token_latency_seconds", "From one token to the next.", TOKEN_SECONDS
        )
        self.e2e_latency = seconds("e2e_request_latency_seconds", "From arrival to the last token.")
        self.queue_time = seconds("request_queue_time_seconds", "From arrival to the first step.")
        self.prefill_time = seconds(
            "request_prefill_time_seconds", "From the first step to the first token."
        )
        self.decode_time = seconds(
            "request_decode_time_seconds", "From the first token to the last."
        )
        self.inference_time = seconds(
            "request_inference_time_seconds", "From the first step to the last token."
        )
        self.prompt_tokens = histogram("request_prompt_tokens", "Tokens of a prompt.", TOKEN_COUNTS)
        self.generation_tokens = histogram(
            "request_generation_tokens", "Tokens generated for a prompt.", TOKEN_COUNTS
        )

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self.registry)


class RequestMeter:
    """Follows one request's outputs and reports its latencies."""

    def __init__(self, metrics: Metrics, arrival: float) -> None:
        self._metrics = metrics
        self._arrival = arrival
        self._last: dict[int, float] = {}
        self.first_token: float | None = None
        """Seconds from arrival to the first token; None before it."""
        self.generated = 0

    @property
    def elapsed(self) -> float:
        """Seconds since arrival."""
        return time.monotonic() - self._arrival

    def observe(self, output: RequestOutput) -> None:
        """Take what is new of the request."""
        now = time.monotonic()
        for completion in output.outputs:
            if completion.token_ids:
                self._observe_tokens(completion.index, len(completion.token_ids), now)
        if output.finished:
            self._observe_finished(output, now)

    def _observe_tokens(self, index: int, count: int, now: float) -> None:
        if self.first_token is None:
            self.first_token = now - self._arrival
            self._metrics.time_to_first_token.observe(self.first_token)
        if index in self._last:
            # Tokens that come together share the time since the ones before.
            for _ in range(count):
                self._metrics.inter_token_latency.observe((now - self._last[index]) / count)
        self._last[index] = now
        self.generated += count

    def _observe_finished(self, output: RequestOutput, now: float) -> None:
        metrics = self._metrics
        metrics.prompt_tokens.observe(len(output.prompt_token_ids))
        metrics.generation_tokens.observe(self.generated)
        metrics.e2e_latency.observe(now - self._arrival)
        timing = output.timing
        if timing is None or timing.scheduled is None:
            return
        metrics.queue_time.observe(timing.scheduled - timing.arrival)
        if timing.first_token is None or timing.finished is None:
            return
        metrics.prefill_time.observe(timing.first_token - timing.scheduled)
        metrics.decode_time.observe(timing.finished - timing.first_token)
        metrics.inference_time.observe(timing.finished - timing.scheduled)


class _Families:
    """Makes metric families of one sample, or of one for each value of a second label."""

    def __init__(self, model_name: str) -> None:
        self._model_name = model_name

    def gauge(self, name: str, text: str, value: float) -> Metric:
        """A number that rises and falls."""
        family = GaugeMetricFamily(f"fjx:{name}", text, labels=_LABELS)
        family.add_metric([self._model_name], value)
        return family

    def gauges(self, name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
        """A gauge for each value of ``label`` that there is now."""
        family = GaugeMetricFamily(f"fjx:{name}", text, labels=[*_LABELS, label])
        for key, value in values.items():
            family.add_metric([self._model_name, key], value)
        return family

    def counter(self, name: str, text: str, value: float) -> Metric:
        """A number that only rises."""
        family = CounterMetricFamily(f"fjx:{name}", text, labels=_LABELS)
        family.add_metric([self._model_name], value)
        return family

    def counters(
        self,
        name: str,
        text: str,
        label: str,
        known: Iterable[str],
        values: Mapping[str, float],
    ) -> Metric:
        """A counter for each value of ``label``; the known ones are there from the beginning."""
        family = CounterMetricFamily(f"fjx:{name}", text, labels=[*_LABELS, label])
        for key, value in {**dict.fromkeys(known, 0), **values}.items():
            family.add_metric([self._model_name, key], value)
        return family

    def histogram(
        self,
        name: str,
        text: str,
        bounds: Sequence[float],
        counts: Mapping[int, int] | Mapping[float, int],
    ) -> Metric:
        """A histogram of all values since the start, given how often each was seen."""
        family = HistogramMetricFamily(f"fjx:{name}", text, labels=_LABELS)

        def up_to(bound: float) -> float:
            return float(sum(count for value, count in counts.items() if value <= bound))

        buckets = [(str(float(bound)), up_to(bound)) for bound in bounds]
        buckets.append(("+Inf", up_to(float("inf"))))
        total = sum(value * count for value, count in counts.items())
        family.add_metric([self._model_name], buckets, total)
        return family


class _EngineCollector(Collector):
    """Turns a snapshot of the engine into metrics."""

    def __init__(self, model_name: str, stats: Callable[[], EngineStats]) -> None:
        self._families = _Families(model_name)
        self._stats = stats

    def collect(self) -> Iterable[Metric]:
        """The metrics, from a fresh snapshot."""
        stats = self._stats()
        yield from _request_metrics(self._families, stats)
        yield from _plan_metrics(self._families, stats.plan)
        if stats.speculation is not None:
            yield from _speculation_metrics(self._families, stats.speculation)


def _request_metrics(make: _Families, stats: EngineStats) -> Iterable[Metric]:
    yield make.gauge("num_requests_running", "Requests in the batch.", stats.num_requests_running)
    yield make.gauge("num_requests_waiting", "Requests in the queue.", stats.num_requests_waiting)
    yield make.gauge(
        "kv_cache_usage_perc", "Share of KV pages in use, 0 to 1.", stats.kv_cache_usage
    )
    yield make.counter(
        "prefix_cache_queries", "Prompt tokens looked up.", stats.prefix_cache_queries
    )
    yield make.counter("prefix_cache_hits", "Prompt tokens found.", stats.prefix_cache_hits)
    yield make.counter("prompt_tokens", "Prompt tokens computed or found.", stats.prompt_tokens)
    yield make.counter("generation_tokens", "Tokens generated.", stats.generation_tokens)
    yield make.counter("num_preemptions", "Requests put back to waiting.", stats.num_preemptions)
    yield make.counters(
        "request_success",
        "Finished requests.",
        "finished_reason",
        FINISH_REASONS,
        stats.requests_finished,
    )
    yield make.counters(
        "compile",
        "Compiled programs; on the hot path there must be none.",
        "where",
        COMPILE_PLACES,
        stats.compiles,
    )


def _plan_metrics(make: _Families, plan: PlanStats) -> Iterable[Metric]:
    yield make.gauge("plan_stages", "Stages of the first replica.", plan.stages)
    yield make.gauge("plan_devices", "Devices in use.", plan.devices)
    yield make.gauge("plan_replicas", "Replicas of the model.", plan.replicas)
    yield make.counters(
        "regranularizations",
        "Changes of the plan that ended.",
        "outcome",
        SWITCH_OUTCOMES,
        plan.switches,
    )
    yield make.counters(
        "regranularization_seconds",
        "Time that changes of the plan spent in each state.",
        "state",
        SWITCH_STATES,
        plan.switch_seconds,
    )
    yield make.counters(
        "regranularization_bytes",
        "Bytes that crossed between devices.",
        "kind",
        MOVED_KINDS,
        plan.moved_bytes,
    )
    yield make.gauge(
        "regranularization_dirty_pages",
        "KV pages that wait to be copied again.",
        plan.dirty_pages,
    )
    yield make.histogram(
        "regranularization_pause_seconds",
        "From the last step of a plan to the first of the next.",
        PAUSE_SECONDS,
        Counter(plan.pauses),
    )
    yield make.counters(
        "granularity_decisions",
        "Decisions of the granularity policy.",
        "reason",
        (),
        plan.decisions,
    )
    yield make.gauges(
        "plan_slow_stages",
        "How many times as long as usual each of a cluster's workers takes that is slow now.",
        "stage",
        plan.slow,
    )
    yield make.gauge(
        "plan_replaced_in_vain",
        "Replacements in a row of lost stages that failed, or were lost before they had served.",
        plan.replaced_in_vain,
    )


def _speculation_metrics(make: _Families, stats: SpeculationStats) -> Iterable[Metric]:
    yield make.counter("spec_decode_num_drafts", "Drafts that were verified.", stats.num_drafts)
    yield make.counter(
        "spec_decode_num_draft_tokens",
        "Drafted tokens that were verified.",
        stats.num_draft_tokens,
    )
    yield make.counter(
        "spec_decode_num_accepted_tokens",
        "Drafted tokens that were the requests' own.",
        stats.num_accepted_tokens,
    )
    yield make.counters(
        "spec_decode_num_accepted_tokens_per_pos",
        "Accepted tokens by their place in the draft, from 0.",
        "position",
        (),
        {str(place): count for place, count in enumerate(stats.accepted_per_position)},
    )
    yield make.counter(
        "spec_decode_num_trimmed_tokens",
        "Tokens that were drafted and, by the policy, not verified.",
        stats.num_trimmed_tokens,
    )
    yield make.counters(
        "spec_decode_num_pruned_tokens",
        "Tokens that were taken out of their verification, by the granule before which they were.",
        "granule",
        (),
        stats.num_pruned_tokens,
    )
    yield make.counter(
        "spec_decode_num_wasted_tokens",
        "Drafted tokens that were verified and were wrong, or stood behind a wrong one.",
        stats.num_draft_tokens - stats.num_accepted_tokens,
    )
    yield make.counter(
        "spec_decode_prune_seconds_saved",
        "Saved by pruning, as the steps turned out.",
        max(stats.prune_seconds_saved, 0.0),
    )
    yield make.gauge(
        "spec_decode_seconds_saved",
        "Saved by speculation against plain decoding, as both were measured; can be negative.",
        stats.saved_seconds,
    )
    yield make.gauge(
        "spec_decode_frontiers",
        "Most steps with drafts that are under way at once; 1: drafting overlaps with nothing.",
        stats.frontiers,
    )
    yield make.gauge(
        "spec_decode_drafts_ahead",
        "1 while what may follow is drafted beside a verification, on one device; 0: it is not.",
        int(stats.drafts_ahead),
    )
    yield make.counter(
        "spec_decode_ahead_steps",
        "Steps beside which something was drafted.",
        stats.ahead_steps,
    )
    yield make.counter(
        "spec_decode_ahead_hidden_seconds",
        "Of drafting in turn, which drafting ahead has saved.",
        max(stats.ahead_seconds_hidden, 0.0),
    )
    yield make.counter(
        "spec_decode_ahead_slowdown_seconds",
        "By which drafting ahead has slowed steps down.",
        max(stats.ahead_seconds_slowdown, 0.0),
    )
    yield make.histogram(
        "spec_decode_draft_length",
        "Tokens of a draft that were to be verified, where one was possible.",
        DRAFT_LENGTHS,
        stats.draft_lengths,
    )
