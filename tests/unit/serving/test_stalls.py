"""The event loop's longest stretch of work under the heaviest requests that are not refused unread.

Measured in processor time of the loop's thread, so that a busy machine does not matter.
"""

from __future__ import annotations

import asyncio
import gc
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import httpx
import pytest

from fjx.models.chat_template import ChatTemplate
from fjx.models.loading.source import resolve
from fjx.models.tokenizer import load_tokenizer
from fjx.serving.app import create_app
from fjx.serving.bodies import read_json
from fjx.serving.config import ServerConfig
from fjx.serving.responses import (
    ChatLogprobs,
    ChatTokenLogprob,
    CompletionChoice,
    CompletionLogprobs,
    PromptLogprob,
    TopLogprob,
    written,
)
from tests.unit.serving.fake_llm import FakeLLM

Result = TypeVar("Result")

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
LARGE = 16_000_000
WEIGHT = 395_000
TEXT = 1_048_000
MAX_SECONDS = 0.15
"""Several times what any of them takes; without their limits they take seconds, up to 87."""


def many(head: str, item: str, count: int, tail: str) -> str:
    return head + ",".join([item] * count) + tail


def longest_stretch(llm: FakeLLM, path: str, body: bytes) -> tuple[float, httpx.Response]:
    """Seconds of the loop's processor time between two of its rounds, and the answer."""

    async def run() -> tuple[float, httpx.Response]:
        longest, last, done = 0.0, time.thread_time(), False

        async def watch() -> None:
            nonlocal longest, last
            while not done:
                await asyncio.sleep(0)
                now = time.thread_time()
                longest, last = max(longest, now - last), now

        transport = httpx.ASGITransport(create_app(llm, ServerConfig()))
        async with httpx.AsyncClient(transport=transport, base_url="http://fjx") as client:
            request = client.build_request(
                "POST", path, content=body, headers={"Content-Type": "application/json"}
            )
            last = time.thread_time()
            watching = asyncio.create_task(watch())
            response = await client.send(request)
            done = True
            await watching
        return longest, response

    return asyncio.run(run())


@pytest.fixture(scope="module")
def tokenizer() -> Iterator[Any]:
    tokenizer = load_tokenizer(resolve("smollm2-135m"))
    gc.freeze()  # as the engine does: the collector looks at requests, not at all of JAX
    yield tokenizer
    gc.unfreeze()


@pytest.fixture
def smollm2(llm: FakeLLM, tokenizer: Any) -> FakeLLM:
    llm.tokenizer, llm.vocab_size, llm.max_model_len = tokenizer, tokenizer.vocab_size, 8192
    return llm


def turns_while(work: Callable[[], Result]) -> tuple[int, Result]:
    """How often another thread gets its turn while one works, and the result."""
    with ThreadPoolExecutor(1) as pool:
        working, turns = pool.submit(work), 0
        while not working.done():
            time.sleep(0.001)
            turns += 1
    return turns, working.result()


def of_chat() -> ChatLogprobs:
    top = [TopLogprob(token="a", logprob=-1.0, bytes=[97])] * 20
    token = ChatTokenLogprob(token="a", logprob=-1.0, bytes=[97], top_logprobs=top)
    return ChatLogprobs(content=[token] * 20_000)


def of_completion() -> CompletionLogprobs:
    top = {str(token): -1.0 for token in range(20)}
    return CompletionLogprobs(
        tokens=["a"] * 50_000,
        token_logprobs=[-1.0] * 50_000,
        top_logprobs=[top] * 50_000,
        text_offset=[0] * 50_000,
    )


def of_prompt() -> CompletionChoice:
    token = PromptLogprob(logprob=-1.0, rank=1, decoded_token="a")
    return CompletionChoice(
        index=0, text="", prompt_logprobs=[dict.fromkeys(range(20), token)] * 20_000
    )


@pytest.mark.parametrize("make", [of_chat, of_completion, of_prompt])
def test_other_threads_run_while_a_large_answer_is_written(make):
    answer = make()
    turns, text = turns_while(lambda: written(answer))
    assert turns > 3
    assert json.loads(text) == answer.model_dump(mode="json")


