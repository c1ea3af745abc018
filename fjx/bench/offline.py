"""The benchmarks that run the engine in this process: throughput and latency."""

from __future__ import annotations

import random
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fjx.bench.config import LatencyConfig, ThroughputConfig
from fjx.bench.datasets import Messages, random_tokens, read_prompts, sample
from fjx.bench.llm import check_fits, open_llm
from fjx.bench.metrics import distribution
from fjx.bench.report import distribution_table, table
from fjx.config import EngineConfig
from fjx.progress_bar import progress_bar
from fjx.sampling_params import SamplingParams

if TYPE_CHECKING:
    from fjx.models.tokenizer import Tokenizer

DEFAULT_RANDOM_PROMPTS = 100
LATENCY_PERCENTILES = (50.0, 90.0, 99.0)


def run_throughput(config: ThroughputConfig, engine: EngineConfig) -> dict[str, Any]:
    """Generate for all prompts at once and count tokens; loading and compiling do not count.

    Returns:
        The result, ready for JSON; throughputs are per second.

    Raises:
        UserError: the prompts file or the model cannot be used.
    """
    texts = _read_prompts(config)
    _check_lengths(config, engine, random_prompts=texts is None)
    with open_llm(engine) as llm:
        prompts = _encoded(config, texts, llm.tokenizer)
        params = [_params(config, seed) for seed in range(config.seed, config.seed + len(prompts))]
        begin = time.perf_counter()
        outputs = llm.generate(prompts, params)
        elapsed = time.perf_counter() - begin
        stats = asdict(llm.stats())
    prompt_tokens = sum(len(output.prompt_token_ids) for output in outputs)
    output_tokens = sum(len(c.token_ids) for output in outputs for c in output.outputs)
    return {
        "model": engine.model,
        "dataset": config.dataset,
        "num_prompts": len(prompts),
        "seed": config.seed,
        "temperature": config.temperature,
        "elapsed_time": elapsed,
        "total_input_tokens": prompt_tokens,
        "total_output_tokens": output_tokens,
        "request_throughput": len(prompts) / elapsed,
        "output_throughput": output_tokens / elapsed,
        "total_token_throughput": (prompt_tokens + output_tokens) / elapsed,
        "engine": stats,
    }


def _check_lengths(
    config: ThroughputConfig | LatencyConfig, engine: EngineConfig, random_prompts: bool = True
) -> None:
    """Check the lengths that are known before the model is loaded.

    Raises:
        UserError: they do not fit into its context.
    """
    if random_prompts:
        check_fits(engine, config.input_len + config.output_len, "input_len and output_len")
    else:
        check_fits(engine, config.output_len + 1, "output_len and a prompt")


def _read_prompts(config: ThroughputConfig) -> list[str | Messages] | None:
    """Those of a file; None: they are random."""
    if config.dataset == "random":
        return None
    prompts = read_prompts(Path(config.dataset))
    return sample(prompts, config.num_prompts, config.seed, config.dataset)


def _encoded(
    config: ThroughputConfig, prompts: list[str | Messages] | None, tokenizer: Tokenizer
) -> list[list[int]]:
    if prompts is None:
        source = random.Random(config.seed)
        vocabulary = range(tokenizer.vocab_size)
        return [
            list(random_tokens(config.input_len, source, vocabulary))
            for _ in range(config.num_prompts or DEFAULT_RANDOM_PROMPTS)
        ]
    return [
        tokenizer.encode(prompt)
        if isinstance(prompt, str)
        else tokenizer.encode(tokenizer.apply_chat_template(prompt), add_special_tokens=False)
        for prompt in prompts
    ]


def _params(config: ThroughputConfig | LatencyConfig, seed: int) -> SamplingParams:
    return SamplingParams(
        max_tokens=config.output_len, temperature=config.temperature, seed=seed, ignore_eos=True
    )


def run_latency(config: LatencyConfig, engine: EngineConfig) -> dict[str, Any]:
    """Time one batch from its start to its last token, again and again.

    Returns:
        The result, ready for JSON: the times in seconds, and their distribution in milliseconds.

    Raises:
        UserError: the model cannot be used.
    """
    source = random.Random(config.seed)
    latencies: list[float] = []
    _check_lengths(config, engine)
    with open_llm(engine) as llm:
        vocabulary = range(llm.tokenizer.vocab_size)
        runs = config.num_iters_warmup + config.num_iters
        for run in progress_bar(range(runs), unit="batch", desc="batches"):
            prompts = [
                list(random_tokens(config.input_len, source, vocabulary))
                for _ in range(config.batch_size)
            ]
            begin = time.perf_counter()
            llm.generate(prompts, _params(config, config.seed), use_tqdm=False)
            if run >= config.num_iters_warmup:
                latencies.append(time.perf_counter() - begin)
    mean = sum(latencies) / len(latencies)
    return {
        "model": engine.model,
        "batch_size": config.batch_size,
        "input_len": config.input_len,
        "output_len": config.output_len,
        "seed": config.seed,
        "temperature": config.temperature,
        "output_throughput": config.batch_size * config.output_len / mean,
        "latencies": latencies,
        **distribution("latency", latencies, LATENCY_PERCENTILES),
    }


def throughput_table(result: dict[str, Any]) -> str:
    """The result of :func:`run_throughput` for people."""
    rows: list[tuple[str, object]] = [
        ("Prompts", result["num_prompts"]),
        ("Duration (s)", result["elapsed_time"]),
        ("Prompt tokens", result["total_input_tokens"]),
        ("Output tokens", result["total_output_tokens"]),
        ("Requests/s", result["request_throughput"]),
        ("Output tokens/s", result["output_throughput"]),
        ("Total tokens/s", result["total_token_throughput"]),
    ]
    return table(result["model"], rows)


def latency_table(result: dict[str, Any]) -> str:
    """The result of :func:`run_latency` for people."""
    rows: list[tuple[str, object]] = [
        ("Batch size", result["batch_size"]),
        ("Prompt tokens each", result["input_len"]),
        ("Output tokens each", result["output_len"]),
        ("Measured runs", len(result["latencies"])),
        ("Output tokens/s", result["output_throughput"]),
    ]
    return "\n\n".join(
        [
            table(result["model"], rows),
            distribution_table(result, {"latency": "Batch latency"}, LATENCY_PERCENTILES),
        ]
    )
