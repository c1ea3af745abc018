from __future__ import annotations

import gzip

import pytest

from fjx import EngineDeadError, QueueFullError, RequestError
from fjx.serving.config import ServerConfig

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
USER = [{"role": "user", "content": "Hi"}]


def error_of(response, status):
    """The error object, after checking its shape."""
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    return error


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        (COMPLETIONS, {}, "prompt"),
        (COMPLETIONS, {"prompt": 5}, "prompt"),
        (COMPLETIONS, {"prompt": {"text": "Hi"}}, "prompt"),
        (COMPLETIONS, {"prompt": ["Hi", 5]}, "prompt"),
        (COMPLETIONS, {"prompt": [[1], ["Hi"]]}, "prompt"),
        (COMPLETIONS, {"prompt": []}, "prompt"),
        (COMPLETIONS, {"prompt": [[]]}, "prompt"),
        (COMPLETIONS, {"prompt": [65, 258]}, "prompt"),
        (COMPLETIONS, {"prompt": [-1]}, "prompt"),
        (COMPLETIONS, {"prompt": "Hi", "max_tokens": "5"}, "max_tokens"),
        (COMPLETIONS, {"prompt": "Hi", "max_tokens": -1}, "max_tokens"),
        (COMPLETIONS, {"prompt": "Hi", "max_tokens": 10**4000}, "max_tokens"),
        (COMPLETIONS, {"prompt": "Hi", "prompt_logprobs": 21}, "prompt_logprobs"),
        (COMPLETIONS, {"prompt": "Hi", "prompt_logprobs": 1, "stream": True}, "prompt_logprobs"),
        (COMPLETIONS, {"prompt": "Hi", "allowed_token_ids": [258]}, "allowed_token_ids"),
        (COMPLETIONS, {"prompt": "Hi", "allowed_token_ids": []}, "allowed_token_ids"),
        (COMPLETIONS, {"prompt": "Hi", "bad_words": "x"}, "bad_words"),
        (COMPLETIONS, {"prompt": "Hi", "bad_words": [""]}, "bad_words"),
        (COMPLETIONS, {"prompt": "Hi", "truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
        (COMPLETIONS, {"prompt": "Hi", "truncate_prompt_tokens": -2}, "truncate_prompt_tokens"),
        (COMPLETIONS, {"prompt": "Hi", "cache_salt": ""}, "cache_salt"),
        (COMPLETIONS, {"prompt": "Hi", "request_id": "a\nb"}, "request_id"),
        (COMPLETIONS, {"prompt": "Hi", "temperature": "hot"}, "temperature"),
        (COMPLETIONS, {"prompt": "Hi", "temperature": -1}, "temperature"),
        (COMPLETIONS, {"prompt": "Hi", "top_p": 1.5}, "top_p"),
        (COMPLETIONS, {"prompt": "Hi", "n": 0}, "n"),
        (COMPLETIONS, {"prompt": "Hi", "n": 1000}, "n"),
        (COMPLETIONS, {"prompt": "Hi", "n": True}, "n"),
        (COMPLETIONS, {"prompt": "Hi", "seed": 2**63}, "seed"),
        (COMPLETIONS, {"prompt": "Hi", "stop": 5}, "stop"),
        (COMPLETIONS, {"prompt": "Hi", "stop": [""]}, "stop"),
        (COMPLETIONS, {"prompt": "Hi", "stop": ["a"] * 65}, "stop"),
        (COMPLETIONS, {"prompt": "Hi", "stop": "a" * 1025}, "stop"),
        (COMPLETIONS, {"prompt": "Hi", "logprobs": 21}, "logprobs"),
        (COMPLETIONS, {"prompt": "Hi", "logprobs": True}, "logprobs"),
        (COMPLETIONS, {"prompt": "Hi", "logit_bias": {"x": 1}}, "logit_bias"),
        (COMPLETIONS, {"prompt": "Hi", "logit_bias": {"258": 1}}, "logit_bias"),
        (COMPLETIONS, {"prompt": "Hi", "logit_bias": {"9" * 5000: 1}}, "logit_bias"),
        (COMPLETIONS, {"prompt": "Hi", "logit_bias": {"\u0664": 1}}, "logit_bias"),
        (
            COMPLETIONS,
            {"prompt": "Hi", "logit_bias": dict.fromkeys(map(str, range(301)), 1)},
            "logit_bias",
        ),
        (
            COMPLETIONS,
            {"prompt": "Hi", "stream_options": {"include_usage": True}},
            "stream_options",
        ),
        (COMPLETIONS, {"prompt": "Hi", "speculative": 4}, "speculative"),
        (COMPLETIONS, {"prompt": "Hi", "speculative": {"max_draft_tokens": -1}}, "speculative"),
        (COMPLETIONS, {"prompt": "Hi", "speculative": {"max_draft_tokens": "4"}}, "speculative"),
        (COMPLETIONS, {"prompt": "Hi", "speculative": {"max_draft_tokens": True}}, "speculative"),
        (COMPLETIONS, {"prompt": "Hi", "speculative": {"num_tokens": 4}}, "speculative"),
        (CHAT, {"messages": USER, "speculative": {"num_tokens": 4}}, "speculative"),
        (CHAT, {}, "messages"),
        (CHAT, {"messages": []}, "messages"),
        (CHAT, {"messages": "Hi"}, "messages"),
        (CHAT, {"messages": [{"content": "Hi"}]}, "messages[0].role"),
        (CHAT, {"messages": [{"role": "king", "content": "Hi"}]}, "messages[0].role"),
        (CHAT, {"messages": [{"role": "", "content": "Hi"}]}, "messages[0].role"),
        (CHAT, {"messages": USER, "chat_template_kwargs": {"self": 1}}, "chat_template_kwargs"),
        (CHAT, {"messages": [{"role": "user"}]}, "messages[0].content"),
        (CHAT, {"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        (CHAT, {"messages": USER, "top_logprobs": 2}, "top_logprobs"),
        (CHAT, {"messages": USER, "logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ("/tokenize", {}, "prompt"),
        ("/detokenize", {"tokens": [999]}, "tokens"),
        ("/detokenize", {"tokens": "abc"}, "tokens"),
    ],
)
def test_bad_field_is_named(post, llm, path, fields, param):
    error = error_of(post(path, **fields), 400)
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"
    assert param in error["message"]
    assert llm.calls == []


def test_message_says_what_was_expected_and_given(post):
    error = error_of(post(COMPLETIONS, prompt="Hi", temperature="hot"), 400)
    assert error["message"] == 'temperature must be a valid number, got "hot"'
    error = error_of(post(COMPLETIONS, prompt=5), 400)
    assert error["message"].startswith("prompt must be a string, a list of strings, ")
    error = error_of(post(COMPLETIONS, prompt="Hi", speculative={"tokens": 4}), 400)
    assert error["message"] == (
        "speculative must be an object with max_draft_tokens, a whole number of at least 0, and "
        'nothing else, got {"tokens": 4}'
    )


@pytest.mark.parametrize(
    ("path", "field", "value"),
    [
        (CHAT, "tools", [{"type": "function", "function": {"name": "f"}}]),
        (CHAT, "response_format", {"type": "json_schema", "json_schema": {}}),
        (CHAT, "response_format", {"type": "json_object"}),
        (CHAT, "tool_choice", "required"),
        (CHAT, "structured_outputs", {"regex": "a+"}),
        (COMPLETIONS, "best_of", 2),
        (COMPLETIONS, "suffix", "end"),
    ],
)
def test_feature_that_would_change_the_answer_is_refused(post, path, field, value):
    body = {"messages": USER} if path == CHAT else {"prompt": "Hi"}
    error = error_of(post(path, **body, **{field: value}), 400)
    assert error["param"] == field
    assert "not supported" in error["message"]


@pytest.mark.parametrize(
    ("field", "value"),
    [("tools", []), ("response_format", {"type": "text"}), ("tool_choice", "none")],
)
def test_feature_that_is_off_is_not_refused(post, field, value):
    assert post(CHAT, messages=USER, **{field: value}).status_code == 200


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "user", "content": [{"type": "image_url"}]}, "messages[0].content"),
        ({"role": "assistant", "audio": {"id": "1"}}, "messages[0].audio"),
        ({"role": "assistant", "function_call": {"name": "f"}}, "messages[0].function_call"),
    ],
)
def test_content_other_than_text_is_refused(post, message, param):
    error = error_of(post(CHAT, messages=[message]), 400)
    assert error["param"] == param
    assert "not supported" in error["message"]


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT, "/tokenize", "/detokenize"])
def test_unknown_model_is_not_found(post, path):
    body = {"prompt": "Hi", "messages": USER, "tokens": [1]}
    error = error_of(post(path, model="gpt-9", **body), 404)
    assert error["code"] == "model_not_found"
    assert "gpt-9" in error["message"]
    assert "tiny" in error["message"]


