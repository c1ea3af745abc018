"""Memory: how much is resident while many long requests are served."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

LIMIT = 4.5 * 2**30
REQUESTS, PROMPT_TOKENS, TOKENS = 64, 944, 1024
STEP_TOKENS = 1024
"""Large steps: all prompts are computed before the first request has its 80 output tokens."""

# VmHWM, not getrusage: a child's ru_maxrss begins at the peak of the process that started it.
SERVE = f"""
import json, re
from pathlib import Path
from fjx import LLM, SamplingParams

def peak():
    return int(re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

llm = LLM(dtype="float32", max_model_len={TOKENS}, max_num_seqs={REQUESTS},
          max_num_batched_tokens={STEP_TOKENS}, kv_cache_tokens={REQUESTS * TOKENS}, progress=False)
ready = peak()
params = SamplingParams(temperature=0, max_tokens={TOKENS - PROMPT_TOKENS}, ignore_eos=True)
requests = []
for i in range({REQUESTS}):
    prompt = [(i * 7919 + j * 104729) % 40000 + 300 for j in range({PROMPT_TOKENS})]
    requests += llm.engine.add(str(i), prompt, params)
at_once = 0
while llm.engine.has_work:
    llm.engine.step()
    at_once = max(at_once, llm.stats().num_requests_running)
print(json.dumps({{
    "ready": ready,
    "peak": peak(),
    "at_once": at_once,
    "lengths": sorted({{len(request.tokens) for request in requests}}),
    "preemptions": llm.stats().num_preemptions,
}}))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
def test_64_requests_of_1024_tokens_in_float32_fit_in_4_5_gib(
    capsys: pytest.CaptureFixture[str],
) -> None:
    result = subprocess.run(
        [sys.executable, "-c", SERVE], capture_output=True, text=True, timeout=580
    )
    assert result.returncode == 0, result.stderr
    seen = json.loads(result.stdout)
    with capsys.disabled():
        print(
            f"\nresident: {seen['ready'] / 2**30:.2f} GiB at ready, {seen['peak'] / 2**30:.2f} peak"
        )
    # All of them at once, each to its end.
    assert seen["at_once"] == REQUESTS
    assert seen["lengths"] == [TOKENS]
    assert seen["preemptions"] == 0
    assert seen["peak"] < LIMIT
