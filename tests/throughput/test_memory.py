"""Memory: how much is resident with KV memory for 64 requests of 1,024 tokens."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

LIMIT = 4.5 * 2**30
SCRIPT = Path(__file__).parents[2] / "benchmarks" / "memory.py"


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
def test_64_requests_of_1024_tokens_in_float32_fit_in_4_5_gib() -> None:
    # KV memory is resident from the start, so short prompts show the peak; the script's defaults
    # fill all of it, which takes minutes.
    command = [sys.executable, str(SCRIPT), "--prompt-tokens", "40", "--output-tokens", "8"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert result.returncode == 0, result.stderr
    seen = json.loads(result.stdout)
    assert seen["requests"] == 64
    assert seen["tokens"] == 64 * 48
    assert seen["peak"] < LIMIT
