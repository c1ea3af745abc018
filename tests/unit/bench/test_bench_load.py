import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from fjx.bench.config import LoadConfig
from fjx.bench.load import load_table, plan_requests, run_load
from fjx.errors import UserError


def run(server: Any, **options: Any) -> dict[str, Any]:
    defaults = {"warmup_requests": 0, "num_prompts": 1, "detailed": True}
    config = LoadConfig(base_url=server.url, **(defaults | options))
    return asyncio.run(run_load(config))


def completion(text: str, finish_reason: str | None = None) -> dict[str, Any]:
    return {"choices": [{"index": 0, "text": text, "finish_reason": finish_reason}]}


def chat(delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}]}


def usage(prompt: int, output: int) -> dict[str, Any]:
    return {"choices": [], "usage": {"prompt_tokens": prompt, "completion_tokens": output}}


def test_tokens_and_times_of_a_run(fake_server: Any) -> None:
    fake_server.script = lambda body: [
        0.1, completion("a"), 0.05, completion("b"), 0.05, completion("c", "length"),
        0.2, usage(8, 3), "data: [DONE]",
    ]  # fmt: skip
    result = run(fake_server, num_prompts=3, input_len=8)
    assert (result["completed"], result["failed"], result["model"]) == (3, 0, "fake-model")
    assert (result["total_input_tokens"], result["total_output_tokens"]) == (24, 9)
    for request in result["requests"]:
        assert request["ttft"] >= 0.1
        assert len(request["itl"]) == 2
        # The end is the last token, not the usage chunk 0.2 s later.
        assert request["e2el"] == pytest.approx(request["ttft"] + sum(request["itl"]))
        assert request["tpot"] == pytest.approx(sum(request["itl"]) / 2)
    assert "Output tokens/s" in load_table(result, (50.0, 90.0, 95.0, 99.0))


def test_a_role_and_an_empty_last_chunk_are_no_tokens(fake_server: Any) -> None:
    fake_server.script = lambda body: [
        chat({"role": "assistant", "content": ""}), 0.1, chat({"content": "a"}),
        chat({"content": "b"}), chat({}, "stop"), "data: [DONE]",
    ]  # fmt: skip
    (request,) = run(fake_server, endpoint="chat")["requests"]
    assert request["ttft"] >= 0.1
    assert len(request["itl"]) == 1
    assert request["finish_reason"] == "stop"


def test_without_usage_chunks_are_counted(fake_server: Any) -> None:
    fake_server.script = lambda body: [completion("a"), completion("b", "stop"), "data: [DONE]"]
    assert run(fake_server)["total_output_tokens"] == 2


def test_comments_and_empty_events_are_skipped(fake_server: Any) -> None:
    fake_server.script = lambda body: [": ping", "event: x", completion("a", "stop"), usage(1, 1)]
    assert run(fake_server)["completed"] == 1


def test_an_answer_of_no_text_is_complete(fake_server: Any) -> None:
    fake_server.script = lambda body: [completion("", "stop"), usage(5, 1), "data: [DONE]"]
    (request,) = run(fake_server)["requests"]
    assert request["error"] is None
    assert request["ttft"] == request["e2el"]


@pytest.mark.parametrize(
    ("events", "error"),
    [
        ([503, '{"error": {"message": "overloaded"}}'], "HTTP 503: overloaded"),
        ([500, "not json"], "HTTP 500: not json"),
        ([completion("a"), {"error": {"message": "engine died"}}], "engine died"),
        ([completion("a")], "the stream ended without a finish reason"),
        ([], "the stream ended without a finish reason"),
        (["data: {broken"], "an event is not JSON: {broken"),
    ],
)
def test_failures_are_counted_with_their_error(
    fake_server: Any, events: list[Any], error: str
) -> None:
    fake_server.script = lambda body: list(events)
    result = run(fake_server, num_prompts=2)
    assert (result["completed"], result["failed"]) == (0, 2)
    assert result["first_error"].strip() == error
    assert error in load_table(result, (50.0, 90.0, 95.0, 99.0))


