"""The engine's counters and gauges as Prometheus metrics, read afresh at each scrape."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from fjx import EngineConfig, EngineStats, PlanStats, SpeculationStats

PAUSE_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Bucket bounds of the pause of a change of plan: a token's time is the aim, seconds a failure."""
DRAFT_LENGTHS = (0, 1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 24, 32, 48, 64)
"""Bucket bounds of draft lengths, in tokens: each length that is usual."""
STEP_TOKENS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
"""Bucket bounds of the tokens of a step."""

FINISH_REASONS = ("stop", "length", "abort", "error")
COMPILE_PLACES = ("warmup", "background", "on_demand", "hot_path")
SWITCH_OUTCOMES = ("done", "aborted")
SWITCH_STATES = ("planned", "compiling", "copying", "switching")
MOVED_KINDS = ("parameters", "kv", "dirty")

_LABELS = ["model_name"]


class _Families:
    """Makes metric families of one sample, or of one for each value of a second label."""

    def __init__(self, model_name: str) -> None:
        self._model_name = model_name

    def gauge(self, name: str, text: str, value: float) -> Metric:
        """A number that rises and falls."""
        family = GaugeMetricFamily(f"fjx:{name}", text, labels=_LABELS)
        family.add_metric([self._model_name], value)
        return family

    def info(self, name: str, text: str, values: Mapping[str, object]) -> Metric:
        """A gauge that is 1; what it says is in its labels."""
        family = GaugeMetricFamily(f"fjx:{name}", text, labels=[*_LABELS, *values])
        family.add_metric([self._model_name, *map(str, values.values())], 1)
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


class EngineCollector(Collector):
    """Turns a snapshot of the engine into metrics."""

    def __init__(
        self,
        model_name: str,
        stats: Callable[[], EngineStats],
        config: Callable[[], EngineConfig],
    ) -> None:
        self._families = _Families(model_name)
        self._stats = stats
        self._config = config

    def collect(self) -> Iterable[Metric]:
        """The metrics, from a fresh snapshot."""
        stats = self._stats()
        yield _cache_config(self._families, stats, self._config())
        yield from _request_metrics(self._families, stats)
        yield from _plan_metrics(self._families, stats.plan)
        if stats.speculation is not None:
            yield from _speculation_metrics(self._families, stats.speculation)


def _cache_config(make: _Families, stats: EngineStats, config: EngineConfig) -> Metric:
    return make.info(
        "cache_config_info",
        "The KV memory: pages (blocks) of all replicas, and token slots in each.",
        {
            "block_size": config.page_size,
            "num_gpu_blocks": stats.kv_pages,
            "cache_dtype": config.dtype,
            "enable_prefix_caching": config.enable_prefix_caching,
        },
    )


def _request_metrics(make: _Families, stats: EngineStats) -> Iterable[Metric]:
    yield make.gauge("num_requests_running", "Requests in the batch.", stats.num_requests_running)
    yield make.gauge("num_requests_waiting", "Requests in the queue.", stats.num_requests_waiting)
    yield make.gauges(
        "num_requests_waiting_by_reason",
        "Requests in the queue: for room in the batch, or for something else.",
        "reason",
        {"capacity": stats.num_requests_waiting, "deferred": 0},
    )
    yield make.gauge(
        "kv_cache_usage_perc", "Share of KV pages in use, 0 to 1.", stats.kv_cache_usage
    )
    yield make.counter(
        "prefix_cache_queries", "Prompt tokens looked up.", stats.prefix_cache_queries
    )
    yield make.counter("prefix_cache_hits", "Prompt tokens found.", stats.prefix_cache_hits)
    yield make.counter("prompt_tokens", "Prompt tokens computed or found.", stats.prompt_tokens)
    yield make.counters(
        "prompt_tokens_by_source",
        "Prompt tokens computed, or found in the prefix cache.",
        "source",
        (),
        {
            "local_compute": stats.prompt_tokens - stats.prefix_cache_hits,
            "local_cache_hit": stats.prefix_cache_hits,
        },
    )
    yield make.counter(
        "prompt_tokens_cached", "Prompt tokens found in the prefix cache.", stats.prefix_cache_hits
    )
    yield make.histogram(
        "iteration_tokens_total",
        "Tokens computed in a step.",
        STEP_TOKENS,
        stats.step_tokens,
    )
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