@pytest.mark.parametrize("stream", [False, True])
def test_prompt_longer_than_the_context_names_both_numbers(post, llm, stream):
    error = error_of(post(COMPLETIONS, prompt=[65] * 130, stream=stream), 400)
    assert error["code"] == "context_length_exceeded"
    assert "130" in error["message"]
    assert "100" in error["message"]
    assert llm.calls == []


def test_prompt_and_output_longer_than_the_context(post):
    error = error_of(post(COMPLETIONS, prompt=[65] * 60, max_tokens=70), 400)
    assert error["code"] == "context_length_exceeded"
    assert all(number in error["message"] for number in ("60", "70", "130", "100"))


@pytest.mark.parametrize("stream", [False, True])
def test_full_queue_says_when_to_retry(post, llm, stream):
    llm.refuse = QueueFullError("1024 requests are waiting", retry_after=2.4)
    response = post(COMPLETIONS, prompt="Hi", stream=stream)
    assert error_of(response, 429)["type"] == "rate_limit_error"
    assert response.headers["retry-after"] == "3"


def test_one_refused_prompt_refuses_the_request_and_ends_the_others(post, llm):
    llm.token_seconds = 0.01
    whole = llm.generate

    def generate(prompt, *arguments):
        llm.refuse = QueueFullError("full", 1.0) if prompt[-1] == 66 else None
        return whole(prompt, *arguments)

    llm.generate = generate
    error_of(post(COMPLETIONS, prompt=["A", "B"]), 429)
    assert len(llm.aborted) == 1


