"""Prometheus metrics: vLLM's names under ``fjx:``, so that its dashboards work unchanged."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable

from prometheus_client import (
    CollectorRegistry,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)

from fjx import EngineConfig, EngineStats, RequestOutput, SamplingParams
from fjx.serving.engine_metrics import EngineCollector
from fjx.serving.http_metrics import HttpMetrics

TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1,
                 0.15, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0, 40.0)  # fmt: skip
"""Bucket bounds of the time between two tokens: fine where a person notices the difference."""
REQUEST_SECONDS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.15, 0.25, 0.5, 0.75, 1.0, 1.5,
                   2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0)  # fmt: skip
"""Bucket bounds of a request's phases, from an idle server's queue to an overloaded one's."""
TOKEN_COUNTS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000,
                100_000, 200_000)  # fmt: skip
"""Bucket bounds of prompt and output lengths, in tokens."""
CHOICE_COUNTS = (1, 2, 5, 10, 20, 50, 100)
"""Bucket bounds of the number of completions of a prompt."""
PREEMPTION_COUNTS = (0, 1, 2, 5, 10, 20, 50)
"""Bucket bounds of how often a request is put back."""

_LABELS = ["model_name"]


class ServerMetrics:
    """The server's registry: the engine's counters, read at each scrape, and latency histograms."""

    def __init__(
        self,
        model_name: str,
        stats: Callable[[], EngineStats],
        config: Callable[[], EngineConfig],
    ) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(EngineCollector(model_name, stats, config))
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        self.http = HttpMetrics(self.registry)

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
        self.max_generated = histogram(
            "request_max_num_generation_tokens",
            "Tokens of a prompt's longest completion.",
            TOKEN_COUNTS,
        )
        self.params_n = histogram(
            "request_params_n", "Completions that were asked for.", CHOICE_COUNTS
        )
        self.params_max_tokens = histogram(
            "request_params_max_tokens", "Tokens that were asked for.", TOKEN_COUNTS
        )
        self.time_per_output_token = histogram(
            "request_time_per_output_token_seconds",
            "From a completion's first token to its last, for each but the first.",
            TOKEN_SECONDS,
        )
        self.preemptions = histogram(
            "request_num_preemptions",
            "How often a request was put back to waiting.",
            PREEMPTION_COUNTS,
        )

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self.registry)


class RequestMeter:
    """Follows one request's outputs and reports its latencies."""

    def __init__(self, metrics: ServerMetrics, arrival: float, params: SamplingParams) -> None:
        self._metrics = metrics
        self._arrival = arrival
        self._params = params
        self._first: dict[int, float] = {}
        self._last: dict[int, float] = {}
        self._counts: Counter[int] = Counter()
        self.first_token: float | None = None
        """Seconds from arrival to the first token; None before it."""

    @property
    def generated(self) -> int:
        """Tokens of all completions."""
        return self._counts.total()

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
            if completion.finish_reason is not None:
                self._metrics.preemptions.observe(completion.preemptions)
        if output.finished:
            self._observe_finished(output, now)

    def _observe_tokens(self, index: int, count: int, now: float) -> None:
        if self.first_token is None:
            self.first_token = now - self._arrival
            self._metrics.time_to_first_token.observe(self.first_token)
        self._first.setdefault(index, now)
        if index in self._last:
            # Tokens that come together share the time since the ones before.
            for _ in range(count):
                self._metrics.inter_token_latency.observe((now - self._last[index]) / count)
        self._last[index] = now
        self._counts[index] += count

    def _observe_finished(self, output: RequestOutput, now: float) -> None:
        metrics = self._metrics
        metrics.prompt_tokens.observe(len(output.prompt_token_ids))
        metrics.generation_tokens.observe(self.generated)
        metrics.max_generated.observe(max(self._counts.values(), default=0))
        metrics.params_n.observe(self._params.n)
        if self._params.max_tokens is not None:
            metrics.params_max_tokens.observe(self._params.max_tokens)
        for index, count in self._counts.items():
            if count > 1:
                spent = self._last[index] - self._first[index]
                metrics.time_per_output_token.observe(spent / (count - 1))
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
