import json
from pathlib import Path

import pytest

from fjx.bench.config import ReportConfig
from fjx.bench.report import distribution_table, environment, publish
from fjx.errors import UserError

RESULT = {"request_throughput": 1.5}


def test_by_default_the_table_goes_to_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    publish(RESULT, "the table", ReportConfig())
    assert capsys.readouterr() == ("the table\n", "")


def test_with_json_stdout_holds_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    publish(RESULT, "the table", ReportConfig(json=True))
    out, err = capsys.readouterr()
    assert json.loads(out) == RESULT
    assert err == "the table\n"


def test_the_output_file_holds_the_result(tmp_path: Path) -> None:
    publish(RESULT, "the table", ReportConfig(output=tmp_path / "r.json"))
    assert json.loads((tmp_path / "r.json").read_text()) == RESULT


def test_an_output_that_cannot_be_written_is_known_before_the_run(tmp_path: Path) -> None:
    for path in (tmp_path / "missing" / "r.json", tmp_path):
        with pytest.raises(UserError, match="output: cannot write"):
            ReportConfig(output=path)


def test_the_environment_tells_how_to_repeat_the_run() -> None:
    described = environment(["bench", "serve", "--model", "a b"])
    assert described["command"] == "fjx bench serve --model 'a b'"
    assert described["machine"]["cores"] >= 1
    assert described["machine"]["cpu"]
    assert {"python", "fjx", "jax", "numpy"} <= set(described["versions"])
    json.dumps(described)


def test_a_missing_latency_is_a_dash() -> None:
    result = {"mean_ttft_ms": None, "median_ttft_ms": 1.0, "std_ttft_ms": 0.0, "p99_ttft_ms": 12.5}
    header, row = distribution_table(result, {"ttft": "TTFT"}, [99]).splitlines()
    assert header.split() == ["milliseconds", "mean", "median", "std", "p99"]
    assert row.split() == ["TTFT", "-", "1.00", "0.00", "12.50"]