@pytest.mark.parametrize("stream", [False, True])
def test_request_that_the_engine_refuses(post, llm, stream):
    llm.refuse = RequestError("stop_token_ids must be fewer")
    error = error_of(post(COMPLETIONS, prompt="Hi", stream=stream), 400)
    assert error["param"] == "stop_token_ids"


def test_engine_that_dies_under_a_request(post, llm):
    llm.fail_after = 2
    error = error_of(post(COMPLETIONS, prompt="Hi"), 503)
    assert error["code"] == "engine_dead"


def test_engine_that_dies_under_a_stream_ends_it_with_an_error_event(post, llm):
    llm.fail_after = 2
    response = post(COMPLETIONS, prompt="Hi", stream=True)
    *_, failure, done, _ = response.text.split("\n\n")
    assert '"engine_dead"' in failure
    assert done == "data: [DONE]"


def test_dead_engine(call, post, llm):
    llm.error = "out of memory"
    for response in (post(COMPLETIONS, prompt="Hi"), call("GET", "/health"), call("GET", "/ready")):
        error = error_of(response, 503)
        assert error["code"] == "engine_dead"
        assert "out of memory" in error["message"]


def test_engine_dead_error_before_the_first_token(post, llm):
    llm.refuse = EngineDeadError("the loop has ended")
    error_of(post(COMPLETIONS, prompt="Hi", stream=True), 503)


def test_unexpected_exception_says_nothing_of_the_inside(post, llm):
    llm.refuse = ZeroDivisionError("secret")
    error = error_of(post(COMPLETIONS, prompt="Hi"), 500)
    assert error["type"] == "server_error"
    assert "secret" not in error["message"]


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT, "/tokenize", "/v1/models"])
def test_loading_model(call, llm, path):
    llm.is_ready = False
    method = "GET" if path == "/v1/models" else "POST"
    body = {"prompt": "Hi", "messages": USER}
    response = call(method, path, json=body)
    assert error_of(response, 503)["code"] == "not_ready"
    assert "retry-after" in response.headers


@pytest.mark.parametrize("content", [b'{"prompt": "Hi"', b"", b"[1]", b'"Hi"', b"\xff"])
def test_body_that_is_no_json_object(call, content):
    headers = {"Content-Type": "application/json"}
    error_of(call("POST", COMPLETIONS, content=content, headers=headers), 400)


def test_malformed_json_says_so(call):
    headers = {"Content-Type": "application/json"}
    response = call("POST", COMPLETIONS, content=b'{"prompt": "Hi",}', headers=headers)
    assert "not valid JSON" in error_of(response, 400)["message"]


def test_numbers_that_json_does_not_have_are_refused(call):
    headers = {"Content-Type": "application/json"}
    for text, param in (('"temperature": NaN', "temperature"), ('"min_p": Infinity', "min_p")):
        content = f'{{"prompt": "Hi", {text}}}'
        error = error_of(call("POST", COMPLETIONS, content=content, headers=headers), 400)
        assert error["param"] == param
    content = '{"prompt": "Hi", "logit_bias": {"65": NaN}}'
    error = error_of(call("POST", COMPLETIONS, content=content, headers=headers), 400)
    assert error["param"] == "logit_bias.65"


def test_form_body_is_told_to_be_json(call):
    response = call("POST", COMPLETIONS, data={"prompt": "Hi"})
    assert "application/json" in error_of(response, 400)["message"]


