"""A fixed sample of real prompts: questions, grade-school maths and Python functions."""

from __future__ import annotations

import random
from pathlib import Path

from fjx.bench.datasets import read_prompts

FILES = ("spec_bench.jsonl", "gsm8k_test_300.jsonl", "HumanEval.jsonl.gz")
MAX_CHARACTERS = 1500
"""Longer ones are whole documents to summarize: they would measure prefill alone."""


def sample_prompts(folder: Path, count: int, seed: int) -> list[str]:
    """Draw ``count`` different prompts from all files together."""
    prompts = [prompt for name in FILES for prompt in read_prompts(folder / name)]
    short = [p for p in dict.fromkeys(prompts) if isinstance(p, str) and len(p) <= MAX_CHARACTERS]
    return random.Random(seed).sample(short, count)
