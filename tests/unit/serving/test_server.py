"""What only a socket shows: streaming, clients that leave, the official client."""

from __future__ import annotations

import http.client
import json
import logging
import threading
import time

import httpx
import openai
import pytest

from fjx import QueueFullError

USER = [{"role": "user", "content": "Hi"}]


def test_openai_client_streams_a_chat_as_it_is_made(served, llm):
    llm.token_seconds = 0.02
    stream = served.openai.chat.completions.create(
        model="tiny", messages=USER, stream=True, stream_options={"include_usage": True}
    )
    chunks, times = [], []
    for chunk in stream:
        chunks.append(chunk)
        times.append(time.monotonic())
    *parts, last = chunks
    assert parts[0].choices[0].delta.role == "assistant"
    assert "".join(part.choices[0].delta.content or "" for part in parts) == "Hello"
    assert [p.choices[0].finish_reason for p in parts] == [None] * (len(parts) - 1) + ["stop"]
    assert last.choices == []
    assert last.usage.completion_tokens == 6
    assert times[-1] - times[0] > 0.06, "the chunks came all at once"


@pytest.mark.parametrize("stream", [False, True])
def test_openai_client_reads_what_speculation_brought(served, llm, stream):
    options = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}

    def usage():
        answer = served.openai.chat.completions.create(
            model="tiny",
            messages=USER,
            extra_body={"speculative": {"max_draft_tokens": 4}},
            **options,
        )
        return [*answer][-1].usage if stream else answer.usage

    assert usage().completion_tokens_details is None
    llm.drafted, llm.accepted = 4, 2  # six tokens in two steps
    assert usage().completion_tokens == 6
    details = usage().completion_tokens_details
    assert details.accepted_prediction_tokens == 4
    assert details.rejected_prediction_tokens == 4
    assert llm.calls[-1].params.max_draft_tokens == 4


def test_openai_client_streams_several_choices(served):
    stream = served.openai.chat.completions.create(model="tiny", messages=USER, n=2, stream=True)
    texts, ends = {0: "", 1: ""}, {}
    for chunk in stream:
        [choice] = chunk.choices
        texts[choice.index] += choice.delta.content or ""
        ends[choice.index] = choice.finish_reason
        assert chunk.usage is None
    assert texts == {0: "Hello0", 1: "Hello1"}
    assert ends == {0: "stop", 1: "stop"}


def test_openai_client_reads_logprobs(served):
    answer = served.openai.chat.completions.create(
        model="tiny", messages=USER, logprobs=True, top_logprobs=1
    )
    assert [token.token for token in answer.choices[0].logprobs.content] == [*"Hello", "<eos>"]
    answer = served.openai.completions.create(model="tiny", prompt="Hi", logprobs=1)
    assert answer.choices[0].logprobs.text_offset == [0, 1, 2, 3, 4, 5]


def test_openai_client_raises_its_own_errors(served, llm):
    with pytest.raises(openai.NotFoundError):
        served.openai.models.retrieve("other")
    with pytest.raises(openai.BadRequestError, match="context"):
        served.openai.completions.create(model="tiny", prompt=[65] * 200)
    llm.refuse = QueueFullError("full", retry_after=1.0)
    with pytest.raises(openai.RateLimitError) as refused:
        served.openai.chat.completions.create(model="tiny", messages=USER, stream=True)
    assert refused.value.response.headers["retry-after"] == "1"


def test_openai_client_sees_an_error_that_comes_late(served, llm):
    llm.fail_after = 2
    stream = served.openai.chat.completions.create(model="tiny", messages=USER, stream=True)
    with pytest.raises(openai.APIError, match="engine"):
        list(stream)


@pytest.mark.parametrize("stream", [False, True])
def test_client_that_leaves_aborts_its_request(served, llm, stream):
    llm.reply, llm.token_seconds = "x" * 80, 0.25
    client = http.client.HTTPConnection(served.url.removeprefix("http://"))
    body = json.dumps({"prompt": "Hi", "max_tokens": 80, "stream": stream})
    client.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
    served.wait_until(lambda: llm.calls)
    if stream:
        client.getresponse().fp.readline()
    client.sock.close()
    client.close()
    served.wait_until(lambda: llm.aborted == [llm.calls[0].request_id], seconds=10.0)


def test_client_that_leaves_before_the_first_token_aborts_its_request(served, llm):
    llm.token_seconds = 30
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(
            f"{served.url}/v1/completions",
            json={"prompt": "Hi", "stream": True},
            timeout=httpx.Timeout(60, read=0.2),
        )
    served.wait_until(lambda: llm.aborted)


def test_client_that_stays_aborts_nothing(served, llm):
    for stream in (False, True):
        httpx.post(f"{served.url}/v1/completions", json={"prompt": "Hi", "stream": stream})
    assert len(llm.calls) == 2
    assert llm.aborted == []


def test_upload_that_is_too_large_is_answered(served):
    response = httpx.post(f"{served.url}/v1/completions", content=b"x" * 20_000_000)
    assert response.status_code == 413


def test_streams_go_on_while_a_long_prompt_is_encoded(served, llm, monkeypatch):
    llm.reply, llm.token_seconds, llm.max_model_len = "x" * 40, 0.01, 1_000_000
    encode, begun, streamed = llm.tokenizer.encode, threading.Event(), threading.Event()
    waited = []

    def slow_encode(text, add_special_tokens=True):
        if len(text) > 100_000:
            begun.set()
            waited.append(streamed.wait(30.0))
        return encode(text, add_special_tokens)

    monkeypatch.setattr(llm.tokenizer, "encode", slow_encode)
    stream = served.openai.completions.create(model="tiny", prompt="Hi", stream=True, max_tokens=40)
    iterator = iter(stream)
    next(iterator)
    with httpx.Client(timeout=httpx.Timeout(60, read=1.0)) as client:
        with pytest.raises(httpx.ReadTimeout):
            client.post(f"{served.url}/v1/completions", json={"prompt": "y" * 200_000})
        assert begun.wait(30.0)
        list(iterator)
        assert not waited, "the stream went on only when the prompt was encoded"
        streamed.set()


def test_finished_requests_are_logged_in_one_line(served, caplog):
    with caplog.at_level(logging.INFO, logger="fjx.server"):
        httpx.post(f"{served.url}/v1/completions", json={"prompt": "Hi"})
        served.wait_until(lambda: caplog.records)
    [record] = [record for record in caplog.records if record.name == "fjx.server"]
    message = record.getMessage()
    assert "stop: 3 prompt + 6 output tokens" in message
    assert "\n" not in message