def test_body_that_is_too_large(call):
    config = ServerConfig(max_body_bytes=100)
    assert call("POST", COMPLETIONS, config, json={"prompt": "Hi"}).status_code == 200
    for content in (b"x" * 101, iter([b"x" * 60, b"x" * 60])):
        body = content if isinstance(content, bytes) else _chunks(content)
        error = error_of(call("POST", COMPLETIONS, config, content=body), 413)
        assert "100" in error["message"]


async def _chunks(parts):
    for part in parts:
        yield part


def test_unknown_path_and_method(call):
    error_of(call("GET", "/v1/nothing"), 404)
    error_of(call("GET", COMPLETIONS), 405)


@pytest.mark.parametrize("given", [None, "Bearer wrong", "Bearer secr\xe9t", "secret"])
def test_api_key_is_required(call, given):
    config = ServerConfig(api_key="secret")
    headers = {} if given is None else {"Authorization": given.encode("latin-1")}
    error = error_of(call("GET", "/v1/models", config, headers=headers), 401)
    assert error["code"] == "invalid_api_key"


def test_api_key_opens(call):
    config = ServerConfig(api_key="secret")
    headers = {"Authorization": "Bearer secret"}
    assert call("GET", "/v1/models", config, headers=headers).status_code == 200
    for path in ("/health", "/ready", "/version", "/metrics"):
        assert call("GET", path, config).status_code == 200


@pytest.mark.parametrize(
    ("path", "fields", "message"),
    [
        (COMPLETIONS, {"prompt": "Hi", "tools": []}, f"'tools' is a field of {CHAT} and /tokenize"),
        (COMPLETIONS, {"prompt": "Hi", "tool_choice": "none"}, f"is a field of {CHAT}, not of"),
        (COMPLETIONS, {"prompt": "Hi", "messages": USER}, f"'messages' is a field of {CHAT} and"),
        (COMPLETIONS, {"messages": USER}, f"prompt is required; messages is for {CHAT}"),
        (COMPLETIONS, {"prompt": "Hi", "max_completion_tokens": 5}, "which has 'max_tokens'"),
        (COMPLETIONS, {"prompt": "Hi", "top_logprobs": 5}, "which has 'logprobs'"),
        (COMPLETIONS, {"prompt": "Hi", "logprobs": True}, "top_logprobs are for chats"),
        (CHAT, {"messages": USER, "prompt": "Hi"}, f"'prompt' is a field of {COMPLETIONS}"),
        (CHAT, {"prompt": "Hi"}, f"messages is required; prompt is for {COMPLETIONS}"),
        (CHAT, {"messages": USER, "logprobs": 5}, "how many there are is top_logprobs"),
        ("/tokenize", {"prompt": "Hi", "max_tokens": 5}, f"of {CHAT} and {COMPLETIONS}, not of /t"),
        ("/detokenize", {"tokens": [65], "prompt": "Hi"}, "not of /detokenize"),
    ],
)
def test_a_field_of_another_endpoint_is_told_where_it_belongs(post, path, fields, message):
    assert message in error_of(post(path, **fields), 400)["message"]


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT, "/tokenize", "/detokenize", "/v1/plan"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"prompt": "\xff"}', "the request body is not valid UTF-8: ff (hexadecimal) at byte 12"),
        (b'{"a": ' + b"[" * 9000 + b"]" * 9000 + b"}", "nested too deeply: lists and objects"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "the request body cannot be read: Exceeds the limit"),
        (b'{"prompt": "Hi"', "is not valid JSON: Expecting ',' delimiter at character 15"),
    ],
    ids=["utf-8", "depth", "digits", "syntax"],
)
def test_a_body_that_cannot_be_read_is_told_why(call, path, content, message):
    headers = {"Content-Type": "application/json"}
    error = error_of(call("POST", path, content=content, headers=headers), 400)
    assert message in error["message"]
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT, "/tokenize", "/v1/plan"])
@pytest.mark.parametrize("coding", ["gzip", "br", "GZIP", "identity, zstd", "x" * 5000])
def test_a_compressed_body_is_refused_by_the_name_of_its_coding(call, path, coding):
    headers = {"Content-Type": "application/json", "Content-Encoding": coding}
    response = call("POST", path, content=gzip.compress(b'{"prompt": "Hi"}'), headers=headers)
    error = error_of(response, 415)
    assert error["code"] == "unsupported_content_encoding"
    assert coding.rpartition(" ")[2][:20] in error["message"]
    assert response.headers["accept-encoding"] == "identity"


@pytest.mark.parametrize("coding", ["identity", "Identity", ""])
def test_a_body_that_says_that_it_is_not_compressed_is_read(call, coding):
    headers = {"Content-Encoding": coding}
    assert call("POST", COMPLETIONS, json={"prompt": "Hi"}, headers=headers).status_code == 200
    assert call("GET", "/health", headers={"Content-Encoding": "gzip"}).status_code == 200
