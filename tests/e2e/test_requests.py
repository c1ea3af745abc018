"""Requests of all kinds to one server with the real model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.e2e.test_server import Server
from tests.http_cases import CHATS, COMPLETIONS, FIELDS, NUMBERS, TEXT, USER


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    server = Server(
        *("--kv-cache-memory", "0.1", "--max-num-batched-tokens", "64", "--drafter", "off")
    )
    try:
        server.wait_until_ready()
        yield server.url
    finally:
        server.stop()


@pytest.fixture
def post(url: str) -> Any:
    """The answer to a JSON body: ``post("/v1/completions", prompt="Hi")``."""

    def send(path: str, **body: Any) -> dict[str, Any]:
        response = httpx.post(f"{url}{path}", json=body, timeout=300)
        assert response.status_code == 200, response.text
        return response.json()

    return send


@pytest.mark.parametrize("case", [*NUMBERS, *FIELDS], ids=lambda case: case[0])
def test_request_that_breaks_servers(url, post, case):
    _, method, path, body, right = case
    response = httpx.request(
        method,
        f"{url}{path}",
        content=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
        timeout=300,
    )
    assert response.status_code in right, response.text
    assert post(COMPLETIONS, **TEXT)["choices"][0]["finish_reason"] == "length"


def scored(post: Any, prompt: Any, **fields: Any) -> dict[str, Any]:
    """Log-probabilities of a prompt as lm-eval asks for them."""
    answer = post(
        COMPLETIONS,
        prompt=prompt,
        **{"max_tokens": 1, "temperature": 0, "logprobs": 1, "echo": True, "seed": 1234, **fields},
    )
    return answer["choices"][0]["logprobs"]


def test_prompt_has_the_logprobs_that_it_had_when_it_was_generated(post):
    prompt = post("/tokenize", prompt="The sky is blue because")["tokens"]
    made = post(
        COMPLETIONS, prompt=prompt, max_tokens=8, temperature=0, logprobs=1, return_token_ids=True
    )["choices"][0]
    again = scored(post, prompt + made["token_ids"])
    begin, end = len(prompt), len(prompt) + 8
    assert again["tokens"][begin:end] == made["logprobs"]["tokens"]
    assert again["token_logprobs"][begin:end] == pytest.approx(
        made["logprobs"]["token_logprobs"], abs=1e-3
    )
    assert again["token_logprobs"][0] is again["top_logprobs"][0] is None
    # They were chosen as the likeliest ones: that is how lm-eval finds out.
    for own, top in zip(
        again["token_logprobs"][begin:end], again["top_logprobs"][begin:end], strict=True
    ):
        assert own == max(top.values())


def test_likelier_ending_scores_higher(post):
    def total(ending: str) -> float:
        context = post("/tokenize", prompt="The capital of France is")["tokens"]
        ids = context + post("/tokenize", prompt=ending, add_special_tokens=False)["tokens"]
        return sum(scored(post, ids)["token_logprobs"][len(context) : -1])

    assert total(" Paris") > total(" banana")


def test_scores_are_the_same_in_both_shapes_and_with_and_without_tokens(post):
    ids = post("/tokenize", prompt="One, two, three, four")["tokens"]
    legacy = scored(post, ids, max_tokens=0)["token_logprobs"]
    assert len(legacy) == len(ids)
    assert scored(post, ids)["token_logprobs"][:-1] == pytest.approx([None, *legacy[1:]], abs=1e-3)
    [choice] = post(COMPLETIONS, prompt=ids, max_tokens=0, prompt_logprobs=0)["choices"]
    scores = choice["prompt_logprobs"][1:]
    by_id = [each[str(id)]["logprob"] for each, id in zip(scores, ids[1:], strict=True)]
    assert by_id == pytest.approx(legacy[1:], abs=1e-3)


def test_offsets_of_an_echoed_text_are_where_its_tokens_are(post):
    text = "Ein Café, zwei 🙂 und  drei."
    [choice] = post(COMPLETIONS, prompt=text, max_tokens=4, logprobs=0, echo=True)["choices"]
    logprobs = choice["logprobs"]
    assert choice["text"].startswith(text)
    for token, offset in zip(logprobs["tokens"], logprobs["text_offset"], strict=True):
        if not token.startswith("bytes:") and choice["text"][offset:]:
            assert choice["text"][offset:].startswith(token)


def test_only_allowed_tokens_come(post):
    allowed = post("/tokenize", prompt=" yes no", add_special_tokens=False)["tokens"]
    [choice] = post(
        COMPLETIONS, prompt="Is it?", max_tokens=6, allowed_token_ids=allowed, return_token_ids=True
    )["choices"]
    assert set(choice["token_ids"]) <= set(allowed)


def test_bad_words_do_not_come(post):
    body = {"prompt": "One, two, three, four,", "max_tokens": 6, "temperature": 0}
    [plain] = post(COMPLETIONS, **body)["choices"]
    word = plain["text"].split(",")[0].strip()
    [without] = post(COMPLETIONS, **body, bad_words=[word])["choices"]
    assert word in plain["text"]
    assert not without["text"].strip().startswith(word)


def test_requests_of_other_salts_share_no_pages(post):
    def cached(salt: str | None) -> int:
        prompt = "Colours of the rainbow, one after the other, from the outside in. " * 4
        usage = post(COMPLETIONS, prompt=prompt, max_tokens=1, cache_salt=salt)["usage"]
        return usage["prompt_tokens_details"]["cached_tokens"]

    assert cached("a") == 0
    assert cached("a") > 0
    assert cached("b") == 0
    assert cached(None) == 0


def test_token_ids_are_those_of_the_text(post):
    [choice] = post(COMPLETIONS, prompt="The sky", max_tokens=8, return_token_ids=True)["choices"]
    text = post("/v1/detokenize", tokens=choice["prompt_token_ids"] + choice["token_ids"])
    assert text["prompt"] == "The sky" + choice["text"]


def test_tokenizer_of_a_remote_client(url, post):
    info = httpx.get(f"{url}/tokenizer_info").json()
    assert info["eos_token"] == "<|im_end|>"
    assert "im_start" in info["chat_template"]
    for name in ("bos_token", "eos_token"):
        ids = post("/tokenize", prompt=info[name], add_special_tokens=False)["tokens"]
        assert len(ids) == 1


def test_history_of_tool_calls_is_in_the_prompt(post):
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    messages = [
        *USER,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "forty-two"},
    ]
    ids = post("/tokenize", messages=messages)["tokens"]
    assert "tool\nforty-two<|im_end|>" in post("/detokenize", tokens=ids)["prompt"]
    assert post(CHATS, messages=messages, max_tokens=2)["usage"]["prompt_tokens"] == len(ids)


def test_metrics_know_the_engine(url):
    text = httpx.get(f"{url}/metrics").text
    assert 'fjx:cache_config_info{block_size="16",' in text
    assert 'num_gpu_blocks="0"' not in text
    for name in ("iteration_tokens_total_count", "request_num_preemptions_count"):
        [value] = [line.split()[-1] for line in text.splitlines() if line.startswith(f"fjx:{name}")]
        assert float(value) > 0
    assert "process_resident_memory_bytes" in text


def test_prefilled_answer_is_continued_where_it_ends(post):
    messages = [*USER, {"role": "assistant", "content": "One, two,"}]
    ids = post("/tokenize", messages=messages, continue_final_message=True)["tokens"]
    assert post("/detokenize", tokens=ids)["prompt"].endswith("assistant\nOne, two,")
    body = {"messages": messages, "continue_final_message": True, "echo": True, "max_tokens": 4}
    answer = post(CHATS, **body)
    assert answer["usage"]["prompt_tokens"] == len(ids)
    assert answer["choices"][0]["message"]["content"].startswith("One, two,")
