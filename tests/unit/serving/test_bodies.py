"""A body that is read in a thread, because it is large, is read as a small one is."""

from __future__ import annotations

import json

import pytest

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
JSON_BODY = {"Content-Type": "application/json"}
LARGE = 40_000
"""Bytes of white space, which JSON may have at its end."""


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (COMPLETIONS, '{"prompt":"a"}'),
        (COMPLETIONS, '{"prompt":[1,2,3],"temperature":0.5,"seed":123456789012345678}'),
        (COMPLETIONS, '{"prompt":[1,2.5]}'),
        (COMPLETIONS, '{"prompt":"a","max_tokens":1.5}'),
        (COMPLETIONS, '{"prompt":"a","temperature":NaN}'),
        (COMPLETIONS, '{"prompt":"a","temperature":1e999}'),
        (COMPLETIONS, '{"prompt":"a","seed":' + "9" * 5000 + "}"),
        (COMPLETIONS, '{"prompt":"a","stop":["a",7]}'),
        (COMPLETIONS, '{"prompt":"a","colour":7}'),
        (COMPLETIONS, '{"promt":"a"}'),
        (COMPLETIONS, json.dumps({"prompt": "a", **dict.fromkeys(map(str, range(1000)), 0)})),
        (COMPLETIONS, '{"prompt":"a"} x'),
        (COMPLETIONS, '{"prompt":"a",}'),
        (COMPLETIONS, '{"prompt":"\xe9"}'),
        (COMPLETIONS, '{"prompt":' + "[" * 5000 + "]" * 5000 + "}"),
        (COMPLETIONS, "[]"),
        (COMPLETIONS, "null"),
        (COMPLETIONS, "7"),
        (CHAT, '{"messages":[]}'),
        (CHAT, '{"messages":[{"role":"user","content":[{"type":"image"}]}]}'),
        (CHAT, '{"messages":[{"role":7}]}'),
        ("/tokenize", '{"prompt":"a b"}'),
        ("/detokenize", '{"tokens":[104,105]}'),
        ("/v1/plan", '{"stages":"many"}'),
        ("/v1/plan", "[1]"),
    ],
    ids=lambda value: value[:60],
)
@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_answer_does_not_depend_on_the_size(call, path, body, encoding):
    def answer(end: str) -> tuple[int, object]:
        content = (body + end).encode(encoding)
        response = call("POST", path, content=content, headers=JSON_BODY)
        told = response.json()
        return response.status_code, {**told, "id": None, "created": None}

    assert answer(" " * LARGE) == answer("")


@pytest.mark.parametrize("headers", [{"Content-Type": "text/plain"}, {}])
def test_type_of_a_large_body_counts_as_that_of_a_small_one(call, headers):
    for path in (COMPLETIONS, "/v1/plan"):
        small, large = (
            call("POST", path, content=b'{"prompt":"a"}' + b" " * size, headers=headers)
            for size in (0, LARGE)
        )
        assert small.status_code == large.status_code
