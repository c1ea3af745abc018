"""Requests that have broken servers; those about numbers have a real engine in tests/e2e."""

from __future__ import annotations

import json

import pytest

from tests.http_cases import CALL, COMPLETIONS, FIELDS, NUMBERS, TEXT, USER


@pytest.mark.parametrize("case", [*FIELDS, *NUMBERS], ids=lambda case: case[0])
def test_request_that_breaks_servers(call, case):
    _, method, path, body, right = case
    content = json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    response = call(method, path, content=content, headers=headers)
    assert response.status_code in right, response.text
    assert call("POST", COMPLETIONS, json=TEXT).status_code == 200


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 10_000,
        b'{"prompt": ' + b"[" * 900 + b"]" * 900 + b"}",
        b'{"prompt": "a", "x": ' + b'{"a":' * 900 + b"1" + b"}" * 900 + b"}",
        b'{"prompt": "a", "tools": ' + b"[" * 900 + b"]" * 900 + b"}",
        b'{"prompt": "a", "max_tokens": ' + b"9" * 100_000 + b"}",
        b'{"prompt": "a", "seed": 1e999}',
        b'{"prompt": "a", "prompt": 5}',
        b"\xef\xbb\xbf{}",
        b"\x00",
        b"null",
    ],
)
@pytest.mark.parametrize("path", [COMPLETIONS, "/v1/chat/completions", "/tokenize", "/v1/plan"])
def test_body_that_breaks_parsers(call, path, content):
    headers = {"Content-Type": "application/json"}
    assert call("POST", path, content=content, headers=headers).status_code in (400, 413)


@pytest.mark.parametrize(
    ("text", "status"),
    [
        (rb"\ud83d\ude00", 200),
        (rb"\uD83D\uDE00\n", 200),
        (rb"\\ud800", 200),
        (rb"\\\\ud800", 200),
        ("😀 한국어".encode(), 200),
        (rb"\ud800", 400),
        (rb"\\\ud800", 400),
        (rb"\udc00\ud800", 400),
        (rb"\ud83d\ud83d\ude00", 400),
        (rb"\ud83d\ude00\ude00", 400),
        (b"\xed\xa0\x80", 400),
    ],
)
def test_halves_of_characters_are_refused_and_whole_ones_are_not(call, text, status):
    content = b'{"prompt": "' + text + b'"}'
    headers = {"Content-Type": "application/json"}
    assert call("POST", COMPLETIONS, content=content, headers=headers).status_code == status


@pytest.mark.parametrize("depth", [100, 200, 300, 400, 450, 500])
@pytest.mark.parametrize(
    "fields",
    [
        {"chat_template_kwargs": {"x": "DEEP"}},
        {"documents": [{"x": "DEEP"}]},
        {"prediction": "DEEP"},
        {"messages": [{"role": "user", "content": "a", "thoughts": "DEEP"}]},
        {"messages": [{"role": "assistant", "tool_calls": [{"x": "DEEP", **CALL}]}]},
        {
            "messages": [
                {
                    "role": "assistant",
                    "tool_calls": [{"function": {"name": "f", "arguments": {"x": "DEEP"}}}],
                }
            ]
        },
        {
            "messages": [
                {
                    "role": "assistant",
                    "tool_calls": [{"function": {"name": "f", "arguments": '{"x": "DEEP"}'}}],
                }
            ]
        },
    ],
)
def test_deeply_nested_value_is_no_error_of_the_servers_own(call, llm, depth, fields, monkeypatch):
    def render(messages, **variables):
        return str(copied({"messages": messages, **variables}))[:50]

    monkeypatch.setattr(llm.tokenizer, "apply_chat_template", render)
    llm.tokenizer.chat_template += " documents"
    content = json.dumps({"messages": USER, "max_tokens": 1, **fields})
    deep = '{"a": [' * depth + "1" + "]}" * depth
    content = content.replace('"DEEP"', deep).replace('\\"DEEP\\"', deep.replace('"', '\\"'))
    headers = {"Content-Type": "application/json"}
    for path in ("/v1/chat/completions", "/tokenize"):
        response = call("POST", path, content=content.encode(), headers=headers)
        assert response.status_code in (200, 400), response.text


def copied(value):
    """A copy, made as plain Python makes one."""
    if isinstance(value, dict):
        return {key: copied(each) for key, each in value.items()}
    return [copied(each) for each in value] if isinstance(value, list) else value
