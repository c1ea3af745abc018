"""The serving benchmark: requests arrive at a server on their own schedule."""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from fjx.bench.arrivals import arrival_times
from fjx.bench.client import BenchTarget, first_model, open_client, send
from fjx.bench.config import LoadConfig
from fjx.bench.datasets import BenchRequest, random_text, random_tokens, read_prompts, sample
from fjx.bench.metrics import RequestRecord, parse_goodput, summarize
from fjx.bench.report import distribution_table, table
from fjx.bench.traces import read_trace, replay
from fjx.errors import UserError
from fjx.progress_bar import progress_bar

DEFAULT_RANDOM_PROMPTS = 100
DEFAULT_MAX_TOKENS = 128
LATENCIES = {
    "ttft": "TTFT  time to first token",
    "tpot": "TPOT  time per output token",
    "itl": "ITL   inter-token latency",
    "e2el": "E2EL  end to end",
}


def plan_requests(config: LoadConfig) -> list[BenchRequest]:
    """The requests of a run, each with its arrival time, in order of arrival.

    Raises:
        UserError: the prompts file or the trace cannot be used.
    """
    text = config.endpoint == "chat"
    if config.trace is not None:
        return replay(
            read_trace(config.trace, config.num_prompts),
            time_scale=config.time_scale,
            length_scale=config.length_scale,
            max_tokens=config.max_tokens,
            text=text,
            seed=config.seed,
        )
    requests = _random_requests(config, text) if config.dataset == "random" else _from_file(config)
    rate = math.inf if config.request_rate is None else config.request_rate
    times = arrival_times(len(requests), rate, config.burstiness, config.seed)
    return [
        replace(request, arrival=arrival) for request, arrival in zip(requests, times, strict=True)
    ]


def _random_requests(config: LoadConfig, text: bool) -> list[BenchRequest]:
    draw = random_text if text else random_tokens
    source = random.Random(config.seed)
    max_tokens = min(config.output_len, config.max_tokens or config.output_len)
    return [
        BenchRequest(prompt=draw(config.input_len, source), max_tokens=max_tokens)
        for _ in range(config.num_prompts or DEFAULT_RANDOM_PROMPTS)
    ]


def _from_file(config: LoadConfig) -> list[BenchRequest]:
    prompts = read_prompts(Path(config.dataset))
    if config.endpoint == "completions" and not all(isinstance(p, str) for p in prompts):
        raise UserError(f"{config.dataset} holds chat messages; use --endpoint chat")
    max_tokens = config.max_tokens or DEFAULT_MAX_TOKENS
    return [
        BenchRequest(prompt=prompt, max_tokens=max_tokens)
        for prompt in sample(prompts, config.num_prompts, config.seed, config.dataset)
    ]


async def run_load(config: LoadConfig) -> dict[str, Any]:
    """Run the benchmark against the server and return its result, ready for JSON.

    Raises:
        UserError: bad input, no server at ``base_url``, or a warm-up request failed.
    """
    goodput = parse_goodput(config.goodput)
    requests = plan_requests(config)
    async with open_client(config.base_url) as client:
        target = BenchTarget(
            client=client,
            model=config.model or await first_model(client),
            endpoint=config.endpoint,
            temperature=config.temperature,
            ignore_eos=config.ignore_eos,
            seed=config.seed if config.temperature > 0 else None,
        )
        await _warm_up(target, config)
        records, duration = await offer(target, requests, config.max_concurrency)
    result = {
        "base_url": config.base_url,
        "model": target.model,
        "endpoint": config.endpoint,
        "dataset": str(config.trace or config.dataset),
        "num_prompts": len(requests),
        "request_rate": _configured_rate(config),
        "burstiness": config.burstiness,
        "max_concurrency": config.max_concurrency,
        "time_scale": config.time_scale if config.trace else None,
        "length_scale": config.length_scale if config.trace else None,
        "seed": config.seed,
        **summarize(records, duration, config.percentiles, goodput),
    }
    if config.detailed:
        result["requests"] = [asdict(record) | {"tpot": record.tpot} for record in records]
    return result


def _configured_rate(config: LoadConfig) -> float | str:
    """Arrivals per second; words where JSON has no number."""
    if config.trace is not None:
        return "trace"
    rate = config.request_rate
    return "inf" if rate is None or math.isinf(rate) else rate


async def _warm_up(target: BenchTarget, config: LoadConfig) -> None:
    source = random.Random(f"{config.seed} warm-up")
    draw = random_text if config.endpoint == "chat" else random_tokens
    for _ in range(config.warmup_requests):
        record = RequestRecord(scheduled=0.0)
        await send(target, BenchRequest(prompt=draw(16, source), max_tokens=8), record)
        if record.error is not None:
            raise UserError(f"the warm-up request to {config.base_url} failed: {record.error}")


async def offer(
    target: BenchTarget, requests: Sequence[BenchRequest], max_concurrency: int | None = None
) -> tuple[list[RequestRecord], float]:
    """Send each request at its arrival time and wait for all.

    Args:
        target: Where to send them.
        requests: In order of arrival.
        max_concurrency: Most in flight; None: no limit.

    Returns:
        A record for each request, in the same order, and the seconds until the last response.
    """
    limit = (
        contextlib.nullcontext() if max_concurrency is None else asyncio.Semaphore(max_concurrency)
    )
    records = [RequestRecord(scheduled=request.arrival or 0.0) for request in requests]
    begin = time.perf_counter()
    with progress_bar(total=len(requests), unit="request", desc="requests") as progress:

        async def one(request: BenchRequest, record: RequestRecord) -> None:
            await asyncio.sleep(begin + record.scheduled - time.perf_counter())
            async with limit:
                record.start = time.perf_counter() - begin
                await send(target, request, record)
            progress.update()

        async with asyncio.TaskGroup() as group:
            for request, record in zip(requests, records, strict=True):
                group.create_task(one(request, record))
    return records, time.perf_counter() - begin


def load_table(result: dict[str, Any], percentiles: Sequence[float]) -> str:
    """The result of :func:`run_load` for people."""
    rows: list[tuple[str, object]] = [
        ("Completed requests", result["completed"]),
        ("Failed requests", result["failed"]),
        ("Duration (s)", result["duration"]),
        ("Prompt tokens", result["total_input_tokens"]),
        ("Output tokens", result["total_output_tokens"]),
        ("Most requests in flight", result["max_concurrent_requests"]),
        ("Requests/s", result["request_throughput"]),
        ("Output tokens/s", result["output_throughput"]),
        ("Total tokens/s", result["total_token_throughput"]),
    ]
    if "request_goodput" in result:
        rows.append(("Requests/s within the goodput limits", result["request_goodput"]))
    blocks = [
        table(f"{result['model']} at {result['base_url']}", rows),
        distribution_table(result, LATENCIES, percentiles),
    ]
    if result["failed"]:
        blocks.append(f"First error: {result['first_error']}")
    return "\n\n".join(blocks)
