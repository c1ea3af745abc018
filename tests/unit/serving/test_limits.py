"""What one request may hold, and that nothing waits while it is found to be too much."""

from __future__ import annotations

import asyncio
import json
import threading

import pytest

from fjx.models.loading.source import resolve
from fjx.models.tokenizer import load_tokenizer
from fjx.serving.config import ServerConfig
from fjx.serving.workers import Workers

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
LONG = 16_000_000
JSON_BODY = {"Content-Type": "application/json"}


@pytest.fixture
def smollm2(llm):
    llm.tokenizer = load_tokenizer(resolve("smollm2-135m"))
    llm.vocab_size = llm.tokenizer.vocab_size
    llm.max_model_len = 8192
    return llm


@pytest.mark.parametrize("text", ["a", " ", "\\u0301", "\\n", "ab c"])
@pytest.mark.parametrize("path", [COMPLETIONS, CHAT, "/tokenize"])
def test_text_that_is_too_long_to_encode_is_refused_by_its_length(call, smollm2, path, text):
    smollm2.tokenizer.encode = None  # never gets there
    count = LONG // len(text)
    inner = '[{"role":"user","content":"%s"}]' if path == CHAT else '"%s"'
    name = "messages" if path == CHAT else "prompt"
    body = f'{{"{name}":{inner % (text * count)}}}'
    response = call("POST", path, content=body, headers=JSON_BODY)
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == name
    assert error["code"] == "context_length_exceeded"
    assert "1048576" in error["message"]


def test_text_that_fits_the_context_is_encoded_however_long(call, smollm2):
    text = " " * 81 * 8000  # the longest token of this vocabulary
    response = call("POST", "/tokenize", json={"prompt": text})
    assert response.json()["count"] < 8192 * 2
    assert smollm2.tokenizer.decode(response.json()["tokens"]) == text


def test_limit_of_text_follows_the_context_or_the_option():
    assert ServerConfig().longest_text(8192) == 1024 * 1024
    assert ServerConfig().longest_text(131072) == 32 * 131072
    assert ServerConfig(max_text_bytes=100).longest_text(131072) == 100


def test_option_limits_text_in_bytes(call):
    config = ServerConfig(max_text_bytes=50)
    assert call("POST", "/tokenize", config, json={"prompt": "é" * 25}).status_code == 200
    response = call("POST", "/tokenize", config, json={"prompt": "é" * 26})
    assert response.status_code == 400
    assert "--max-text-bytes" in response.json()["error"]["message"]


def many(head: str, item: str, count: int, tail: str) -> str:
    return head + ",".join([item] * count) + tail


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (COMPLETIONS, many('{"prompt":[', "1", LONG // 2, "]}")),
        (COMPLETIONS, many('{"prompt":[', "[1]", LONG // 4, "]}")),
        (COMPLETIONS, many('{"prompt":[', '"a"', LONG // 4, "]}")),
        (COMPLETIONS, '{"prompt":' + "[" * LONG),
        (COMPLETIONS, '{"a":' * (LONG // 5)),
        (COMPLETIONS, many('{"prompt":"a","stop":[', '"b"', LONG // 4, "]}")),
        (COMPLETIONS, many('{"prompt":"a","stop_token_ids":[', "1", LONG // 2, "]}")),
        (COMPLETIONS, many('{"prompt":"a","logit_bias":{', '"1":1', LONG // 6, "}}")),
        (CHAT, many('{"messages":[', "{}", LONG // 3, "]}")),
        ("/detokenize", many('{"tokens":[', "1", LONG // 2, "]}")),
        ("/v1/plan", many('{"stages":[', "{}", LONG // 3, "]}")),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else None,
)
def test_json_with_too_much_in_it_is_refused_unread(call, monkeypatch, path, body):
    monkeypatch.setattr("starlette.requests.Request.json", None)
    response = call("POST", path, content=body, headers=JSON_BODY)
    assert response.status_code == 413
    assert response.json()["error"]["code"] == "request_too_large"


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (CHAT, many('{"messages":[', "{}", 18_000, "]}"), "messages[0].role"),
        (COMPLETIONS, many('{"prompt":[', "{}", 18_000, "]}"), "prompt"),
        (
            COMPLETIONS,
            json.dumps({"prompt": "a", "logit_bias": {str(i): "x" for i in range(15_000)}}),
            "logit_bias",
        ),
    ],
    ids=["messages", "prompts", "biases"],
)
def test_body_with_many_errors_is_told_the_first(call, path, body, param):
    response = call("POST", path, content=body, headers=JSON_BODY)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param
    assert len(response.content) < 2000


@pytest.mark.parametrize(
    ("name", "entry", "most"),
    [
        ("stop", "a", 64),
        ("stop_token_ids", 7, 1024),
        ("bad_words", "a", 256),
        ("allowed_token_ids", 7, 258),
    ],
)
@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
def test_lists_of_sampling_have_a_limit(post, path, name, entry, most):
    message = {"role": "user", "content": "a"}
    prompt = {"prompt": "a"} if path == COMPLETIONS else {"messages": [message]}
    assert post(path, **prompt, **{name: [entry] * most}).status_code == 200
    response = post(path, **prompt, **{name: [entry] * (most + 1)})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == name
    assert str(most) in response.json()["error"]["message"]
    assert len(response.content) < 2000


def test_error_shows_only_the_beginning_of_what_was_sent(call):
    for body in ({"prompt": "a", "top_p": "x" * 100_000}, {"prompt": "a", "model": "m" * 100_000}):
        response = call("POST", COMPLETIONS, json=body)
        assert response.status_code in (400, 404)
        assert len(response.content) < 2000


def test_more_prompts_than_may_ever_wait_are_a_400(call, llm):
    response = call("POST", COMPLETIONS, json={"prompt": ["b"] * 2000, "max_tokens": 1})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "prompt"
    assert "2000" in response.json()["error"]["message"]
    assert "1024" in response.json()["error"]["message"]
    assert call("POST", COMPLETIONS, json={"prompt": ["b"] * 1025}).status_code == 400
    assert call("POST", COMPLETIONS, json={"prompt": ["b"] * 513, "n": 2}).status_code == 400
    assert llm.calls == []


def test_first_prompt_that_does_not_fit_ends_the_encoding(call, smollm2):
    encoded = []
    whole = smollm2.tokenizer.encode

    def encode(text, add_special_tokens=True):
        encoded.append(text)
        return whole(text, add_special_tokens)

    smollm2.tokenizer.encode = encode
    prompts = ["fits", "a b " * 9000, "never encoded"]
    assert call("POST", COMPLETIONS, json={"prompt": prompts}).status_code == 400
    assert encoded == prompts[:2]


def test_work_that_nobody_waits_for_is_dropped_if_it_has_not_begun():
    async def run() -> list[str]:
        workers, done, go = Workers(1), [], threading.Event()
        first = asyncio.create_task(workers.run(lambda: (go.wait(30), done.append("first"))))
        second = asyncio.create_task(workers.run(lambda: done.append("second")))
        third = asyncio.create_task(workers.run(lambda: done.append("third")))
        await asyncio.sleep(0.05)
        second.cancel()
        await asyncio.sleep(0.05)
        go.set()
        await asyncio.gather(first, third)
        return done

    assert asyncio.run(run()) == ["first", "third"]


def test_error_in_a_worker_reaches_who_waits_and_the_worker_goes_on():
    async def run() -> int:
        workers = Workers(1)
        with pytest.raises(ZeroDivisionError):
            await workers.run(lambda: 1 // 0)
        return await workers.run(lambda: 42)

    assert asyncio.run(run()) == 42
