"""Methods, paths, keys and ids, which are the same for all routes."""

from __future__ import annotations

import pytest

from fjx.serving.config import ServerConfig
from tests.unit.serving.test_errors import CHAT, COMPLETIONS, error_of

STATUS_PATHS = ("/health", "/ping", "/ready", "/load", "/version", "/metrics")
READ_PATHS = (*STATUS_PATHS, "/v1/models", "/v1/models/tiny", "/v1/plan", "/tokenizer_info")
KEYS = ServerConfig(api_key="secret", admin_key="admin")


@pytest.mark.parametrize("path", READ_PATHS)
def test_head_answers_like_get_without_the_body(call, path):
    whole, head = call("GET", path), call("HEAD", path)
    assert head.status_code == whole.status_code == 200
    assert head.content == b""
    assert head.headers.get("content-type") == whole.headers.get("content-type")


def test_head_has_the_status_of_get(call, llm):
    llm.is_ready = False
    assert call("HEAD", "/health").status_code == 200
    assert call("HEAD", "/ready").status_code == 503
    llm.error = "out of memory"
    assert call("HEAD", "/health").status_code == 503
    assert call("HEAD", "/v1/nothing").status_code == 404
    assert call("HEAD", COMPLETIONS).status_code == 405


@pytest.mark.parametrize(
    ("path", "methods"),
    [
        ("/health", "GET, HEAD, OPTIONS"),
        ("/ping", "GET, HEAD, OPTIONS, POST"),
        (COMPLETIONS, "OPTIONS, POST"),
        ("/v1/plan", "DELETE, GET, HEAD, OPTIONS, POST"),
        ("/openapi.json", "GET, HEAD, OPTIONS"),
    ],
)
def test_options_names_the_methods_of_a_path(call, path, methods):
    response = call("OPTIONS", path)
    assert response.status_code == 204
    assert response.headers["allow"] == methods


def test_unknown_path_is_told_what_there_is(call):
    for method in ("GET", "POST", "OPTIONS", "PUT"):
        error = error_of(call(method, "/v1/chat/completion"), 404)
        assert f"did you mean {CHAT}?" in error["message"]
        assert error["code"] == "path_not_found"
        for path in (*STATUS_PATHS, COMPLETIONS, "/v1/plan", "/tokenize"):
            assert path in error["message"]
        for path in ("/docs,", "/openapi.json,", "/v1/models/{model},"):
            assert path in error["message"]
        assert "oauth2" not in error["message"]
    error_of(call("GET", "/" + "x" * 5000), 404)


def test_wrong_method_is_told_the_right_ones(call):
    response = call("GET", COMPLETIONS)
    error = error_of(response, 405)
    assert error["message"] == f"{COMPLETIONS} takes OPTIONS, POST, not GET"
    assert response.headers["allow"] == "OPTIONS, POST"


@pytest.mark.parametrize("prefix", ["", "/v1"])
def test_tokenizer_with_and_without_version(call, prefix):
    tokens = call("POST", f"{prefix}/tokenize", json={"prompt": "Hi"}).json()["tokens"]
    text = call("POST", f"{prefix}/detokenize", json={"tokens": tokens}).json()["prompt"]
    assert text == "<bos>Hi"
    assert call("GET", f"{prefix}/tokenizer_info").json() == {
        "tokenizer_class": "ByteTokenizer",
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "chat_template": "{# roles: system user assistant tool; fields: name, thoughts #}",
        "model_max_length": 100,
    }


def test_tokenizer_without_special_tokens(call, llm):
    llm.tokenizer.bos_token_id, llm.tokenizer.eos_token_ids = None, ()
    llm.tokenizer.chat_template = None
    info = call("GET", "/tokenizer_info").json()
    assert (info["bos_token"], info["eos_token"], info["chat_template"]) == (None, None, None)


def test_ping_says_whether_the_server_lives(call, llm):
    for method in ("GET", "POST"):
        assert call(method, "/ping").status_code == 200
    llm.error = "out of memory"
    for method in ("GET", "POST"):
        error_of(call(method, "/ping"), 503)


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": "Bearer secret"},
        {"Authorization": "bearer secret"},
        {"Authorization": "BEARER  secret "},
        {"X-Api-Key": "secret"},
        {"Authorization": "Basic eDp5", "X-Api-Key": "secret"},
        {"X-Api-Key": "admin"},
    ],
)
def test_key_in_either_header_opens(call, headers):
    assert call("GET", "/v1/models", KEYS, headers=headers).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "secret"},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearersecret"},
        {"Authorization": "Bearer Bearer secret"},
        {"Authorization": "Basic secret"},
        {"Authorization": "Bearer secre"},
        {"Authorization": "Bearer Secret"},
        {"X-Api-Key": "Bearer secret"},
        {"X-Api-Key": ""},
    ],
)
def test_nothing_else_opens(call, headers):
    error = error_of(call("GET", "/v1/models", KEYS, headers=headers), 401)
    assert error["type"] == "authentication_error"


def test_only_the_admin_key_changes_the_plan(call):
    for headers in ({"Authorization": "bearer secret"}, {"X-Api-Key": "secret"}):
        error = error_of(call("POST", "/v1/plan", KEYS, headers=headers, json={"stages": 2}), 401)
        assert error["code"] == "invalid_admin_key"
    for headers in ({"Authorization": "bearer admin"}, {"X-Api-Key": "admin"}):
        assert call("POST", "/v1/plan", KEYS, headers=headers, json={"stages": 2}).is_success


@pytest.mark.parametrize("path", STATUS_PATHS)
@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS"])
def test_how_the_server_is_may_be_read_without_a_key(call, path, method):
    assert call(method, path, KEYS).is_success


def test_request_id_comes_back(call, llm):
    mine = {"X-Request-Id": "abc-1"}
    for method, path in (("GET", "/health"), ("POST", COMPLETIONS), ("GET", "/nothing")):
        response = call(method, path, headers=mine, json={"prompt": "Hi"})
        assert response.headers["x-request-id"] == "abc-1"
    llm.refuse = ZeroDivisionError("secret")
    response = call("POST", COMPLETIONS, headers=mine, json={"prompt": "Hi"})
    assert (response.status_code, response.headers["x-request-id"]) == (500, "abc-1")
    assert call("GET", "/v1/models", KEYS, headers=mine).headers["x-request-id"] == "abc-1"


def test_request_id_is_made_where_there_is_none(call):
    first, second = (call("GET", "/health").headers["x-request-id"] for _ in range(2))
    assert first != second
    assert first.isalnum()


@pytest.mark.parametrize("given", ["", "a b", "x" * 129, "\xe9"])
def test_unusable_request_id_is_replaced(call, given):
    headers = {"X-Request-Id": given.encode("latin-1")}
    answer = call("POST", COMPLETIONS, headers=headers, json={"prompt": "Hi"})
    assert answer.headers["x-request-id"].isalnum()
    assert answer.json()["id"] == f"cmpl-{answer.headers['x-request-id']}"


def test_stream_has_its_request_id(call, llm):
    headers = {"X-Request-Id": "mine"}
    body = {"prompt": "Hi", "stream": True}
    response = call("POST", COMPLETIONS, headers=headers, json=body)
    assert response.headers["x-request-id"] == "mine"
    assert '"id":"cmpl-mine"' in response.text
    assert llm.calls[0].request_id.startswith("cmpl-mine-0-")


def test_pages_may_read_the_request_id(call):
    config = ServerConfig(allowed_origins=("https://page.example",))
    response = call("GET", "/health", config, headers={"Origin": "https://page.example"})
    assert response.headers["access-control-expose-headers"] == "X-Request-Id"