def test_max_concurrency_limits_requests_in_flight(fake_server: Any) -> None:
    fake_server.script = lambda body: [0.1, completion("a", "stop")]
    result = run(fake_server, num_prompts=6, max_concurrency=2)
    assert fake_server.max_in_flight == 2
    # The wait for the limit is the client's, and not part of the latency.
    assert result["requests"][-1]["start"] >= 0.2
    assert result["median_e2el_ms"] < 200


def test_requests_arrive_on_their_own_schedule(fake_server: Any) -> None:
    fake_server.script = lambda body: [0.3, completion("a", "stop")]
    result = run(fake_server, num_prompts=5, request_rate=50.0)
    for request in result["requests"]:
        assert request["start"] == pytest.approx(request["scheduled"], abs=0.05)
    assert fake_server.max_in_flight == 5


def test_a_trace_is_replayed(fake_server: Any, tmp_path: Path) -> None:
    trace = tmp_path / "t.csv"
    trace.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:15:46.0,20,4\n2023-11-16 18:15:50.0,10,2\n"
    )
    result = run(fake_server, trace=trace, num_prompts=None, time_scale=0.05, ignore_eos=True)
    assert [request["output_tokens"] for request in result["requests"]] == [4, 2]
    assert result["requests"][1]["start"] == pytest.approx(0.2, abs=0.05)
    bodies = [body for _, body, _ in fake_server.requests]
    assert [len(body["prompt"]) for body in bodies] == [20, 10]
    assert all(body["ignore_eos"] for body in bodies)


def test_requests_carry_what_was_asked_for(
    fake_server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    prompts = tmp_path / "p.jsonl"
    prompts.write_text(json.dumps({"messages": [{"role": "user", "content": "hi"}]}) + "\n")
    fake_server.script = lambda body: [chat({"content": "a"}, "stop")]
    run(
        fake_server,
        endpoint="chat",
        dataset=str(prompts),
        model="m",
        max_tokens=7,
        temperature=0.5,
        seed=3,
    )
    ((path, body, headers),) = fake_server.requests
    assert path == "/v1/chat/completions"
    assert headers["Authorization"] == "Bearer secret"
    assert body == {
        "model": "m",
        "messages": [{"role": "user", "content": "hi"}],
        "max_tokens": 7,
        "temperature": 0.5,
        "seed": 3,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_warm_up_requests_are_not_part_of_the_result(fake_server: Any) -> None:
    result = run(fake_server, warmup_requests=2, num_prompts=3)
    assert len(fake_server.requests) == 5
    assert result["completed"] == 3


def test_a_failed_warm_up_ends_the_run(fake_server: Any) -> None:
    fake_server.script = lambda body: [404, '{"error": {"message": "no such model"}}']
    with pytest.raises(UserError, match=r"warm-up .* HTTP 404: no such model"):
        run(fake_server, warmup_requests=1)


def test_no_server_is_an_error_that_says_so() -> None:
    with pytest.raises(UserError, match=r"no server answers at http://127.0.0.1:9"):
        asyncio.run(run_load(LoadConfig(base_url="http://127.0.0.1:9")))
    with pytest.raises(UserError, match="is not an address"):
        asyncio.run(run_load(LoadConfig(base_url="http://[")))


def test_messages_need_the_chat_endpoint(tmp_path: Path) -> None:
    prompts = tmp_path / "p.jsonl"
    prompts.write_text('{"messages": [{"role": "user", "content": "hi"}]}\n')
    with pytest.raises(UserError, match="use --endpoint chat"):
        plan_requests(LoadConfig(dataset=str(prompts)))


@pytest.mark.parametrize(
    "options",
    [
        {"base_url": "localhost:8000"},
        {"burstiness": 0.0},
        {"request_rate": 0.0},
        {"percentiles": (101.0,)},
        {"trace": Path("t.csv"), "request_rate": 1.0},
        {"trace": Path("t.csv"), "dataset": "p.jsonl"},
        {"max_concurrency": 0},
        {"warmup_requests": -1},
    ],
)
def test_options_out_of_range_are_named(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(reversed(options))):
        LoadConfig(**options)
