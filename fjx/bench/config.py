"""What the benchmarks may be told: the options of ``fjx bench`` are generated from these."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fjx.errors import UserError
from fjx.output_files import check_output_file


def _check(ok: bool, message: str) -> None:
    if not ok:
        raise UserError(message)


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Where results go.

    Raises:
        UserError: ``output`` cannot be written.
    """

    output: Path | None = None
    """Write the result to this file, as JSON."""
    json: bool = False
    """Write the result to stdout as JSON, and the table to stderr."""

    def __post_init__(self) -> None:
        if self.output is not None:
            check_output_file("output", self.output)


@dataclass(frozen=True, kw_only=True)
class ThroughputConfig:
    """The offline throughput benchmark: all prompts at once, in this process.

    Raises:
        UserError: a value is outside its range.
    """

    dataset: str = "random"
    """A prompts file (JSON lines with prompt, question, turns or messages; also .gz), or random."""
    num_prompts: int | None = None
    """Prompts to run, drawn from the file; by default 100 random ones or the whole file."""
    input_len: int = 128
    """Tokens in a random prompt."""
    output_len: int = 64
    """Tokens generated for each prompt; end-of-sequence tokens are ignored."""
    temperature: float = 0.0
    """Sampling temperature; 0 is greedy."""
    seed: int = 0
    """Fixes the prompts and the sampling."""

    def __post_init__(self) -> None:
        _check(self.input_len >= 1, f"input_len must be at least 1, got {self.input_len}")
        _check(self.output_len >= 1, f"output_len must be at least 1, got {self.output_len}")
        _check(
            self.num_prompts is None or self.num_prompts >= 1,
            f"num_prompts must be at least 1, got {self.num_prompts}",
        )


@dataclass(frozen=True, kw_only=True)
class LatencyConfig:
    """The latency benchmark: one batch of equal requests, again and again.

    Raises:
        UserError: a value is outside its range.
    """

    batch_size: int = 1
    """Requests in the batch."""
    input_len: int = 32
    """Tokens in a prompt. Every run draws new ones, so that no prefix is cached."""
    output_len: int = 128
    """Tokens generated for each prompt; end-of-sequence tokens are ignored."""
    num_iters: int = 10
    """Measured runs of the batch."""
    num_iters_warmup: int = 2
    """Runs before the first measured one."""
    temperature: float = 0.0
    """Sampling temperature; 0 is greedy."""
    seed: int = 0
    """Fixes the prompts and the sampling."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "input_len", "output_len", "num_iters"):
            _check(getattr(self, name) >= 1, f"{name} must be at least 1")
        _check(self.num_iters_warmup >= 0, "num_iters_warmup must be at least 0")


@dataclass(frozen=True, kw_only=True)
class LoadConfig:
    """The serving benchmark: requests that arrive at a server whether or not it keeps up.

    Raises:
        UserError: a value is outside its range, or values contradict each other.
    """

    base_url: str = "http://127.0.0.1:8000"
    """The server, without /v1. A key in $OPENAI_API_KEY is sent along."""
    model: str | None = None
    """Model name in the requests; by default the first one that the server lists."""
    endpoint: Literal["completions", "chat"] = "completions"
    """/v1/completions or /v1/chat/completions."""

    dataset: str = "random"
    """A prompts file (JSON lines with prompt, question, turns or messages; also .gz), or random."""
    trace: Path | None = None
    """Arrival times and lengths from a trace: CSV with TIMESTAMP, ContextTokens, GeneratedTokens
    (Azure), or JSON lines with timestamp, input_length, output_length, hash_ids (Mooncake); also
    .gz and .xz. Takes the place of dataset and request-rate."""
    num_prompts: int | None = None
    """Requests to send; by default 100 random ones, or the whole prompts file or trace."""
    input_len: int = 128
    """Tokens in a random prompt (with --endpoint chat: about that many, plus the template's)."""
    output_len: int = 64
    """Tokens to ask for in a request with a random prompt."""
    time_scale: float = 1.0
    """Seconds of benchmark per second of trace: 0.5 replays it twice as fast."""
    length_scale: float = 1.0
    """Factor on the trace's input and output lengths."""

    request_rate: float | None = None
    """Mean arrivals per second; by default infinite: all requests at once."""
    burstiness: float = 1.0
    """Shape of the Gamma distribution of times between arrivals: 1 is a Poisson process, below 1
    is burstier (coefficient of variation 1/sqrt(shape)), above 1 is more regular."""
    max_concurrency: int | None = None
    """Most requests in flight; later arrivals wait in the client. By default no limit."""
    warmup_requests: int = 1
    """Short requests sent one by one before the clock starts."""

    max_tokens: int | None = None
    """Most tokens to ask for in any request; a prompts file has 128 by default."""
    temperature: float = 0.0
    """Sampling temperature; 0 is greedy."""
    ignore_eos: bool = False
    """Ask the server to go on after end-of-sequence tokens, so that output lengths are kept."""
    seed: int = 0
    """Fixes prompts, arrival times and sampling."""

    percentiles: tuple[float, ...] = (50.0, 90.0, 95.0, 99.0)
    """Percentiles to report."""
    goodput: tuple[str, ...] = ()
    """Count requests per second that keep all these limits in milliseconds, as METRIC:LIMIT with
    the metrics ttft, tpot and e2el: ttft:500 tpot:50."""
    detailed: bool = False
    """Put a record of each request into the result."""

    def __post_init__(self) -> None:
        _check(
            self.base_url.startswith(("http://", "https://")),
            f"base_url must begin with http:// or https://, got {self.base_url!r}",
        )
        for name in ("input_len", "output_len"):
            _check(getattr(self, name) >= 1, f"{name} must be at least 1")
        for name in ("num_prompts", "max_concurrency", "max_tokens"):
            value = getattr(self, name)
            _check(value is None or value >= 1, f"{name} must be at least 1, got {value}")
        for name in ("time_scale", "length_scale", "burstiness"):
            value = getattr(self, name)
            _check(
                value > 0 and math.isfinite(value),
                f"{name} must be positive and finite, got {value}",
            )
        _check(
            self.request_rate is None or self.request_rate > 0,
            f"request_rate must be positive, got {self.request_rate}",
        )
        _check(self.warmup_requests >= 0, "warmup_requests must be at least 0")
        _check(
            all(0 <= p <= 100 for p in self.percentiles),
            f"percentiles must be in [0, 100], got {self.percentiles}",
        )
        if self.trace is not None:
            _check(self.dataset == "random", "dataset and trace both bring prompts; give one")
            _check(
                self.request_rate is None,
                "request_rate and trace both set the arrival times; use time_scale with a trace",
            )
