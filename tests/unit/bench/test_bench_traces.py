import json
from pathlib import Path

import numpy as np
import pytest

from fjx.bench.traces import TraceEntry, read_trace, replay
from fjx.errors import UserError

SHARED = Path(__file__).parents[3] / ".." / "shared" / "data" / "traces"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data/traces is not there")


def azure(tmp_path: Path, *rows: str) -> Path:
    path = tmp_path / "azure.csv"
    path.write_text("\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *rows]) + "\n")
    return path


def replay_all(entries: list[TraceEntry], **options: object) -> list:
    defaults = {
        "time_scale": 1.0,
        "length_scale": 1.0,
        "max_tokens": None,
        "text": False,
        "seed": 0,
    }
    return replay(entries, **(defaults | options))  # type: ignore[arg-type]


def test_an_azure_trace_begins_at_zero(tmp_path: Path) -> None:
    path = azure(
        tmp_path, "2023-11-16 18:15:46.6805900,374,44", "2023-11-16 18:15:50.9951690,396,109"
    )
    first, second = read_trace(path)
    assert (first.arrival, first.input_length, first.output_length) == (0.0, 374, 44)
    assert second.arrival == pytest.approx(4.314579, abs=1e-5)


def test_a_mooncake_trace_is_in_milliseconds(tmp_path: Path) -> None:
    path = tmp_path / "mooncake.jsonl"
    row = {"timestamp": 1000, "input_length": 600, "output_length": 6, "hash_ids": [0, 1]}
    path.write_text(json.dumps(row) + "\n" + json.dumps(row | {"timestamp": 1500}) + "\n")
    assert read_trace(path) == [TraceEntry(0.0, 600, 6, (0, 1)), TraceEntry(0.5, 600, 6, (0, 1))]


def test_a_broken_trace_names_the_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"line 3: .*'many'"):
        read_trace(azure(tmp_path, "2023-11-16 18:15:46,1,2", "2023-11-16 18:15:47,many,2"))
    (tmp_path / "other.csv").write_text("TIMESTAMP,ContextTokens\n")
    with pytest.raises(UserError, match="lacks the column GeneratedTokens"):
        read_trace(tmp_path / "other.csv")
    (tmp_path / "mooncake.jsonl").write_text('{"timestamp": 0, "input_length": 1}\n')
    with pytest.raises(UserError, match="line 1: lacks the key 'output_length'"):
        read_trace(tmp_path / "mooncake.jsonl")
    with pytest.raises(UserError, match="unknown format"):
        read_trace(tmp_path / "trace.parquet")
    with pytest.raises(UserError, match="holds no requests"):
        read_trace(azure(tmp_path))


def test_more_requests_than_the_trace_holds_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"num_prompts is 5, but .* holds 1 request"):
        read_trace(azure(tmp_path, "2023-11-16 18:15:46,1,2"), 5)


def test_scales_act_on_times_and_lengths() -> None:
    (request,) = replay_all([TraceEntry(4.0, 100, 40)], time_scale=0.5, length_scale=0.1)
    assert (request.arrival, len(request.prompt), request.max_tokens) == (2.0, 10, 4)


def test_lengths_stay_at_least_one_and_output_below_the_limit() -> None:
    short, long = replay_all(
        [TraceEntry(0, 3, 2), TraceEntry(0, 100, 90)], length_scale=0.1, max_tokens=5
    )
    assert (len(short.prompt), short.max_tokens) == (1, 1)
    assert long.max_tokens == 5


@pytest.mark.parametrize("text", [False, True])
def test_shared_blocks_become_shared_prefixes_and_nothing_else(text: bool) -> None:
    entries = [
        TraceEntry(0, 1100, 1, (7, 8, 9)),
        TraceEntry(0, 1100, 1, (7, 8, 10)),
        TraceEntry(0, 1100, 1),
    ]
    prompts = [
        r.prompt.split() if text else list(r.prompt)
        for r in replay_all(entries, length_scale=0.5, text=text)
    ]
    assert [len(prompt) for prompt in prompts] == [550, 550, 550]
    assert prompts[0][:512] == prompts[1][:512]
    assert prompts[0][512:] != prompts[1][512:]
    assert prompts[0][:16] != prompts[2][:16]


@needs_shared
def test_the_real_azure_trace_keeps_its_facts() -> None:
    entries = read_trace(SHARED / "azure_llm_2023_conv.csv")
    arrivals = np.array([entry.arrival for entry in entries])
    assert len(entries) == 19_366
    assert np.percentile([entry.input_length for entry in entries], 50) == 1020
    intervals = np.diff(arrivals)
    assert intervals.std() / intervals.mean() == pytest.approx(1.09, abs=0.01)


@needs_shared
def test_the_real_mooncake_trace_keeps_its_block_reuse() -> None:
    entries = read_trace(SHARED / "mooncake_synthetic.jsonl.xz")
    blocks = [block for entry in entries for block in entry.hash_ids]
    assert len(entries) == 3_993
    assert 1 - len(set(blocks)) / len(blocks) == pytest.approx(0.64, abs=0.01)
