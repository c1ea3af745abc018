"""The script that attacks a server, with a few attacks of a second each."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "attacks.py"
NAMES = [
    "prompt of 16 MB",
    "16 MB of numbers",
    "1,500 half-open connections",
    "500 clients on a queue of 30",
]


def test_server_under_attack_answers_serves_afterwards_and_ends(tmp_path):
    output = tmp_path / "attacks.json"
    command = [sys.executable, str(SCRIPT), "--seconds", "1", "--output", str(output)]
    subprocess.run([*command, "--only", *NAMES], check=True, timeout=500, cwd=tmp_path)
    result = json.loads(output.read_text())
    attacks = result["attacks"]
    assert list(attacks) == NAMES
    for measured in attacks.values():
        assert measured["probes"] > 0
        assert measured["failed"] == 0
        assert measured["plain_completion_afterwards_seconds"] < 120
    assert set(attacks[NAMES[0]]["outcomes"]) == {"400"}
    assert set(attacks[NAMES[1]]["outcomes"]) == {"413"}
    assert {"200", "429"} <= set(attacks[NAMES[3]]["outcomes"])
    assert result["sigterm"]["exit_code"] == 0
