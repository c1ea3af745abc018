"""``fjx serve`` as a user starts it, on the embedded model."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import httpx
import openai
import pytest

QUESTION = [{"role": "user", "content": "Name three colours of the rainbow."}]


class Server:
    """A running ``fjx serve`` process."""

    def __init__(self, *further: str) -> None:
        options = ["--port", "0", "--max-model-len", "512", "--max-num-seqs", "4", *further]
        command = [sys.executable, "-m", "fjx", "serve", "--model", "smollm2-135m", *options]
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
        self.log: list[str] = []
        self.url = self._read_until(r"listening on (http://\S+);")
        self.openai = openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0)

    def wait_until_ready(self) -> None:
        self._read_until(r"(ready) in ")

    def stop(self) -> None:
        self.process.kill()
        self.process.communicate()

    def _read_until(self, pattern: str) -> str:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(line)
            if found := re.search(pattern, line):
                return found[1]
        raise AssertionError("the server ended:\n" + "".join(self.log))


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server that is ready; the last test of this module ends it."""
    server = Server()
    try:
        assert httpx.get(f"{server.url}/health").status_code == 200
        assert httpx.get(f"{server.url}/ready").status_code == 503
        server.wait_until_ready()
        yield server
    finally:
        server.stop()


def answer(server: Server, **options: object) -> str:
    chat = server.openai.chat.completions
    reply = chat.create(model="smollm2-135m", messages=QUESTION, max_tokens=24, **options)
    return reply.choices[0].message.content


def test_ready_server_describes_itself(server):
    assert httpx.get(f"{server.url}/ready").status_code == 200
    [model] = server.openai.models.list().data
    assert (model.id, model.max_model_len) == ("smollm2-135m", 512)


def test_the_log_says_what_is_served_in_whole_lines(server):
    log = "".join(server.log)
    assert "\r" not in log
    for said in (
        "model: smollm2-135m (llama, 30 layers) in ",
        "context of 512 tokens",
        "KV memory: ",
        "drafter: ngram+head, up to 8 tokens",
        "plan: 1 stage (cpu:0)",
        "ready in ",
    ):
        assert said in log


def test_streamed_answer_equals_the_whole_one(server):
    stream = server.openai.chat.completions.create(
        model="smollm2-135m",
        messages=QUESTION,
        max_tokens=24,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    *parts, last = list(stream)
    text = "".join(part.choices[0].delta.content or "" for part in parts)
    assert len(parts) > 5
    assert last.usage.completion_tokens <= 24
    assert text == answer(server, temperature=0)


def test_same_seed_same_text(server):
    first, again, other = (answer(server, temperature=0.8, seed=seed) for seed in (7, 7, 8))
    assert first == again != other


def test_logprobs_line_up_with_the_text(server):
    reply = server.openai.completions.create(
        model="smollm2-135m", prompt="The sky is", max_tokens=8, temperature=0, logprobs=2
    )
    [choice] = reply.choices
    assert choice.text.startswith("".join(choice.logprobs.tokens)[:10])
    for token, offset in zip(choice.logprobs.tokens, choice.logprobs.text_offset, strict=True):
        assert choice.text[offset : offset + len(token)] == token
    assert all(value <= 0 for value in choice.logprobs.token_logprobs)


def test_prompt_that_is_too_long_is_refused(server):
    with pytest.raises(openai.BadRequestError, match="512"):
        server.openai.completions.create(model="smollm2-135m", prompt="word " * 600)


def test_client_that_leaves_frees_its_place(server):
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(
            f"{server.url}/v1/completions",
            json={"prompt": "Count:", "max_tokens": 400, "ignore_eos": True},
            timeout=httpx.Timeout(60, read=1.0),
        )
    deadline = time.monotonic() + 10
    while running_requests(server):
        assert time.monotonic() < deadline, "the request still runs"
        time.sleep(0.1)


def running_requests(server: Server) -> float:
    text = httpx.get(f"{server.url}/metrics").text
    found = re.search(r"^fjx:num_requests_running\{.*\} (\S+)$", text, re.MULTILINE)
    assert found is not None
    return float(found[1])


def test_nothing_was_compiled_on_the_hot_path(server):
    text = httpx.get(f"{server.url}/metrics").text
    assert re.search(r'^fjx:compile_total\{.*where="hot_path"\} 0\.0$', text, re.MULTILINE)


def test_sigterm_lets_a_stream_finish(server):
    stream = server.openai.completions.create(
        model="smollm2-135m",
        prompt="Count:",
        max_tokens=60,
        stream=True,
        extra_body={"ignore_eos": True},
    )
    chunks = iter(stream)
    next(chunks)
    server.process.send_signal(signal.SIGTERM)
    *_, last = list(chunks)
    assert last.choices[0].finish_reason == "length"
    assert server.process.wait(120) == 0
