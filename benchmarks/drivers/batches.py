"""What peers.py and the drivers that run in their own process say to each other.

Work, as JSON on stdin: {"threads": 2, "max_tokens": 64, "warmup": [prompt, ...],
"levels": [{"concurrency": 4, "prompts": [prompt, ...]}, ...]}.
Result, as the last line of stdout: a list with one object a level.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Work:
    """What a driver is to generate."""

    threads: int
    max_tokens: int
    warmup: list[str]
    levels: list[dict[str, Any]]

    @classmethod
    def read(cls) -> Work:
        """Read from stdin."""
        return cls(**json.load(sys.stdin))


@dataclass(frozen=True)
class Batch:
    """What one batch took."""

    prompt_tokens: int
    output_tokens: int
    seconds: float
    decode_seconds: float | None = None
    """From each request's first token to its last, where the library lets that be seen."""


def run(work: Work, generate: Callable[[list[str]], Batch]) -> None:
    """Warm up, run every level in batches of its concurrency, print the result."""
    generate(work.warmup)
    results = []
    for level in work.levels:
        size, prompts = level["concurrency"], level["prompts"]
        begin = time.perf_counter()
        batches = [generate(prompts[i : i + size]) for i in range(0, len(prompts), size)]
        results.append(_summary(size, batches, time.perf_counter() - begin))
    print(json.dumps(results))


def _summary(size: int, batches: Sequence[Batch], seconds: float) -> dict[str, Any]:
    output_tokens = sum(batch.output_tokens for batch in batches)
    result: dict[str, Any] = {
        "concurrency": size,
        "prompt_tokens": sum(batch.prompt_tokens for batch in batches),
        "output_tokens": output_tokens,
        "output_throughput": output_tokens / seconds,
    }
    decode = [batch.decode_seconds for batch in batches if batch.decode_seconds is not None]
    if len(decode) == len(batches):
        # The first token of each request belongs to the prefill.
        requests = size * len(batches)
        result["decode_throughput"] = (output_tokens - requests) / sum(decode)
    return result
