import json
from pathlib import Path
from typing import Any

import pytest

from fjx.cli.main import main


def test_bench_serve_reports_json_with_how_to_repeat_it(
    fake_server: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ["--base-url", fake_server.url, "--num-prompts", "3", "--output-len", "4"]
    words += ["--percentiles", "99", "--goodput", "ttft:60000", "--json"]
    assert main(["bench", "serve", *words, "--output", str(tmp_path / "r.json")]) == 0
    out, err = capsys.readouterr()
    result = json.loads(out)
    assert result == json.loads((tmp_path / "r.json").read_text())
    assert result["completed"] == 3
    assert result["total_output_tokens"] == 12
    assert result["request_goodput"] == pytest.approx(result["request_throughput"])
    assert result["p99_ttft_ms"] > 0
    assert "p50_ttft_ms" not in result
    assert result["command"].startswith("fjx bench serve --base-url http://127.0.0.1")
    assert {"versions", "machine", "commit", "date"} <= set(result)
    assert "TTFT" in err


def test_bench_serve_fails_if_every_request_does(
    fake_server: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_server.script = lambda body: [500, "broken"]
    words = ["--base-url", fake_server.url, "--num-prompts", "2", "--warmup-requests", "0"]
    assert main(["bench", "serve", *words]) == 1
    assert "First error: HTTP 500: broken" in capsys.readouterr().out
