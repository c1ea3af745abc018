"""How often a token changes with the batch.

    python benchmarks/flip_rate.py

Generates real prompts in batches (16 running at once, chunked prefill, prefix cache) and one at a
time (no cache), greedily and at temperature 0.8 with a seed, and compares the tokens up to the
first that differs: after it the two have another past.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from prompts import sample_prompts
from tqdm import tqdm

from fjx import LLM, RequestOutput, SamplingParams
from fjx.bench.report import environment

ROOT = Path(__file__).resolve().parents[1]
SETTINGS: dict[str, dict[str, Any]] = {
    "float32": {"dtype": "float32"},
    "bfloat16": {"dtype": "bfloat16"},
    "float32, batch_invariant": {
        "dtype": "float32",
        "batch_invariant": True,
        # the one shape of all steps: 256 rows would be slow for one request
        "max_num_batched_tokens": 32,
    },
}
RUNNING = 16
TEMPERATURES = (0.0, 0.8)


@dataclass(frozen=True)
class Comparison:
    """The same requests alone and in batches."""

    setting: str
    temperature: float
    requests: int
    requests_affected: int
    tokens_compared: int
    """Up to each request's first flip, itself included."""
    tokens_flipped: int
    """At most one a request: what follows a flip is not compared."""
    flip_gaps: list[float]
    """At each flip, by how much the best log-probability exceeds the second, generated alone."""
    max_logprob_difference: float
    """Over all equal tokens; 0: not even a bit of a log-probability changed."""
    tokens_with_other_logprob: int
    prompt_tokens: int
    prompt_tokens_cached: int
    """Found in the prefix cache by the batched requests."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--prompts", type=Path, default=ROOT / ".." / "shared/data/prompts")
    parser.add_argument("--num-prompts", type=int, default=60)
    parser.add_argument("--max-tokens", type=int, default=48)
    parser.add_argument("--only", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument(
        "--output", type=Path, default=ROOT / "benchmarks" / "results" / "flip_rate.json"
    )
    arguments = parser.parse_args()
    texts = sample_prompts(arguments.prompts, arguments.num_prompts, seed=3)
    comparisons = [
        comparison
        for setting in arguments.only
        for comparison in compare(arguments.model, setting, texts, arguments.max_tokens)
    ]
    command = shlex.join(["python", "benchmarks/flip_rate.py", *sys.argv[1:]])
    result = {
        "about": environment([]) | {"command": command},
        "model": arguments.model,
        "running_at_once": RUNNING,
        "comparisons": [asdict(comparison) for comparison in comparisons],
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=2) + "\n")
    print(f"wrote {arguments.output}")


def compare(model: str, setting: str, texts: Sequence[str], max_tokens: int) -> list[Comparison]:
    batched = generate(model, setting, texts, max_tokens, at_once=True)
    alone = generate(model, setting, texts, max_tokens, at_once=False)
    comparisons = [
        count_flips(setting, temperature, alone[temperature], batched[temperature])
        for temperature in TEMPERATURES
    ]
    for comparison in comparisons:
        print(json.dumps(asdict(comparison)), flush=True)
    return comparisons


def generate(
    model: str, setting: str, texts: Sequence[str], max_tokens: int, *, at_once: bool
) -> dict[float, list[RequestOutput]]:
    """Outputs by temperature. At once, the second one's prompts are in the prefix cache."""
    llm = LLM(
        model,
        drafter="off",
        max_model_len=1024,
        max_num_seqs=RUNNING,
        enable_prefix_caching=at_once,
        progress=False,
        **SETTINGS[setting],
    )
    outputs: dict[float, list[RequestOutput]] = {}
    for temperature in TEMPERATURES:
        params = [
            SamplingParams(
                temperature=temperature, seed=i, max_tokens=max_tokens, ignore_eos=True, logprobs=2
            )
            for i in range(len(texts))
        ]
        begin = time.perf_counter()
        if at_once:
            outputs[temperature] = llm.generate(texts, params, use_tqdm=False)
        else:
            pairs = tqdm(zip(texts, params, strict=True), total=len(texts), desc=setting)
            outputs[temperature] = [llm.generate(*pair, use_tqdm=False)[0] for pair in pairs]
        how = "at once" if at_once else "alone"
        seconds = time.perf_counter() - begin
        print(f"{setting}, temperature {temperature}, {how}: {seconds:.0f} s", file=sys.stderr)
    llm.shutdown()
    return outputs


def count_flips(
    setting: str,
    temperature: float,
    alone: Sequence[RequestOutput],
    batched: Sequence[RequestOutput],
) -> Comparison:
    compared, gaps, differences = 0, [], []
    for output, other_output in zip(alone, batched, strict=True):
        one, many = output.outputs[0], other_output.outputs[0]
        assert one.logprobs is not None
        assert many.logprobs is not None
        for token, other, logprobs, others in zip(
            one.token_ids, many.token_ids, one.logprobs, many.logprobs, strict=True
        ):
            compared += 1
            if token != other:
                gaps.append(logprobs.top[0].logprob - logprobs.top[1].logprob)
                break
            differences.append(abs(logprobs.sampled.logprob - others.sampled.logprob))
    return Comparison(
        setting=setting,
        temperature=temperature,
        requests=len(alone),
        requests_affected=len(gaps),
        tokens_compared=compared,
        tokens_flipped=len(gaps),
        flip_gaps=sorted(gaps),
        max_logprob_difference=max(differences),
        tokens_with_other_logprob=sum(difference > 0 for difference in differences),
        prompt_tokens=sum(len(output.prompt_token_ids) for output in batched),
        prompt_tokens_cached=sum(output.num_cached_tokens for output in batched),
    )


if __name__ == "__main__":
    main()
