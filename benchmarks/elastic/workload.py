"""The requests of the long run: a real trace's arrivals and lengths, real prompts' text."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from prompts import FILES, sample_prompts

from fjx.bench.datasets import random_tokens
from fjx.bench.traces import TraceEntry, read_trace
from fjx.models.tokenizer import Tokenizer
from fjx.sampling_params import SamplingParams

PROMPT_CAP, OUTPUT_CAP = 256, 128
TEMPERATURE = 0.8
SHARING_EVERY = 5
"""Every so-manieth request begins like the one before it, so that the prefix cache has work."""
CANCEL_EVERY = 12
"""Every so-manieth request is cancelled half way."""
_POOL = 400


@dataclass(frozen=True)
class StreamedRequest:
    """One request: when it comes, what it asks for, and when its client gives up."""

    id: str
    arrival: float
    """Seconds from the start."""
    prompt: list[int]
    params: SamplingParams
    cancel_after: int | None = None
    """Tokens after which it is cancelled; None: it is not."""

    @property
    def output_tokens(self) -> int:
        """Tokens that it will get."""
        assert self.params.max_tokens is not None
        return self.params.max_tokens if self.cancel_after is None else self.cancel_after


def trace_requests(
    trace: Path,
    prompts: Path,
    tokenizer: Tokenizer,
    count: int,
    *,
    time_scale: float,
    length_scale: float,
    seed: int,
) -> tuple[list[StreamedRequest], dict[str, Any]]:
    """The first requests of a trace, scaled; every second one sampled with a seed.

    Returns:
        The requests, and what was done to the trace.
    """
    entries = read_trace(trace, count)
    lengths = [_scaled(entry, length_scale) for entry in entries]
    text, source = _prompt_tokens(prompts, tokenizer, seed)
    requests: list[StreamedRequest] = []
    for i, (entry, (prompt_length, output_length)) in enumerate(zip(entries, lengths, strict=True)):
        begin: list[int] = []
        if i % SHARING_EVERY == SHARING_EVERY - 1:
            begin = requests[-1].prompt[: prompt_length - 1]
        sampled = i % 2 == 1
        requests.append(
            StreamedRequest(
                id=f"request-{i}",
                arrival=entry.arrival * time_scale,
                prompt=begin + list(islice(text, prompt_length - len(begin))),
                params=SamplingParams(
                    temperature=TEMPERATURE if sampled else 0.0,
                    seed=seed + i if sampled else None,
                    max_tokens=output_length,
                    ignore_eos=True,
                ),
                cancel_after=output_length // 2 if _is_cancelled(i, output_length) else None,
            )
        )
    about = {
        "trace": trace.name,
        "trace_seconds": entries[-1].arrival,
        "seconds_per_trace_second": time_scale,
        "length_factor": length_scale,
        "prompts": source,
        "prompts_cut_to_cap": sum(
            round(e.input_length * length_scale) > PROMPT_CAP for e in entries
        ),
        "prompt_cap": PROMPT_CAP,
        "outputs_cut_to_cap": sum(
            round(e.output_length * length_scale) > OUTPUT_CAP for e in entries
        ),
        "output_cap": OUTPUT_CAP,
        "requests": count,
        "greedy": sum(request.params.temperature == 0 for request in requests),
        "sampled": sum(request.params.temperature > 0 for request in requests),
        "temperature": TEMPERATURE,
        "cancelled": sum(request.cancel_after is not None for request in requests),
        "prompt_tokens": sum(len(request.prompt) for request in requests),
        "output_tokens": sum(request.output_tokens for request in requests),
    }
    return requests, about


def _scaled(entry: TraceEntry, scale: float) -> tuple[int, int]:
    prompt = min(max(round(entry.input_length * scale), 1), PROMPT_CAP)
    return prompt, min(max(round(entry.output_length * scale), 1), OUTPUT_CAP)


def _is_cancelled(index: int, output_length: int) -> bool:
    return index % CANCEL_EVERY == CANCEL_EVERY - 1 and output_length >= 4


def _prompt_tokens(folder: Path, tokenizer: Tokenizer, seed: int) -> tuple[Iterator[int], str]:
    """An endless text, token by token, and where it comes from."""
    if not all((folder / name).exists() for name in FILES):
        print(f"{folder} lacks the prompt files; prompts are random tokens", file=sys.stderr)
        return _random_stream(seed), "random token ids"
    texts = sample_prompts(folder, _POOL, seed)
    return _stream(texts, tokenizer), ", ".join(FILES)


def _stream(texts: Sequence[str], tokenizer: Tokenizer) -> Iterator[int]:
    while True:
        for text in texts:
            yield from tokenizer.encode(text)


def _random_stream(seed: int) -> Iterator[int]:
    source = random.Random(seed)
    while True:
        yield from random_tokens(PROMPT_CAP, source)
