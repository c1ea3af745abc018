"""Real weights: SmolLM2's greedy continuations of 50 real prompts against Transformers'.

Both compute with the same weights, dequantized from the embedded GGUF file, each with its own
loader (scripts/make_smollm2_goldens.py). Near-ties may fall either way; the rest of such a
continuation has another past and is not compared.
"""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from fjx import LLM, CompletionOutput, SamplingParams

GOLDEN = Path(__file__).parent / "goldens" / "smollm2_continuations.json.gz"
NEAR_TIE = 1e-3
"""Difference of the two best logits below which either token is right."""
NEW_TOKENS = 32
MAX_NEAR_TIES = 3
"""Each ends a comparison: if many did, little would have been compared. Seen: none."""
LEAST_BFLOAT16_SHARE = 0.75
"""Of the tokens, before a first difference. Seen: 0.88."""
MAX_BFLOAT16_DIFFERENCE = 0.02
"""Of log-probabilities, in the mean. Seen: 0.007."""


@pytest.fixture(scope="module")
def cases() -> list[dict[str, Any]]:
    golden = json.loads(gzip.decompress(GOLDEN.read_bytes()))
    cases: list[dict[str, Any]] = golden["cases"]
    assert len(cases) == 50
    assert all(len(case["tokens"]) == NEW_TOKENS for case in cases)
    return cases


def continuations(cases: list[dict[str, Any]], dtype: str) -> list[CompletionOutput]:
    """fjx's own, all prompts in one call."""
    llm = LLM(dtype=dtype, max_model_len=1024, progress=False)
    params = SamplingParams(temperature=0.0, max_tokens=NEW_TOKENS, ignore_eos=True, logprobs=0)
    outputs = llm.generate([case["prompt"] for case in cases], params, use_tqdm=False)
    llm.shutdown()
    return [output.outputs[0] for output in outputs]


def equal_length(ours: Sequence[int], theirs: Sequence[int]) -> int:
    """How many tokens are equal before the first that is not."""
    pairs = zip(ours, theirs, strict=True)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), len(ours))


def logprob_difference(ours: list[CompletionOutput], cases: list[dict[str, Any]]) -> float:
    """Mean difference of the log-probabilities of the tokens that are equal."""
    differences = []
    for completion, case in zip(ours, cases, strict=True):
        assert completion.logprobs is not None
        for i in range(equal_length(completion.token_ids, case["tokens"])):
            differences.append(abs(completion.logprobs[i].sampled.logprob - case["logprobs"][i]))
    return sum(differences) / len(differences)


def test_float32_continuations_equal_transformers(
    cases: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    ours = continuations(cases, "float32")
    counts: Counter[str] = Counter()
    wrong = []
    for number, (completion, case) in enumerate(zip(ours, cases, strict=True)):
        equal = equal_length(completion.token_ids, case["tokens"])
        counts["equal"] += equal
        if equal == NEW_TOKENS:
            continue
        token, gap = completion.token_ids[equal], case["gaps"][equal]
        if gap < NEAR_TIE and token == case["second"][equal]:
            counts["near-tie"] += 1
            counts["after a near-tie"] += NEW_TOKENS - equal - 1
        else:
            wrong.append(
                f"prompt {number}, token {equal}: {token} instead of {case['tokens'][equal]}, "
                f"{gap} above {case['second'][equal]}"
            )
    difference = logprob_difference(ours, cases)
    with capsys.disabled():
        print(f"\nfloat32: {dict(counts)}; mean |logprob difference| {difference:.1e}")
    assert not wrong
    assert sum(counts.values()) == len(cases) * NEW_TOKENS
    assert counts["near-tie"] <= MAX_NEAR_TIES
    assert difference < 1e-4


@pytest.mark.slow
def test_bfloat16_stays_close_to_float32_transformers(
    cases: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    ours = continuations(cases, "bfloat16")
    equal = [
        equal_length(completion.token_ids, case["tokens"])
        for completion, case in zip(ours, cases, strict=True)
    ]
    share = sum(equal) / (len(cases) * NEW_TOKENS)
    difference = logprob_difference(ours, cases)
    with capsys.disabled():
        print(
            f"\nbfloat16: {share:.1%} of the tokens come before a first difference, "
            f"{equal.count(NEW_TOKENS)} of {len(cases)} prompts have none; "
            f"mean |logprob difference| {difference:.1e}"
        )
    assert share > LEAST_BFLOAT16_SHARE
    assert difference < MAX_BFLOAT16_DIFFERENCE