def test_other_threads_run_while_numbers_are_read():
    turns, value = turns_while(
        lambda: read_json(b"[" + b"1.2345678901234567e-200," * 99_999 + b"7]")
    )
    assert turns > 3
    assert value == [1.2345678901234567e-200] * 99_999 + [7]


def test_chat_template_without_an_end_does_not_keep_the_event_loop(llm):
    loops = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    template = ChatTemplate(loops)
    llm.tokenizer.apply_chat_template = lambda messages, **_: template.render(messages, {})
    body = json.dumps({"messages": [{"role": "user", "content": "a"}]}).encode()
    seconds, response = longest_stretch(llm, CHAT, body)
    assert response.status_code == 400
    assert "takes too much" in response.json()["error"]["message"]
    assert seconds < MAX_SECONDS


CASES = {
    "text of 16 MB": (COMPLETIONS, {"prompt": "a" * LARGE}, 400),
    "text of 16 MB to tokenize": ("/tokenize", {"prompt": " " * LARGE}, 400),
    "longest word": ("/tokenize", {"prompt": "a" * TEXT}, 200),
    "longest run of accents": ("/tokenize", {"prompt": "\u0301" * (TEXT // 2)}, 200),
    "longest text with strings": (
        "/tokenize",
        {"prompt": "ab \n" * (TEXT // 4), "return_token_strs": True},
        200,
    ),
    "longest prompt": (COMPLETIONS, {"prompt": "a b " * (TEXT // 4)}, 400),
    "numbers": (COMPLETIONS, many('{"prompt":[', "1", LARGE // 2, "]}"), 413),
    "messages": (CHAT, many('{"messages":[', "{}", LARGE // 3, "]}"), 413),
    "escapes": (COMPLETIONS, '{"prompt":"' + "\\u00e9" * (LARGE // 6), 400),
    "most numbers": (COMPLETIONS, many('{"prompt":[', "1", WEIGHT - 30, "]}"), 400),
    "most lists": (COMPLETIONS, many('{"prompt":[', "[1]", WEIGHT // 21 - 10, "]}"), 400),
    "most messages": (CHAT, many('{"messages":[', "{}", WEIGHT // 21 - 10, "]}"), 400),
    "most ids": ("/detokenize", many('{"tokens":[', "300", WEIGHT - 30, "]}"), 200),
    "most biases": (
        COMPLETIONS,
        {"prompt": "a", "logit_bias": {str(i): "x" for i in range(WEIGHT // 25 - 10)}},
        400,
    ),
    "most stop strings": (
        COMPLETIONS,
        many('{"prompt":"a","stop":[', '"z"', WEIGHT // 5 - 20, "]}"),
        400,
    ),
    "most stop ids": (
        COMPLETIONS,
        many('{"prompt":"a","stop_token_ids":[', "7", WEIGHT - 60, "]}"),
        400,
    ),
    "longest conversation": (
        CHAT,
        many('{"messages":[', '{"role":"user","content":""}', WEIGHT // 70 - 10, "]}"),
        400,
    ),
    "slowest numbers": (
        COMPLETIONS,
        many('{"prompt":[', "1.2345678901234567e-200", WEIGHT - 30, "]}"),
        400,
    ),
    "half a surrogate pair": (
        COMPLETIONS,
        '{"prompt":"' + "\\ud83d\\ude00" * (LARGE // 13) + '\\ud83d"}',
        400,
    ),
    "longest unknown field": (COMPLETIONS, {"prompt": "a", "x" * LARGE: 1}, None),
}


@pytest.mark.parametrize(("path", "body", "status"), CASES.values(), ids=CASES)
def test_no_request_keeps_the_event_loop(smollm2, path, body, status):
    content = (body if isinstance(body, str) else json.dumps(body)).encode()
    seconds, response = longest_stretch(smollm2, path, content)
    assert status is None or response.status_code == status
    assert seconds < MAX_SECONDS
